"""Checks of a machine with GPUs before anything heavy starts: pure, from the facts of `gpu_facts.py` to checks.

Without a GPU, and for a CPU profile, there is almost nothing to check.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from serve_app.cli.check import Check, CheckStatus, failed, passed
from serve_app.cli.gpu_facts import Gpu, GpuBox
from serve_app.config.memory import GB
from serve_app.config.schema import AppConfig, flag

OLDEST_DRIVER = 580
"""vLLM 0.33's wheel is built for CUDA 13, whose runtime needs this driver."""

BLACKWELL = frozenset({"B200", "GB200", "B300", "GB300"})
"""GPUs for which vLLM prefers FlashInfer's attention and expert kernels."""

SHARED_BYTES_PER_GPU = 512 * 1024**2
"""Shared memory per GPU: vLLM gives each worker a queue of ten messages of 16 MiB in /dev/shm; NCCL and Ray's objects
need space there, too."""

TEMPORARY_FILE_SYSTEMS = frozenset({"tmpfs", "ramfs", "overlay", "overlayfs", "aufs"})
"""File systems whose data is lost with the machine or the container."""

CUDA_TOOLKIT = "`apt-get install cuda-toolkit-13-0` from NVIDIA's repository"


def gpu_checks(box: GpuBox, config: AppConfig) -> Iterator[Check]:
    """Problems that stop or slow down an engine of this configuration on this machine's GPUs."""
    if box.driver is None:
        yield from _without_driver(box)
        return
    if config.engine.kind != "vllm" or not config.replicas.gpus_per_replica or not box.gpus:
        return
    found = [
        *_driver(box.driver),
        *_compilers(box),
        *_flashinfer(box, config),
        *_memory(box.gpus, config),
        *_connections(box, config),
        *(check for gpu in box.gpus for check in _health(gpu)),
        *_shared_memory(box),
        *_kernel_cache(box),
    ]
    yield from found
    if not any(check.status in {CheckStatus.WARN, CheckStatus.FAIL} for check in found):
        names = " and ".join(sorted({gpu.name for gpu in box.gpus}))
        links = f", {box.gpus[0].links_up} NVLinks each" if box.gpus[0].links_up else ""
        yield passed("gpus", f"{len(box.gpus)}x {names}{links}, driver {box.driver}, idle and healthy")


def _without_driver(box: GpuBox) -> Iterator[Check]:
    if box.pci_gpus:
        message = f"{box.pci_gpus} NVIDIA device(s) on the PCI bus, but no driver answers: they are not used"
        advice = f"`apt-get install nvidia-driver-{OLDEST_DRIVER}-server-open` and reboot; in a container: `--gpus all`"
        yield Check(CheckStatus.WARN, "driver", message, advice)


def _driver(version: str) -> Iterator[Check]:
    major = version.partition(".")[0]
    if major.isdigit() and int(major) < OLDEST_DRIVER:
        message = f"{version} is too old: vLLM is built for CUDA 13, which needs {OLDEST_DRIVER} or later"
        yield failed("driver", message, f"`apt-get install nvidia-driver-{OLDEST_DRIVER}-server-open` and reboot")


def _compilers(box: GpuBox) -> Iterator[Check]:
    if box.compiler is None:
        message = "no C compiler: Triton builds its launchers with one when a kernel first runs"
        yield failed("gcc", message, "`apt-get install build-essential`, or set CC in engine.env")
    if box.python_header is None:
        package = f"python{sys.version_info.major}.{sys.version_info.minor}-dev"
        yield failed(
            "Python.h", "Python's headers are not there: Triton's launchers need them", f"`apt-get install {package}`"
        )


def _flashinfer(box: GpuBox, config: AppConfig) -> Iterator[Check]:
    """FlashInfer's kernels are installed, or what builds them, by vLLM's own rule (`utils/flashinfer.py`)."""
    if box.has_flashinfer_kernels:
        return
    is_first_choice = config.replicas.accelerator_type in BLACKWELL
    verdict = CheckStatus.WARN if is_first_choice else CheckStatus.NOTE
    cost = (
        "its first choice for attention and experts on this GPU" if is_first_choice else "which it can do without here"
    )
    ready_made = "or ready-made kernels: `.venv/bin/vllm download-kernels`"
    missing = [name for name, there in (("nvcc", box.cuda_home), ("ninja", box.ninja)) if there is None]
    if missing:
        message = f"no {' and no '.join(missing)} on a replica's PATH: vLLM leaves FlashInfer out, {cost}"
        advice = f"{CUDA_TOOLKIT}, {ready_made}" if "nvcc" in missing else "`make venv` installs ninja"
        yield Check(verdict, "FlashInfer", message, advice)
    elif box.cxx_compiler is None:
        message = "no C++ compiler: FlashInfer cannot build its kernels"
        yield Check(CheckStatus.WARN, "FlashInfer", message, f"`apt-get install build-essential`, {ready_made}")
    elif not box.has_cuda_runtime:
        message = f"{box.cuda_home} has nvcc but no lib64/libcudart.so: FlashInfer cannot link its kernels"
        advice = f"{CUDA_TOOLKIT} and CUDA_HOME=/usr/local/cuda in engine.env, {ready_made}"
        yield Check(CheckStatus.WARN, "FlashInfer", message, advice)


def _memory(gpus: Sequence[Gpu], config: AppConfig) -> Iterator[Check]:
    """Enough GPU memory is free: vLLM refuses to start with less than the share that it may use."""
    utilization = flag(config.engine.flags, "gpu-memory-utilization", 0.9)
    share = utilization if isinstance(utilization, float) else 0.9
    taken = [gpu for gpu in gpus if gpu.used_bytes > (1 - share) * (gpu.total_bytes - gpu.reserved_bytes)]
    if not taken:
        return
    free = [str(gpu.index) for gpu in gpus if gpu not in taken]
    for gpu in taken:
        size = f"{gpu.used_bytes / GB:.1f} of {gpu.total_bytes / GB:.1f} GB"
        holders = ", ".join(f"pid {item.pid} ({item.command})" for item in gpu.holders) or "a process not visible here"
        message = f"{size} of GPU {gpu.index} are taken by {holders}; an engine wants {share:.0%} of it"
        enough = len(free) >= config.replicas.needed * config.replicas.gpus_per_replica
        yield Check(
            CheckStatus.WARN if enough else CheckStatus.FAIL,
            "GPU memory",
            message,
            f"stop it, or start with CUDA_VISIBLE_DEVICES={','.join(free)}" if enough else "stop it (`nvidia-smi`)",
        )


def _connections(box: GpuBox, config: AppConfig) -> Iterator[Check]:
    pending = [str(gpu.index) for gpu in box.gpus if gpu.is_fabric_pending]
    if pending:
        message = f"the NVSwitch fabric of GPU {', '.join(pending)} is not set up: CUDA does not start on them"
        advice = (
            "install nvidia-fabricmanager of the driver's own version; `systemctl enable --now nvidia-fabricmanager`"
        )
        yield failed("NVSwitch", message, advice)
    if config.replicas.gpus_per_replica == 1:
        return
    for gpu in box.gpus:
        if gpu.links_up and gpu.links_down:
            message = f"{gpu.links_down} of {gpu.links_up + gpu.links_down} NVLinks of GPU {gpu.index} are down"
            yield Check(
                CheckStatus.WARN, "NVLink", message, f"`nvidia-smi nvlink -s -i {gpu.index}`; reset the GPU or reboot"
            )
    if not any(gpu.links_up for gpu in box.gpus):
        message = "the GPUs have no NVLink: collectives go over PCIe, several times slower than published"
        yield Check(CheckStatus.NOTE, "NVLink", message, "fewer GPUs per replica (FP8) talk less")
    if box.unreachable_pairs:
        pairs = ", ".join(f"{one}-{two}" for one, two in box.unreachable_pairs[:4])
        more = ", ..." if len(box.unreachable_pairs) > 4 else ""
        message = f"GPUs {pairs}{more} cannot read each other's memory: collectives go through the host's"
        yield Check(
            CheckStatus.WARN,
            "peer access",
            message,
            "switch ACS/IOMMU off in the BIOS, or pass the GPUs to the VM together",
        )


def _health(gpu: Gpu) -> Iterator[Check]:
    reset = f"`nvidia-smi --gpu-reset -i {gpu.index}`, or reboot"
    if gpu.has_remap_failed:
        message = f"GPU {gpu.index} has bad memory rows that could not be replaced"
        yield Check(CheckStatus.WARN, "ECC", message, "have it replaced; leave it out by CUDA_VISIBLE_DEVICES")
    elif gpu.is_remap_pending:
        yield Check(CheckStatus.WARN, "ECC", f"GPU {gpu.index} waits for a reset to replace bad memory rows", reset)
    elif gpu.uncorrected_ecc_errors:
        message = (
            f"GPU {gpu.index} had {gpu.uncorrected_ecc_errors} uncorrected memory error(s) since the driver was loaded"
        )
        yield Check(CheckStatus.WARN, "ECC", message, reset)
    if gpu.slowdowns:
        message = f"GPU {gpu.index} runs below its clocks: {', '.join(gpu.slowdowns)}"
        yield Check(
            CheckStatus.WARN,
            "clocks",
            message,
            f"look at cooling and power; `nvidia-smi -q -d PERFORMANCE -i {gpu.index}`",
        )
    limit, default = gpu.power_limit_w, gpu.default_power_limit_w
    if limit is not None and default is not None and limit < default - 1:
        message = f"GPU {gpu.index} may use {limit:.0f} W of its {default:.0f} W"
        yield Check(CheckStatus.WARN, "clocks", message, f"`nvidia-smi -i {gpu.index} -pl {default:.0f}`")


def _shared_memory(box: GpuBox) -> Iterator[Check]:
    there, wanted = box.shared_memory_bytes, len(box.gpus) * SHARED_BYTES_PER_GPU
    if there is not None and there < wanted:
        wants = f"the workers of {len(box.gpus)} GPUs want {wanted / GB:.1f} GB"
        message = f"shared memory (/dev/shm) holds {there / GB:.2f} GB; {wants}"
        yield Check(CheckStatus.WARN, "shm", message, "in a container: `--ipc=host`, or `--shm-size=32g`")


def _kernel_cache(box: GpuBox) -> Iterator[Check]:
    if box.kernel_cache_file_system in TEMPORARY_FILE_SYSTEMS:
        message = f"{box.kernel_cache} is on {box.kernel_cache_file_system}: compiled kernels are lost with it"
        yield Check(CheckStatus.WARN, "kernels", message, "mount a volume there: the next start then compiles nothing")
