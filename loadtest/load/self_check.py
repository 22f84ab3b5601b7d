"""Self-check of one worker: its CPU use and event-loop lag show whether the client is the bottleneck."""

from __future__ import annotations

import asyncio
import gc
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter_ns

import numpy as np

TICK_S = 0.025
"""Interval of the lag measurements. uvloop's timers round to 1 ms, so lag below that is not seen."""
BUSY_RATIO = 0.7
"""Above this share of a core, a worker adds delays of its own."""
LAG_WARN_MS = 10.0


@dataclass(frozen=True)
class SelfCheck:
    """CPU and event-loop lag of one worker over a run."""

    cpu_s: float
    wall_s: float
    loop_lag_p50_ms: float
    loop_lag_p99_ms: float
    loop_lag_max_ms: float

    @property
    def cpu_ratio(self) -> float:
        """CPU time as a share of one core."""
        return self.cpu_s / self.wall_s if self.wall_s > 0 else 0.0

    @property
    def healthy(self) -> bool:
        """Whether the worker was not the bottleneck."""
        return self.cpu_ratio < BUSY_RATIO and self.loop_lag_p99_ms < LAG_WARN_MS


def cpu_s() -> float:
    """User and system CPU time of this process, all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class LoopLagMonitor:
    """Measures how late the event loop calls timers."""

    def __init__(self) -> None:
        self._lags_ns: list[int] = []
        self._due_ns = 0
        self._handle: asyncio.TimerHandle | None = None
        self._begin_ns = 0
        self._begin_cpu_s = 0.0

    def start(self) -> None:
        """Start measuring the running loop."""
        self._begin_ns, self._begin_cpu_s = perf_counter_ns(), cpu_s()
        self._arm()

    def _arm(self) -> None:
        self._due_ns = perf_counter_ns() + int(TICK_S * 1e9)
        self._handle = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        self._lags_ns.append(max(0, perf_counter_ns() - self._due_ns))
        self._arm()

    def stop(self) -> SelfCheck:
        """Stop measuring and return the figures."""
        if self._handle is not None:
            self._handle.cancel()
        lags = np.asarray(self._lags_ns or [0], dtype=np.float64) / 1e6
        p50, p99 = np.percentile(lags, [50, 99])
        return SelfCheck(
            cpu_s=cpu_s() - self._begin_cpu_s,
            wall_s=(perf_counter_ns() - self._begin_ns) / 1e9,
            loop_lag_p50_ms=float(p50),
            loop_lag_p99_ms=float(p99),
            loop_lag_max_ms=float(lags.max()),
        )


@contextmanager
def gc_paused() -> Iterator[None]:
    """Disable the garbage collector: a collection would delay timestamps. Records have no cycles to collect."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
