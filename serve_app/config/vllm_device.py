"""Selects the device of vLLM's code in a process: the GPU in an engine, none in a process that only parses and renders.

vLLM looks for a device as soon as its argument parser is imported, and the CUDA build fails where there is no driver
(`Failed to infer device type`). But an ingress, `build()` and the checks of a start run on any node, and run no model.
vLLM's setting for such a process is `VLLM_TARGET_DEVICE=cpu`: it then asks no driver, on a node with GPUs either. An
engine must never see that value: it would start without its GPUs.
"""

from __future__ import annotations

import os
from typing import Final

VARIABLE: Final = "VLLM_TARGET_DEVICE"

FRONT_END_ENV: Final = {VARIABLE: "cpu", "CUDA_VISIBLE_DEVICES": ""}
"""Environment of an ingress replica. Ray leaves all of a node's GPUs visible to an actor without GPUs: one stray call
of a CUDA library would take half a gigabyte of a GPU that an engine has planned with."""

ENGINE_ENV: Final = {VARIABLE: "cuda"}
"""Environment of an engine replica, and of its workers as Ray actors: vLLM's default, set explicitly because Ray's
workers inherit the environment of `ray start`. A CPU build of vLLM ignores it."""


def use_no_device() -> None:
    """Set up a process that parses, renders and serves, and runs no model. Call it before vLLM is imported."""
    os.environ[VARIABLE] = FRONT_END_ENV[VARIABLE]


def use_the_gpu() -> None:
    """Set up a process that starts an engine: the environment of a front end must not reach it, or its child processes.

    Call it before vLLM is imported.
    """
    os.environ.pop(VARIABLE, None)


def version() -> str:
    """vLLM's version in this environment, `0.32.0+cpu` for a CPU build, whatever its distribution is called."""
    from vllm import __version__
    from vllm.platforms import vllm_version_matches_substr

    plain: str = __version__.split("+")[0]
    return f"{plain}+cpu" if vllm_version_matches_substr("cpu") else __version__


def is_front_end_of_gpus() -> bool:
    """Whether vLLM's CPU platform stands in for a GPU platform, which runs in other processes."""
    from vllm.platforms import current_platform, vllm_version_matches_substr

    return bool(current_platform.is_cpu()) and not vllm_version_matches_substr("cpu")
