"""Time without progress, counted in the watcher's own observations.

An ingress watches its connections this way (progress: the number of frames). Time in which the watcher itself did not
run does not count: a process that was stopped, or whose machine was, would otherwise find everything silent and take
all replicas for dead. `engine/watchdog.py` counts its time with this, and wants more evidence than silence.
"""

from __future__ import annotations


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
