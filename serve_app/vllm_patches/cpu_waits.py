"""Lets an engine's processes sleep while they wait for each other, on a CPU.

For a second after the last message vLLM's processes spin on the queue between them, with `sched_yield`, so that a
message is read within a microsecond. On a GPU a core of its own pays for that. On a CPU the spinning takes one of the
cores that compute the step. And Linux 6.18 counts a yield as time used: among few cores whoever does not yield may then
wait for seconds, which stopped every stream, and a `sleep` beside them, for up to ten
(docs/decisions/0017-waiting-without-spinning.md).
"""

from __future__ import annotations

import time
from types import ModuleType
from typing import Any, Final

from serve_app.vllm_patches.patching import Function, Target

WAIT: Final = Target("vllm.distributed.device_communicators.shm_broadcast", "SpinCondition", "wait", ("timeout_ms",))

PAUSE_S: Final = 0.0005
"""Twice in a step of 30 ms or more. vLLM's own notifications are no substitute: its writer drops one that follows
another closely, and the reader then waits for its timeout of 5 s (seen with `busy_loop_s=0`)."""


def sleep_between_looks(original: Function, _: ModuleType) -> Function:
    """Where `wait` would yield, it sleeps for a moment."""

    def wait(self: Any, timeout_ms: int | None = None) -> None:
        if time.monotonic() <= self.last_read + self.busy_loop_s:
            time.sleep(PAUSE_S)
        else:
            original(self, timeout_ms)

    return wait
