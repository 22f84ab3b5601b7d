"""Compiled kernels outlive a replica, and never meet another version or machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from serve_app.app import _ingress_deployment
from serve_app.config.profile import load_config
from serve_app.engine import compile_cache
from serve_app.protocol.errors import EngineDead

H100 = "NVIDIA H100 80GB HBM3, driver 580.95.05"


class NvmlError(Exception):
    """As NVML's library has one."""


def nvml(name: str | bytes, driver: str | bytes) -> SimpleNamespace:
    return SimpleNamespace(
        NVMLError=NvmlError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda _handle: name,
        nvmlSystemGetDriverVersion=lambda: driver,
    )


def test_every_compiler_is_pointed_below_the_one_directory(tmp_path: Path) -> None:
    environ: dict[str, str] = {}
    folder = compile_cache.prepare(str(tmp_path), environ, kind=H100)
    assert folder.is_dir() and folder.parent == tmp_path
    for name in compile_cache.FOLDERS:
        assert Path(environ[name]).parent == folder
    assert len({environ[name] for name in compile_cache.FOLDERS}) == len(compile_cache.FOLDERS)


def test_what_the_operator_has_set_stays(tmp_path: Path) -> None:
    environ = {"TRITON_CACHE_DIR": "/fast/triton", compile_cache.EXTRA_TO_COPY: "MY_OWN"}
    compile_cache.prepare(str(tmp_path), environ, kind=H100)
    assert environ["TRITON_CACHE_DIR"] == "/fast/triton"
    assert environ[compile_cache.EXTRA_TO_COPY].split(",")[0] == "MY_OWN"


def test_workers_on_other_nodes_are_told_by_vllms_own_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.ray.ray_env import get_env_vars_to_copy

    environ: dict[str, str] = {}
    compile_cache.prepare(str(tmp_path), environ, kind=H100)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert set(compile_cache.FOLDERS) <= get_env_vars_to_copy()


def test_two_replicas_of_a_kind_share_a_folder_and_others_do_not(tmp_path: Path) -> None:
    first, second = (compile_cache.prepare(str(tmp_path), {}, kind=H100) for _ in range(2))
    assert first == second
    assert compile_cache.prepare(str(tmp_path), {}, kind="NVIDIA B200, driver 580.95.05") != first
    names = {
        compile_cache.folder_name({"vllm": vllm, "torch": torch}, H100)
        for vllm in ("0.33.0", "0.33.1")
        for torch in ("2.14.0", "2.14.1")
    }
    assert len(names) == 4


def test_a_folders_name_tells_a_person_what_it_is_for() -> None:
    name = compile_cache.folder_name({"vllm": "0.33.0"}, H100)
    assert name.startswith("vllm-0.33.0-NVIDIA-H100-80GB-HBM3-driver-580.95.05-")


@pytest.mark.parametrize("kind", [str, str.encode])
def test_a_machine_is_named_by_its_gpu_and_driver(kind: type) -> None:
    named = compile_cache.machine_name(nvml(kind("NVIDIA H100 80GB HBM3"), kind("580.95.05")))
    assert named == H100


def test_a_machine_without_a_gpu_is_named_by_what_its_processor_can() -> None:
    def fail() -> None:
        raise NvmlError

    broken = nvml("", "")
    broken.nvmlInit = fail
    here = compile_cache.machine_name(broken)
    assert here == compile_cache.machine_name(broken)
    some = compile_cache._processor(["model name : A", "flags : avx2"])
    assert some != compile_cache._processor(["model name : A", "flags : avx2 avx512f"])


def test_a_directory_that_cannot_be_written_ends_the_start_with_its_key(tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("")
    with pytest.raises(EngineDead, match=r"engine\.compile_cache_dir: .*a file"):
        compile_cache.keep_compiled_kernels(str(tmp_path / "a file"))


def test_the_ingress_loads_the_models_files_from_where_the_engine_does() -> None:
    env = {"HF_HOME": "/models/hub", "HF_ENDPOINT": "https://hub.example"}
    config = load_config({"profile": "cpu-demo", "engine": {"env": env}}, [])
    seen = _ingress_deployment(config).ray_actor_options["runtime_env"]["env_vars"]
    assert env.items() <= seen.items()


@pytest.mark.engine
def test_torch_compiles_into_that_directory(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from serve_app.engine import compile_cache\n"
        "print(compile_cache.prepare(sys.argv[1], os.environ))\n"
        "import torch\n"
        "torch.compile(lambda x: x.sin() + 1)(torch.ones(8))\n"
    )
    # Without what torch has filled in here, in the process of the tests.
    env = {name: value for name, value in os.environ.items() if name not in compile_cache.FOLDERS}
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    assert [file for file in (Path(done.stdout.strip()) / "inductor").rglob("*") if file.is_file()]
