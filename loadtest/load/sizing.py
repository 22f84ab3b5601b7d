"""How many client processes a load needs, and why: pure arithmetic, told in the report."""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import dataclass

from loadtest.load.schedule import LoadSchedule

STREAMS_EACH = 500
"""Streams that one process follows. The self-test shows what it adds at 512; docs/load-testing.md has the figures."""
STARTS_EACH_PER_S = 250
"""Requests that one process starts in a second: encoding and sending 32 KB takes about a millisecond of its loop."""


@dataclass(frozen=True)
class WorkerCount:
    """The client's processes."""

    count: int
    why: str


def choose_worker_count(asked: int | None, load: LoadSchedule, cores: int) -> WorkerCount:
    """The number asked for, else what the load needs, at most one a core."""
    if asked is not None:
        return WorkerCount(asked, f"{_processes(asked)}, as --workers says")
    needs = []
    if load.max_inflight:
        needs.append(
            (
                load.max_inflight / STREAMS_EACH,
                f"{load.max_inflight} stream{'' if load.max_inflight == 1 else 's'} at {STREAMS_EACH} a process",
            )
        )
    if load.times_s:
        rate = max(Counter(int(moment) for moment in load.times_s).values())
        needs.append((rate / STARTS_EACH_PER_S, f"{rate} starts in a second at {STARTS_EACH_PER_S} a process"))
    need, why = max(needs, default=(1.0, "a load of unknown size"))
    count = max(1, math.ceil(need))
    if count > cores:
        return WorkerCount(cores, f"{_processes(cores)}, one a core: too few for {why}")
    return WorkerCount(count, f"{_processes(count)}: {why}")


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"
