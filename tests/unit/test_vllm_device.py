"""Which device vLLM's code is for: none in what parses and renders, the GPU in an engine, on any node."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from serve_app.app import _ingress_deployment
from serve_app.config.hardware import NodeGpus
from serve_app.config.placement import replica_options
from serve_app.config.profile import load_config
from serve_app.config.replicas import ReplicasConfig
from serve_app.config.schema import ConfigError
from serve_app.config.vllm_device import VARIABLE, use_no_device, use_the_gpu
from serve_app.engine.vllm_environment import prepare_environment


@pytest.mark.parametrize("prepare", [use_the_gpu, prepare_environment])
def test_an_engine_drops_what_it_inherits_from_a_front_end(monkeypatch: pytest.MonkeyPatch, prepare: object) -> None:
    monkeypatch.setenv("VLLM_ENGINE_READY_TIMEOUT_S", "1")
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    monkeypatch.setenv("VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS", "1")
    monkeypatch.setenv("PATH", os.environ["PATH"])
    monkeypatch.setenv(VARIABLE, "cpu")
    assert callable(prepare)
    prepare()
    assert VARIABLE not in os.environ


def test_a_step_may_take_as_long_as_the_watchdog_lets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself vLLM ends an engine whose step takes 300 s, whatever compiles in it."""
    for name in ("VLLM_ENGINE_READY_TIMEOUT_S", "VLLM_WORKER_MULTIPROC_METHOD", "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", os.environ["PATH"])
    prepare_environment()
    limits = load_config({"profile": "cpu-demo"}, [NodeGpus("head", None, 0, 8)]).engine
    assert int(os.environ["VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS"]) > max(limits.compile_limit_s, limits.stuck_after_s)


def test_a_front_end_asks_for_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "cuda")
    use_no_device()
    assert os.environ[VARIABLE] == "cpu"


@pytest.mark.parametrize("nodes", [1, 2])
def test_an_engine_replica_and_its_gang_override_what_ray_was_started_with(nodes: int) -> None:
    replicas = ReplicasConfig(gpus_per_replica=8, nodes_per_replica=nodes, cpus_per_replica=8)
    env = replica_options(replicas, {"A": "b"})["ray_actor_options"]["runtime_env"]["env_vars"]
    assert env == {VARIABLE: "cuda", "A": "b"}


def test_an_ingress_has_the_engines_environment_and_sees_no_gpu() -> None:
    """It loads the model's configuration and tokenizer from where the engine does."""
    env = {"HF_HOME": "/models", "CUDA_VISIBLE_DEVICES": "0"}
    config = load_config({"profile": "cpu-demo", "engine": {"env": env}}, [NodeGpus("head", None, 0, 8)])
    options = _ingress_deployment(config).ray_actor_options
    assert options is not None
    given = options["runtime_env"]["env_vars"]
    assert (given["HF_HOME"], given["CUDA_VISIBLE_DEVICES"], given[VARIABLE]) == ("/models", "", "cpu")


def test_the_device_is_not_for_the_configuration_to_say() -> None:
    with pytest.raises(ConfigError, match=r"VLLM_TARGET_DEVICE is set by the application"):
        load_config({"profile": "cpu-demo", "engine": {"env": {VARIABLE: "cpu"}}}, [NodeGpus("head", None, 0, 8)])


@pytest.mark.slow
def test_nothing_of_vllm_is_imported_before_an_engine_has_dropped_it() -> None:
    code = "import sys, serve_app.app; print(sorted(name for name in sys.modules if name.split('.')[0] == 'vllm'))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
