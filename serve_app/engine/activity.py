"""Reads what the processes of an engine do: CPU time from the process table, utilization from NVML.

The watchdog (`watchdog.py`) calls it only when a step is overdue, so a reading may take milliseconds.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import psutil

from serve_app.engine.watchdog import EngineActivity

COMPILERS: Final = frozenset(
    "as c++ cc cc1 cc1plus cicc clang clang++ collect2 cudafe++ fatbinary g++ gcc ld ld.lld lld ninja nvcc nvlink "
    "ptxas".split()
)
"""Programs that Triton, Inductor, FlashInfer and DeepGEMM run to build a kernel."""

COMPILE_WORKER: Final = "compile_worker"
"""In the command line of TorchInductor's own compile processes, which are Python's."""

GpuReader = Callable[[], float | None]


def read(roots: Sequence[psutil.Process], gpu: GpuReader) -> EngineActivity:
    """The activity of the processes `roots` and everything below them. Processes that end meanwhile are left out."""
    cpu_s: dict[int, float] = {}
    compiler_cpu_s: dict[int, float] = {}
    for root in roots:
        with contextlib.suppress(psutil.Error):
            for process in (root, *root.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    if _compiles(process):
                        compiler_cpu_s[process.pid] = sum(process.cpu_times()[:4])
                    else:
                        cpu_s.update(_by_thread(process))
    return EngineActivity(cpu_s, compiler_cpu_s, gpu())


def compilers(roots: Sequence[psutil.Process]) -> dict[int, float]:
    """CPU seconds of the compilers below `roots`, by process id."""
    cpu_s: dict[int, float] = {}
    for root in roots:
        with contextlib.suppress(psutil.Error):
            for process in root.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if _compiles(process):
                        cpu_s[process.pid] = sum(process.cpu_times()[:4])
    return cpu_s


def cpu_wait(pids: Iterable[int]) -> dict[int, float]:
    """How many seconds the main thread of each process has been ready to run without a CPU, by process id; those that
    are gone are left out, and all where the kernel does not count it."""
    waited_s: dict[int, float] = {}
    for pid in pids:
        with contextlib.suppress(OSError, ValueError, IndexError):
            waited_s[pid] = int(Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[1]) / 1e9
    return waited_s


def _by_thread(process: psutil.Process) -> dict[int, float]:
    """CPU seconds by thread id. The main thread's, whose id is the process', has those of ended children as well:
    compilers live for a second, and are found in their parent's account only."""
    by_thread = {thread.id: thread.user_time + thread.system_time for thread in process.threads()}
    times = process.cpu_times()
    by_thread[process.pid] = by_thread.get(process.pid, 0.0) + times.children_user + times.children_system
    return by_thread


def _compiles(process: psutil.Process) -> bool:
    name = process.name()
    is_python = name.startswith(("python", "pt_main"))  # torch renames its processes
    return name in COMPILERS or (is_python and any(COMPILE_WORKER in part for part in process.cmdline()))


def gpu_reader(nvml: Any | None = None) -> GpuReader:
    """What reads the utilization of the busiest GPU that this process may use; a reader of None where there is none.

    `nvml` is the NVML module: vLLM's own copy unless given.
    """
    if nvml is None:
        try:
            from vllm.utils.import_utils import import_pynvml

            nvml = import_pynvml()
        except ImportError:
            return lambda: None
    return _reader(
        nvml, lambda gpus: max((nvml.nvmlDeviceGetUtilizationRates(one).gpu / 100 for one in gpus), default=None)
    )


def energy_reader(nvml: Any | None = None) -> GpuReader:
    """What reads the energy that the GPUs of this process have used so far, in joules; a reader of None where there is
    none, or where they do not say (before Volta, or a part of a GPU)."""
    nvml = nvml or nvml_library()
    if nvml is None:
        return lambda: None
    return _reader(nvml, lambda gpus: sum(map(nvml.nvmlDeviceGetTotalEnergyConsumption, gpus)) / 1000 or None)


def _reader(nvml: Any, read: Callable[[list[Any]], float | None]) -> GpuReader:
    """What reads something of the GPUs of this process; None where NVML refuses."""
    try:
        nvml.nvmlInit()
        gpus = visible_gpus(nvml)
    except nvml.NVMLError:
        return lambda: None

    def reading() -> float | None:
        try:
            return read(gpus)
        except nvml.NVMLError:
            return None

    return reading


def nvml_library() -> Any | None:
    """The installed NVML module; None where there is none. Unlike vLLM's copy it can be had without importing vLLM."""
    try:
        return importlib.import_module("pynvml")  # nvidia-ml-py: FlashInfer, which vLLM's CUDA build needs, brings it
    except ImportError:
        return None


def nvml_text(value: str | bytes) -> str:
    """What NVML says, as text: older modules give bytes."""
    return value.decode() if isinstance(value, bytes) else value


def visible_gpus(nvml: Any) -> list[Any]:
    """NVML's handles of the GPUs that this process may use: `CUDA_VISIBLE_DEVICES` has indices or UUIDs."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    return [_handle(nvml, name.strip()) for name in named.split(",") if name.strip()]


def _handle(nvml: Any, name: str) -> Any:
    return nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else nvml.nvmlDeviceGetHandleByUUID(name)
