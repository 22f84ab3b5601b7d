"""A worker and a scheduler for vLLM that hang in a step on request. They run in the engine's processes.

The file that the environment names (`FAULT_FILE`) requests a fault: `PLACE FAULT`, as in `worker-0 blocks`. Places are
`core` and `worker-N` (by rank). Without the file they behave as vLLM's.
"""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path
from typing import Any

from vllm.platforms import current_platform
from vllm.v1.core.sched.async_scheduler import AsyncScheduler

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as Worker
else:
    from vllm.v1.worker.gpu_worker import Worker

FAULT_FILE = "STEP_BENCH_FAULT_FILE"
DEADLOCK = "deadlock"
"""A fault of the core and worker 0 together, without a place before it."""


class FaultyWorker(Worker):  # type: ignore[misc]  # vLLM is untyped here
    """Hangs before it runs the model."""

    def execute_model(self, scheduler_output: Any) -> Any:
        """See vLLM's worker."""
        _hang_if_requested(f"worker-{self.rank}")
        return super().execute_model(scheduler_output)


class FaultyScheduler(AsyncScheduler):  # type: ignore[misc]  # vLLM is untyped here
    """Hangs before it schedules a step."""

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """See vLLM's scheduler."""
        _hang_if_requested("core")
        return super().schedule(*args, **kwargs)


def _hang_if_requested(place: str) -> None:
    file = Path(os.environ[FAULT_FILE])
    if not file.exists():
        return
    fault = file.read_text()
    if fault == DEADLOCK:
        _deadlock(file, place)
    elif fault == f"{place} blocks":
        threading.Event().wait()
    elif fault == f"{place} spins":
        while True:
            pass
    elif fault == f"{place} polls":
        while True:
            threading.Event().wait(0.001)


def _deadlock(file: Path, place: str) -> None:
    """The core locks its file and goes on. The worker locks its own and waits for the core's; then the core waits."""
    of_core, of_worker = file.with_suffix(".core"), file.with_suffix(".worker")
    if place == "core":
        _lock(of_worker if of_core.exists() else of_core)
    elif place == "worker-0" and of_core.exists():
        _lock(of_worker)
        _lock(of_core)


def _lock(file: Path) -> None:
    """Lock a file for as long as this process lives."""
    fcntl.flock(os.open(file, os.O_CREAT | os.O_RDWR), fcntl.LOCK_EX)
