"""Who is alive: signs of life that are expected, counted in the watcher's own time.

An ingress watches its connections (sign: the number of frames). The watcher's own sleep does not count: a process that
was stopped, or whose machine was, finds everything silent for as long as it was away, and would otherwise take
everybody else for dead. A replica's engine is watched by `engine/watchdog.py`, which wants more evidence than silence,
and counts its time with this.
"""

from __future__ import annotations


class SilenceClock:
    """For how long a sign that is expected has not changed. Ask it every `period_s` or so."""

    def __init__(self, period_s: float) -> None:
        self._longest_look_s = 2 * period_s
        self._looked_s: float | None = None
        self._sign = -1
        self._silence_s = 0.0

    def look(self, now_s: float, sign: int, *, expected: bool = True) -> float:
        """Seconds of silence. One look adds two periods at most, however long the watcher was away."""
        elapsed_s = 0.0 if self._looked_s is None else now_s - self._looked_s
        self._looked_s = now_s
        if sign != self._sign or not expected:
            self._sign = sign
            self._silence_s = 0.0
        else:
            self._silence_s += min(elapsed_s, self._longest_look_s)
        return self._silence_s
