"""Which device vLLM's code is for in a process: the GPU in an engine's, none in one that only parses and renders.

vLLM looks for a device as soon as its argument parser is imported, and the CUDA build fails where there is no driver
(`Failed to infer device type`). But an ingress, `build()` and the checks of a start run on any node, and run no model.
vLLM's own word for such a process is `VLLM_TARGET_DEVICE=cpu`: it then asks no driver, on a node with GPUs either. An
engine must never see that word: it would come up without its GPUs.
"""

from __future__ import annotations

import os
from typing import Final

VARIABLE: Final = "VLLM_TARGET_DEVICE"

FRONT_END_ENV: Final = {VARIABLE: "cpu", "CUDA_VISIBLE_DEVICES": ""}
"""Environment of an ingress replica. Ray leaves all of a node's GPUs visible to an actor that asked for none: one stray
call of a CUDA library would then take half a gigabyte of a GPU that an engine has planned with."""

ENGINE_ENV: Final = {VARIABLE: "cuda"}
"""Environment of an engine replica, and of the Ray actors that its workers are in a gang: vLLM's default, said aloud
since Ray's workers inherit whatever `ray start` was given. A CPU build of vLLM knows by itself what it is for."""


def use_no_device() -> None:
    """This process parses, renders and serves, and runs no model. To be called before vLLM is imported."""
    os.environ[VARIABLE] = FRONT_END_ENV[VARIABLE]


def use_the_gpu() -> None:
    """This process starts an engine: nothing of a front end's environment may reach it, or the processes below it.

    To be called before vLLM is imported.
    """
    os.environ.pop(VARIABLE, None)


def version() -> str:
    """vLLM's version in this environment, `0.32.0+cpu` for a CPU build, whatever its distribution is called."""
    from vllm import __version__
    from vllm.platforms import vllm_version_matches_substr

    plain: str = __version__.split("+")[0]
    return f"{plain}+cpu" if vllm_version_matches_substr("cpu") else __version__


def is_front_end_of_gpus() -> bool:
    """Whether vLLM's CPU platform stands in here for a GPU's, which runs in other processes."""
    from vllm.platforms import current_platform, vllm_version_matches_substr

    return bool(current_platform.is_cpu()) and not vllm_version_matches_substr("cpu")
