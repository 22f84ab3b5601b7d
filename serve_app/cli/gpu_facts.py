"""Facts of a machine with NVIDIA GPUs, read from the driver (NVML) and the file system. `gpu_checks.py` judges them.

Nothing here raises: what a driver, a GPU or a container does not report is left out.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from serve_app.config import machine
from serve_app.engine import activity
from serve_app.engine.child import search_path

MEMORY_V2: Final = 0x02000028
"""NVML's version number of the answer that counts the driver's own share separately."""
NVLINKS: Final = 18
"""Most links of a GPU (Hopper and Blackwell; NVML's NVML_NVLINK_MAX_LINKS)."""
ECC_UNCORRECTED, ECC_SINCE_BOOT, P2P_READ = 1, 0, 0
FABRIC_NOT_STARTED, FABRIC_IN_PROGRESS = 1, 2
SLOWDOWNS: Final = {
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
"""Reasons of low clocks that a healthy, cooled GPU does not have (NVML's nvmlClocksEventReason...)."""
NVIDIA_VENDOR, DISPLAY_CLASS = "0x10de", "0x03"


@dataclass(frozen=True)
class MemoryHolder:
    """A process with memory on a GPU. In a container it may belong to another container, and have no name."""

    pid: int
    command: str
    used_bytes: int


@dataclass(frozen=True)
class Gpu:
    """One GPU that this process may use."""

    index: int
    name: str
    total_bytes: int
    """As `nvidia-smi` shows it."""
    reserved_bytes: int
    """The driver's own share of it."""
    used_bytes: int
    holders: tuple[MemoryHolder, ...] = ()
    uncorrected_ecc_errors: int = 0
    is_remap_pending: bool = False
    has_remap_failed: bool = False
    slowdowns: tuple[str, ...] = ()
    power_limit_w: float | None = None
    default_power_limit_w: float | None = None
    links_up: int = 0
    links_down: int = 0
    is_fabric_pending: bool = False
    """It is connected to an NVSwitch whose fabric manager has not set it up."""


@dataclass(frozen=True)
class GpuBox:
    """A machine, as a GPU engine sees it."""

    driver: str | None
    """Version; None where no driver answers."""
    pci_gpus: int
    """NVIDIA devices on the PCI bus, with or without a driver."""
    gpus: tuple[Gpu, ...]
    unreachable_pairs: tuple[tuple[int, int], ...]
    """GPUs that cannot read each other's memory."""
    compiler: str | None
    cxx_compiler: str | None
    python_header: Path | None
    """`Python.h`, where it is."""
    cuda_home: Path | None
    """The CUDA toolkit that FlashInfer would use, by its own rule."""
    has_cuda_runtime: bool
    """Whether that toolkit has the library that FlashInfer links; the toolkit from pip does not."""
    ninja: str | None
    has_flashinfer_kernels: bool
    """Whether FlashInfer's kernels are installed ready-made."""
    shared_memory_bytes: int | None
    """Size of /dev/shm."""
    kernel_cache: Path
    """Where vLLM keeps what it compiles."""
    kernel_cache_file_system: str
    """Its type, as the mount table names it: `ext4`, `tmpfs`, `overlay` ..."""


def this_box(env: Mapping[str, str], kernel_cache: str | None = None, nvml: Any | None = None) -> GpuBox:
    """Read this machine. `env` is laid over the environment: what the configuration gives the engine. `kernel_cache` is
    its `engine.compile_cache_dir`; None: vLLM's own folder.

    `nvml` is the NVML module: nvidia-ml-py's unless given.
    """
    seen = {**os.environ, **env}
    path = search_path(seen.get("PATH", ""))
    driver, gpus, pairs = _read_nvml(nvml or activity.nvml_library())
    header = Path(sysconfig.get_path("include")) / "Python.h"
    shared = Path("/dev/shm")  # noqa: S108  # shared memory, not a temporary file
    vllms_own = Path(seen.get("XDG_CACHE_HOME") or "~/.cache") / "vllm"
    kernels = Path(seen.get("VLLM_CACHE_ROOT") or kernel_cache or vllms_own).expanduser()
    toolkit = _cuda_home(seen, path)
    return GpuBox(
        driver=driver,
        pci_gpus=_pci_gpus(),
        gpus=gpus,
        unreachable_pairs=pairs,
        compiler=shutil.which(seen.get("CC") or "gcc", path=path) or shutil.which("clang", path=path),
        cxx_compiler=shutil.which(seen.get("CXX") or "c++", path=path),
        python_header=header if header.is_file() else None,
        cuda_home=toolkit,
        has_cuda_runtime=toolkit is not None and (toolkit / "lib64" / "libcudart.so").exists(),
        ninja=shutil.which("ninja", path=path),
        has_flashinfer_kernels=machine.version_of(["flashinfer-cubin"]) is not None,
        shared_memory_bytes=int(psutil.disk_usage(str(shared)).total) if shared.is_dir() else None,
        kernel_cache=kernels,
        kernel_cache_file_system=file_system_of(kernels),
    )


def file_system_of(path: Path) -> str:
    """The type of the file system that the path is on, or would be."""
    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    resolved = path.resolve()
    return next((mounts[folder] for folder in (resolved, *resolved.parents) if folder in mounts), "unknown")


def _cuda_home(env: Mapping[str, str], path: str) -> Path | None:
    """The toolkit by the rule of vLLM's `utils/flashinfer.py` and of FlashInfer; None where there is no nvcc."""
    nvcc = shutil.which("nvcc", path=path)
    found = env.get("CUDA_HOME") or env.get("CUDA_PATH") or (str(Path(nvcc).parents[1]) if nvcc else "/usr/local/cuda")
    return Path(found) if shutil.which("nvcc", path=str(Path(found) / "bin")) else None


def _pci_gpus() -> int:
    count = 0
    for device in Path("/sys/bus/pci/devices").glob("*"):
        try:
            vendor, kind = (device / "vendor").read_text().strip(), (device / "class").read_text().strip()
        except OSError:
            continue
        count += vendor == NVIDIA_VENDOR and kind.startswith(DISPLAY_CLASS)
    return count


def _read_nvml(nvml: Any | None) -> tuple[str | None, tuple[Gpu, ...], tuple[tuple[int, int], ...]]:
    if nvml is None:
        return None, (), ()
    try:
        nvml.nvmlInit()
        driver = activity.nvml_text(nvml.nvmlSystemGetDriverVersion())
        handles = activity.visible_gpus(nvml)
        gpus = tuple(_gpu(nvml, index, handle) for index, handle in enumerate(handles))
    except nvml.NVMLError:
        return None, (), ()
    pairs = itertools.combinations(range(len(handles)), 2)
    apart = [
        (one, two)
        for one, two in pairs
        if _ask(nvml, 0, "nvmlDeviceGetP2PStatus", handles[one], handles[two], P2P_READ)
    ]
    return driver, gpus, tuple(apart)


def _gpu(nvml: Any, index: int, handle: Any) -> Gpu:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    whole = _ask(nvml, None, "nvmlDeviceGetMemoryInfo", handle, MEMORY_V2)
    remapped = _ask(nvml, (0, 0, 0, 0), "nvmlDeviceGetRemappedRows", handle)
    reasons = _ask(nvml, 0, "nvmlDeviceGetCurrentClocksThrottleReasons", handle)
    links = [_ask(nvml, None, "nvmlDeviceGetNvLinkState", handle, link) for link in range(NVLINKS)]
    return Gpu(
        index=index,
        name=activity.nvml_text(nvml.nvmlDeviceGetName(handle)),
        total_bytes=int(memory.total),
        reserved_bytes=int(whole.reserved) if whole is not None else 0,
        used_bytes=int(whole.used if whole is not None else memory.used),
        holders=_holders(nvml, handle),
        uncorrected_ecc_errors=_ask(nvml, 0, "nvmlDeviceGetTotalEccErrors", handle, ECC_UNCORRECTED, ECC_SINCE_BOOT),
        is_remap_pending=bool(remapped[2]),
        has_remap_failed=bool(remapped[3]),
        slowdowns=tuple(words for bit, words in SLOWDOWNS.items() if reasons & bit),
        power_limit_w=_watts(_ask(nvml, None, "nvmlDeviceGetEnforcedPowerLimit", handle)),
        default_power_limit_w=_watts(_ask(nvml, None, "nvmlDeviceGetPowerManagementDefaultLimit", handle)),
        links_up=links.count(1),
        links_down=links.count(0),
        is_fabric_pending=_fabric_state(nvml, handle) in {FABRIC_NOT_STARTED, FABRIC_IN_PROGRESS},
    )


def _holders(nvml: Any, handle: Any) -> tuple[MemoryHolder, ...]:
    running = _ask(nvml, [], "nvmlDeviceGetComputeRunningProcesses", handle)
    holders = [MemoryHolder(item.pid, machine.command_of(item.pid), int(item.usedGpuMemory or 0)) for item in running]
    return tuple(sorted(holders, key=lambda holder: -holder.used_bytes))


def _fabric_state(nvml: Any, handle: Any) -> int:
    answer = _ask(nvml, None, "c_nvmlGpuFabricInfo_t")
    if answer is None or _ask(nvml, None, "nvmlDeviceGetGpuFabricInfo", handle, ctypes.byref(answer)) is None:
        return 0
    return int(answer.state)


def _watts(milliwatts: int | None) -> float | None:
    return milliwatts / 1000 if milliwatts is not None else None


def _ask(nvml: Any, otherwise: Any, name: str, *arguments: Any) -> Any:
    """NVML's answer; `otherwise` where this GPU, driver or version of the library does not support the call."""
    try:
        return getattr(nvml, name)(*arguments)
    except (nvml.NVMLError, AttributeError):
        return otherwise
