"""How busy and how late this process' event loop is: what one ingress costs, for its metrics and for autoscaling.

A callback runs four times a second on the loop. How late it comes is the lag: what everything else that became ready
in the meantime waits, too. The CPU time of the loop's thread, over a period of ten seconds, is how busy it is; threads
that work beside it do not count.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from serve_app.ingress.autoscaling import BUSY_RATIO, LAG_S

TICK_S = 0.25
"""How often the loop is looked at. A call that blocks it for half a second is seen as 0.25 s of lag or more, whenever
it begins."""

PERIOD_TICKS = 40
"""Ten seconds: scrapers and Serve come about as often, and see the worst of each period."""

REPORT_TICKS = 4
"""Once a second, though a period is ten: Ray exports a gauge only in the intervals in which it was set."""


@dataclass(frozen=True)
class LoopUse:
    """One period of an event loop."""

    busy_ratio: float
    """CPU time of the loop's thread, as a share of the time that passed."""
    lag_s: float
    """How late a tick came at worst."""


class Timer(Protocol):
    """See `asyncio.TimerHandle`."""

    def cancel(self) -> None:
        """It will not run."""


class Timers(Protocol):
    """What this needs of an event loop."""

    def call_later(self, delay: float, callback: Callable[[], None], /) -> Timer:
        """See `asyncio.loop.call_later`."""


class EventLoopSampler:
    """Enter it in the loop's thread. It has no task, and after leaving it no timer either."""

    def __init__(
        self,
        timers: Timers,
        report: Callable[[LoopUse], None],
        clock_s: Callable[[], float] = time.monotonic,  # uvloop's own clock stands still during a callback
        thread_cpu_s: Callable[[], float] = time.thread_time,
    ) -> None:
        self._timers = timers
        self._report = report
        self._clock_s = clock_s
        self._thread_cpu_s = thread_cpu_s
        self._last: LoopUse | None = None

    def __enter__(self) -> Self:
        self._begin_period()
        self._schedule()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._timer.cancel()

    def stats(self) -> dict[str, float]:
        """The last whole period as `autoscaling.EventLoopPolicy` reads it; nothing before its end."""
        return {} if self._last is None else {BUSY_RATIO: self._last.busy_ratio, LAG_S: self._last.lag_s}

    def _begin_period(self) -> None:
        self._since_s, self._cpu_before_s = self._clock_s(), self._thread_cpu_s()
        self._ticks, self._lag_s = 0, 0.0

    def _schedule(self) -> None:
        self._due_s = self._clock_s() + TICK_S
        self._timer = self._timers.call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        now_s = self._clock_s()
        self._lag_s = max(self._lag_s, now_s - self._due_s)
        self._ticks += 1
        self._schedule()
        if self._ticks == PERIOD_TICKS:
            busy_s = self._thread_cpu_s() - self._cpu_before_s
            self._last = LoopUse(busy_s / (now_s - self._since_s), self._lag_s)
            self._begin_period()
        if self._last is not None and self._ticks % REPORT_TICKS == 0:
            self._report(self._last)
