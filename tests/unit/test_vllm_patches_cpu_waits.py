"""Where vLLM's processes would spin while they wait for each other, they sleep on a CPU."""

from __future__ import annotations

import time
from types import ModuleType, SimpleNamespace

from serve_app.vllm_patches.cpu import PAUSE_S, sleep_between_reads


def test_a_reader_sleeps_while_vllm_would_yield_and_then_waits_as_vllm_does() -> None:
    waited: list[int | None] = []
    wait = sleep_between_reads(lambda _, timeout_ms: waited.append(timeout_ms), ModuleType("shm_broadcast"))
    recent = SimpleNamespace(last_read=time.monotonic(), busy_loop_s=3600)
    began_s = time.monotonic()
    wait(recent, 250)
    assert time.monotonic() - began_s >= PAUSE_S
    assert waited == [], "the queue is looked at again"
    wait(SimpleNamespace(last_read=time.monotonic() - 2, busy_loop_s=1), timeout_ms=250)
    assert waited == [250], "an idle reader waits for vLLM's notification"
