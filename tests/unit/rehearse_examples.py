"""What the tests of a rehearsal share: configurations, flags, a plan and a free port."""

from __future__ import annotations

import argparse
import math
import socket
from pathlib import Path
from typing import Any

from serve_app.config.profile import load_config, profile_names
from serve_app.config.schema import AppConfig
from serve_app.rehearse import dummy_model, setup

DEMO = dummy_model.read_config(dummy_model.DEMO)
ON_GPUS = [name for name in profile_names() if load_config({"profile": name}, []).replicas.gpus_per_replica]
MODEL = Path("/somewhere/model")


def profile(name: str, **more: object) -> AppConfig:
    return load_config({"profile": name, **more}, [])


def parameters(config: dict[str, Any]) -> int:
    return sum(math.prod(shape) for _, shape in dummy_model.tensors(config))


def given(out: Path, **more: object) -> argparse.Namespace:
    return argparse.Namespace(**{"profile": "h100-x8", "share": False, "out": out, "port": None, "load_s": 1.0, **more})


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def planned(tmp_path: Path, port: int) -> setup.RehearsalPlan:
    config = profile("cpu-demo", model={"source": str(dummy_model.DEMO), "served_name": "mock"})
    deploy = tmp_path / "deploy.yaml"
    return setup.RehearsalPlan("cpu-demo", config, 1, True, dummy_model.DEMO, deploy, port, dummy_model.DEMO, ())
