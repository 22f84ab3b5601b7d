"""The environment of a process that starts a vLLM engine: how long vLLM waits, and what it finds on `PATH`."""

from __future__ import annotations

import math
import os

from serve_app.config import vllm_device
from serve_app.config.schema import READY_VARIABLE
from serve_app.engine.child import find_own_programs

START_TIMEOUT_S = 3600.0
"""For engines without a configuration (`engine.start_timeout_s`). vLLM gives them 600 s by default; 400 GB of weights
from a network disk take longer."""

STEP_TIMEOUT_S = 3600
"""vLLM ends an engine whose step takes 300 s by default. A compiler may take longer (`engine.compile_limit_s`): our
watchdog, which sees the compiler work, decides."""


def prepare_environment(start_timeout_s: float = START_TIMEOUT_S) -> None:
    """Set what vLLM reads when it is imported or starts processes, unless the operator has set it.

    The time to start is set in any case: it has a key of its own, and the replica ends a start by it.
    """
    vllm_device.use_the_gpu()
    os.environ[READY_VARIABLE] = str(math.ceil(start_timeout_s))
    os.environ.setdefault("VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS", str(STEP_TIMEOUT_S))
    # Forking a process that runs threads and an event loop copies their locks as they are.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    # Without `ninja` on PATH vLLM does without FlashInfer, which B200 wants for attention and experts.
    find_own_programs()
