"""What a machine with GPUs lacks is said before a start, with what mends it; a machine without any is left alone."""

from __future__ import annotations

import ctypes
import os
import sysconfig
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serve_app.cli import gpu_facts
from serve_app.cli.check import CheckStatus
from serve_app.cli.gpu_checks import gpu_checks
from serve_app.cli.gpu_facts import Gpu, GpuBox, MemoryHolder
from serve_app.config.profile import load_config
from serve_app.config.schema import AppConfig
from serve_app.engine import child, vllm_environment

MIB = 1024**2
H100_BYTES = 81_559 * MIB


def gpu(index: int) -> Gpu:
    return Gpu(index, "NVIDIA H100 80GB HBM3", H100_BYTES, 500 * MIB, 0, links_up=18, power_limit_w=700,
               default_power_limit_w=700)  # fmt: skip


BOX = GpuBox(
    driver="580.95.05",
    pci_gpus=8,
    gpus=tuple(gpu(index) for index in range(8)),
    unreachable_pairs=(),
    compiler="/usr/bin/gcc",
    cxx_compiler="/usr/bin/c++",
    python_header=Path("/usr/include/python3.12/Python.h"),
    cuda_home=Path("/usr/local/cuda"),
    has_cuda_runtime=True,
    ninja="/venv/bin/ninja",
    has_flashinfer_kernels=False,
    shared_memory_bytes=32 * 1024 * MIB,
    kernel_cache=Path("/data/vllm"),
    kernel_cache_file_system="ext4",
)
"""Eight healthy H100, and all that an engine wants beside them."""


def config(profile: str = "h100-x8", **args: object) -> AppConfig:
    return load_config({"profile": profile, **args}, [])


def with_gpu(index: int, **changes: Any) -> GpuBox:
    return replace(BOX, gpus=tuple(replace(item, **changes) if item.index == index else item for item in BOX.gpus))


def test_a_healthy_box_is_named_and_nothing_else_is_said() -> None:
    (only,) = gpu_checks(BOX, config())
    assert only.status is CheckStatus.OK
    assert only.message == "8x NVIDIA H100 80GB HBM3, 18 NVLinks each, driver 580.95.05, idle and healthy"


HELD = {
    "used_bytes": 40 * 1024 * MIB,
    "holders": (MemoryHolder(4711, "python train.py", 40 * 1024 * MIB),),
}

WITHOUT_LINKS = replace(BOX, gpus=tuple(replace(item, links_up=0, links_down=18) for item in BOX.gpus))

FINDINGS = {
    "an old driver": (replace(BOX, driver="570.86.10"), "FAIL", "driver", "nvidia-driver-580-server-open"),
    "no compiler": (replace(BOX, compiler=None), "FAIL", "gcc", "build-essential"),
    "no Python.h": (replace(BOX, python_header=None), "FAIL", "Python.h", "apt-get install python3."),
    "no nvcc": (replace(BOX, cuda_home=None), "note", "FlashInfer", "cuda-toolkit-13-0"),
    "no ninja": (replace(BOX, ninja=None), "note", "FlashInfer", "make venv"),
    "no libcudart": (replace(BOX, has_cuda_runtime=False), "warn", "FlashInfer", "CUDA_HOME=/usr/local/cuda"),
    "no C++": (replace(BOX, cxx_compiler=None), "warn", "FlashInfer", "build-essential"),
    "memory taken": (with_gpu(3, **HELD), "FAIL", "GPU memory", "stop it"),
    "no fabric": (with_gpu(0, is_fabric_pending=True), "FAIL", "NVSwitch", "nvidia-fabricmanager"),
    "a link down": (with_gpu(5, links_up=16, links_down=2), "warn", "NVLink", "nvidia-smi nvlink -s -i 5"),
    "no link at all": (WITHOUT_LINKS, "note", "NVLink", "FP8"),
    "no peer access": (replace(BOX, unreachable_pairs=((0, 1),)), "warn", "peer access", "ACS/IOMMU"),
    "bad rows": (with_gpu(2, has_remap_failed=True), "warn", "ECC", "replaced"),
    "rows wait for a reset": (with_gpu(2, is_remap_pending=True), "warn", "ECC", "--gpu-reset -i 2"),
    "memory errors": (with_gpu(2, uncorrected_ecc_errors=3), "warn", "ECC", "--gpu-reset -i 2"),
    "hot": (with_gpu(6, slowdowns=("hardware thermal slowdown",)), "warn", "clocks", "cooling"),
    "throttled": (with_gpu(6, power_limit_w=400), "warn", "clocks", "nvidia-smi -i 6 -pl 700"),
    "docker's shm": (replace(BOX, shared_memory_bytes=64 * MIB), "warn", "shm", "--shm-size=32g"),
    "kernels in RAM": (replace(BOX, kernel_cache_file_system="tmpfs"), "warn", "kernels", "volume"),
    "kernels in a container": (replace(BOX, kernel_cache_file_system="overlay"), "warn", "kernels", "volume"),
}  # fmt: skip


@pytest.mark.parametrize(("box", "verdict", "name", "advice"), FINDINGS.values(), ids=FINDINGS)
def test_each_fault_of_a_box_is_told_with_what_mends_it(box: GpuBox, verdict: str, name: str, advice: str) -> None:
    told = [check for check in gpu_checks(box, config()) if check.status is not CheckStatus.OK]
    assert [(check.status.value, check.name) for check in told] == [(verdict, name)]
    assert advice in told[0].advice
    assert "\n" not in told[0].advice


@pytest.mark.parametrize("missing", [{"cuda_home": None}, {"ninja": None}])
def test_flashinfer_is_missed_more_where_it_is_the_first_choice(missing: dict[str, None]) -> None:
    box = replace(BOX, **missing)  # type: ignore[arg-type]
    assert [check.status for check in gpu_checks(box, config("b200-x4")) if check.name == "FlashInfer"] == [
        CheckStatus.WARN
    ]
    ready_made = replace(box, has_flashinfer_kernels=True)
    assert not [check for check in gpu_checks(ready_made, config("b200-x4")) if check.name == "FlashInfer"]


def test_who_holds_memory_is_named_and_other_gpus_are_offered_where_there_are_enough() -> None:
    box = with_gpu(3, **HELD)
    (told,) = (check for check in gpu_checks(box, config()) if check.name == "GPU memory")
    assert "42.9 of 85.5 GB of GPU 3 are taken by pid 4711 (python train.py)" in told.message
    (told,) = (check for check in gpu_checks(box, config("h100-x4-fp8")) if check.name == "GPU memory")
    assert told.status is CheckStatus.WARN
    assert "CUDA_VISIBLE_DEVICES=0,1,2,4,5,6,7" in told.advice


def test_what_a_cpu_profile_does_not_need_is_not_asked_for() -> None:
    bare = replace(BOX, compiler=None, python_header=None, shared_memory_bytes=0, driver="470.1")
    assert list(gpu_checks(bare, config("cpu-demo"))) == []


def test_gpus_without_a_driver_do_not_pass_for_no_gpus() -> None:
    (told,) = gpu_checks(replace(BOX, driver=None, gpus=()), config("cpu-demo"))
    assert told.status is CheckStatus.WARN
    assert "8 NVIDIA device(s)" in told.message


def test_a_machine_without_gpus_has_nothing_to_be_told() -> None:
    box = replace(gpu_facts.this_box({}, nvml=FakeDriver(works=False)), pci_gpus=0)
    assert [list(gpu_checks(box, config(name))) for name in ("cpu-demo", "h100-x8")] == [[], []]


# ---- reading ---------------------------------------------------------------------------------------------------------


class FabricInfo(ctypes.Structure):
    """As much of NVML's structure as is read."""

    _fields_ = (("state", ctypes.c_uint),)


class FakeDriver:
    """NVML with two GPUs. Attributes that are missing here are missing in older libraries, too."""

    class NVMLError(Exception):
        """What NVML raises."""

    c_nvmlGpuFabricInfo_t = FabricInfo  # noqa: N815  # NVML's name

    def __init__(self, *, works: bool = True, fabric_state: int = 3) -> None:
        self._works = works
        self._fabric_state = fabric_state

    def nvmlInit(self) -> None:  # noqa: N802  # NVML's name
        if not self._works:
            raise self.NVMLError

    def nvmlSystemGetDriverVersion(self) -> bytes:  # noqa: N802  # NVML's name
        return b"580.95.05"

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802  # NVML's name
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802  # NVML's name
        return index

    def nvmlDeviceGetName(self, _gpu: int) -> str:  # noqa: N802  # NVML's name
        return "NVIDIA H100 80GB HBM3"

    def nvmlDeviceGetMemoryInfo(self, gpu: int, version: int | None = None) -> SimpleNamespace:  # noqa: N802  # NVML's name
        used = (gpu + 1) * MIB
        return SimpleNamespace(total=H100_BYTES, used=used, reserved=470 * MIB if version else None)

    def nvmlDeviceGetComputeRunningProcesses(self, gpu: int) -> list[SimpleNamespace]:  # noqa: N802  # NVML's name
        return [SimpleNamespace(pid=os.getpid(), usedGpuMemory=None)] * gpu

    def nvmlDeviceGetTotalEccErrors(self, gpu: int, kind: int, since: int) -> int:  # noqa: N802  # NVML's name
        assert (kind, since) == (1, 0)
        return gpu

    def nvmlDeviceGetRemappedRows(self, gpu: int) -> tuple[int, int, int, int]:  # noqa: N802  # NVML's name
        return 0, 0, gpu, 0

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, gpu: int) -> int:  # noqa: N802  # NVML's name
        return 0x41 * gpu

    def nvmlDeviceGetNvLinkState(self, _gpu: int, link: int) -> int:  # noqa: N802  # NVML's name
        if link >= 12:  # an A100's
            raise self.NVMLError
        return int(link != 0)

    def nvmlDeviceGetGpuFabricInfo(self, _gpu: int, answer: Any) -> int:  # noqa: N802  # NVML's name
        answer._obj.state = self._fabric_state
        return 0

    def nvmlDeviceGetP2PStatus(self, one: int, other: int, index: int) -> int:  # noqa: N802  # NVML's name
        assert (one, other, index) == (0, 1, 0)
        return 1


@pytest.fixture(autouse=True)
def all_gpus_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_a_box_is_read_off_the_driver() -> None:
    box = gpu_facts.this_box({}, nvml=FakeDriver())
    first, second = box.gpus
    assert (box.driver, box.unreachable_pairs) == ("580.95.05", ((0, 1),))
    assert (first.total_bytes, first.reserved_bytes, first.used_bytes) == (H100_BYTES, 470 * MIB, MIB)
    assert (first.links_up, first.links_down, first.is_fabric_pending) == (11, 1, False)
    assert not first.holders
    assert not first.slowdowns
    assert first.power_limit_w is None  # this driver does not tell
    assert [holder.pid for holder in second.holders] == [os.getpid()]
    assert (second.uncorrected_ecc_errors, second.is_remap_pending, second.has_remap_failed) == (1, True, False)
    assert second.slowdowns == ("hardware thermal slowdown",)
    assert gpu_facts.this_box({}, nvml=FakeDriver(fabric_state=2)).gpus[0].is_fabric_pending


def test_only_the_gpus_that_may_be_used_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [item.used_bytes for item in gpu_facts.this_box({}, nvml=FakeDriver()).gpus] == [2 * MIB]


def programs(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text("")
        (folder / name).chmod(0o755)
    return folder


def test_the_toolkit_is_found_where_flashinfer_looks(tmp_path: Path) -> None:
    whole, from_pip = tmp_path / "cuda", tmp_path / "site-packages" / "nvidia" / "cu13"
    programs(whole / "bin", "nvcc")
    programs(from_pip / "bin", "nvcc")
    programs(whole / "lib64", "libcudart.so")
    box = gpu_facts.this_box({"PATH": str(from_pip / "bin"), "CUDA_HOME": str(whole)}, nvml=FakeDriver())
    assert (box.cuda_home, box.has_cuda_runtime) == (whole, True)
    box = gpu_facts.this_box({"PATH": str(from_pip / "bin"), "CUDA_HOME": "", "CUDA_PATH": ""}, nvml=FakeDriver())
    assert (box.cuda_home, box.has_cuda_runtime) == (from_pip, False)
    box = gpu_facts.this_box({"CUDA_HOME": str(tmp_path)}, nvml=FakeDriver())
    assert (box.cuda_home, box.has_cuda_runtime) == (None, False)


def test_the_compilers_and_the_cache_are_looked_for_in_the_engines_environment(tmp_path: Path) -> None:
    folder = programs(tmp_path / "bin", "gcc", "my-cc")
    assert gpu_facts.this_box({"PATH": str(folder), "CC": ""}, nvml=FakeDriver()).compiler == str(folder / "gcc")
    assert gpu_facts.this_box({"PATH": str(folder), "CC": "my-cc"}, nvml=FakeDriver()).compiler == str(folder / "my-cc")
    in_memory = "/dev/shm/vllm"  # noqa: S108
    box = gpu_facts.this_box({"VLLM_CACHE_ROOT": in_memory}, nvml=FakeDriver())
    assert (box.kernel_cache, box.kernel_cache_file_system) == (Path(in_memory), "tmpfs")


# ---- a replica's PATH ------------------------------------------------------------------------------------------------


def test_a_replica_finds_the_programs_of_its_environment_first_and_once() -> None:
    scripts = sysconfig.get_path("scripts")
    assert child.search_path("/usr/bin:/bin") == f"{scripts}:/usr/bin:/bin"
    assert child.search_path(f"/bin:{scripts}:") == f"{scripts}:/bin"
    assert child.search_path("") == scripts


@pytest.fixture
def plain_path(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VLLM_ENGINE_READY_TIMEOUT_S", "VLLM_WORKER_MULTIPROC_METHOD", "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("PATH", "/usr/bin")


@pytest.mark.usefixtures("plain_path")
def test_the_processes_of_an_engine_inherit_that_path() -> None:
    vllm_environment.prepare_environment()
    assert os.environ["PATH"] == child.search_path("/usr/bin")
    box = gpu_facts.this_box({}, nvml=FakeDriver())
    assert box.ninja is not None
    assert Path(box.ninja).parent == Path(sysconfig.get_path("scripts"))
