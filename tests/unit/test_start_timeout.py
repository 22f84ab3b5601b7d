"""`engine.start_timeout_s` is the only limit of a start: vLLM's client of the engine waits as long."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.app import engine_factory
from serve_app.config.profile import load_config, profile_names
from serve_app.config.schema import READY_VARIABLE, ConfigError
from serve_app.engine.vllm_environment import prepare_environment

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("limit_s", "waits"), [(7200.0, "7200"), (90.5, "91")])
def test_vllm_waits_as_long_as_a_start_may_take(limit_s: float, waits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VLLM_WORKER_MULTIPROC_METHOD", "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS", "VLLM_TARGET_DEVICE"):
        monkeypatch.setenv(name, "")  # put back afterwards
    monkeypatch.setenv("PATH", os.environ["PATH"])
    monkeypatch.setenv(READY_VARIABLE, "600")  # of the node: the key is what counts
    prepare_environment(limit_s)
    assert os.environ[READY_VARIABLE] == waits


def test_a_replicas_engine_is_built_with_its_limit() -> None:
    config = load_config({"profile": "cpu-demo", "engine": {"start_timeout_s": 5400}}, [])
    engine = engine_factory(config)(lambda _deltas: None)
    assert vars(engine)["_start_timeout_s"] == 5400


def test_vllm_has_not_read_its_limit_before_it_is_set() -> None:
    """`core_client` reads it once, when it is imported."""
    program = "import sys, serve_app.engine.vllm, serve_app.engine.vllm_metrics; print(*sys.modules)"
    told = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "serve_app.engine.vllm_process" in told.stdout.split()
    assert "vllm.v1.engine.core_client" not in told.stdout.split()


def test_a_second_source_of_the_limit_is_refused() -> None:
    env = {READY_VARIABLE: "1800"}
    with pytest.raises(ConfigError, match=r"follows engine\.start_timeout_s"):
        load_config({"profile": "cpu-demo", "engine": {"env": env}}, [])


@pytest.mark.parametrize("name", profile_names())
def test_no_layout_sets_it_twice(name: str) -> None:
    assert READY_VARIABLE not in load_config({"profile": name}, []).engine.env
