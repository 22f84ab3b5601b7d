"""What runs beside GPU engines without a GPU: flags, configuration, rendering. The APIs' own tests run here as well."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.config import profile, vllm_device, vllm_flags
from serve_app.config.profile import ROOT, load_config
from serve_app.config.vllm_flags import engine_argv
from serve_app.vllm_patches.cpu import TARGETS, close_gaps

TINY = ROOT / "models" / "step-tiny"

FULL_SHAPE = {
    "num_hidden_layers": 45,
    "num_nextn_predict_layers": 3,
    "hidden_size": 4096,
    "intermediate_size": 11264,
    "num_attention_heads": 64,
    "num_attention_groups": 8,
    "head_dim": 128,
    "moe_num_experts": 288,
    "moe_top_k": 8,
    "moe_intermediate_size": 1280,
    "share_expert_dim": 1280,
    "sliding_window": 512,
    "max_position_embeddings": 262144,
}
"""Step-3.7-Flash's, as far as `config/memory.py` and its flags know them; the rest is the demo's, of the same
architecture."""


@pytest.fixture
def full_model(tmp_path: Path) -> Path:
    """The small files of a checkpoint of the full shape: no weight."""
    for file in TINY.iterdir():
        if file.is_file() and file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((TINY / "config.json").read_text(encoding="utf-8"))
    text = config.get("text_config", config)
    text.update({name: value for name, value in FULL_SHAPE.items() if name in text})
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return tmp_path


@pytest.mark.filterwarnings("ignore:--disable-cascade-attn")  # in some profiles; without effect since 0.32
@pytest.mark.parametrize("name", profile.profile_names())
def test_every_profile_is_taken_at_the_full_shape_without_a_gpu(name: str, full_model: Path) -> None:
    from serve_app.config.vllm_frontend import frontend_config

    config = load_config({"profile": name, "model": {"source": str(full_model)}}, [])
    built = frontend_config(vllm_flags.parse(engine_argv(config), vllm_flags.serve_parser()))
    assert built.model_config.architectures == ["Step3p7ForConditionalGeneration"]
    assert built.scheduler_config.max_num_seqs == config.engine.flags["max-num-seqs"]


def test_the_command_line_reads_flags_without_a_driver_by_itself(tmp_path: Path) -> None:
    """`make test-gpu-frontend` sets the variable for these tests; users do not."""
    deploy = (ROOT / "deploy.yaml").read_text(encoding="utf-8").replace("profile: auto", "profile: h100-x8")
    (tmp_path / "deploy.yaml").write_text(deploy, encoding="utf-8")
    env = {name: value for name, value in os.environ.items() if name != vllm_device.VARIABLE}
    command = [sys.executable, "-m", "serve_app", "argv", "--file", str(tmp_path / "deploy.yaml")]
    told = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr[-2000:]
    assert "--tensor-parallel-size=8" in told.stdout


def test_a_front_end_knows_that_it_is_one_of_gpus() -> None:
    assert vllm_device.is_front_end_of_gpus()
    assert not vllm_device.version().endswith("+cpu")


def test_the_patches_of_the_cpu_backend_stay_away_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    replaced: list[object] = []
    monkeypatch.setattr("serve_app.vllm_patches.cpu.replace", lambda target, _make: replaced.append(target))
    close_gaps()
    assert TARGETS
    assert replaced == []
