"""Time without progress, counted in the watcher's own observations.

An ingress watches its connections this way (progress: the number of frames). Time in which the watcher itself did not
run does not count: a process that was stopped, or whose machine was, would otherwise find everything silent and take
all replicas for dead. `engine/watchdog.py` counts its time with this, and wants more evidence than silence.
"""

from __future__ import annotations

from collections import deque


class SilenceClock:
    """For how long expected progress has not come. Call `observe` about every `period_s`."""

    def __init__(self, period_s: float) -> None:
        self._longest_interval_s = 2 * period_s
        self._observed_s: float | None = None
        self._progress = -1
        self._silence_s = 0.0

    def observe(self, now_s: float, progress: int, *, expected: bool = True) -> float:
        """Seconds without progress. One observation adds two periods at most, however long the watcher did not run."""
        elapsed_s = 0.0 if self._observed_s is None else now_s - self._observed_s
        self._observed_s = now_s
        if progress != self._progress or not expected:
            self._progress = progress
            self._silence_s = 0.0
        else:
            self._silence_s += min(elapsed_s, self._longest_interval_s)
        return self._silence_s


class RecentPeak:
    """The highest of the values of the last `memory_s` seconds."""

    def __init__(self, memory_s: float) -> None:
        self._memory_s = memory_s
        self._peaks: deque[tuple[float, float]] = deque()

    def add(self, value: float, now_s: float) -> None:
        """A value of now."""
        while self._peaks and self._peaks[-1][1] <= value:  # they can be the highest no more
            self._peaks.pop()
        self._peaks.append((now_s, value))
        self._forget(now_s)

    def value(self, now_s: float) -> float:
        """The highest; 0 where there is none."""
        self._forget(now_s)
        return self._peaks[0][1] if self._peaks else 0.0

    def _forget(self, now_s: float) -> None:
        while self._peaks and self._peaks[0][0] < now_s - self._memory_s:
            self._peaks.popleft()
