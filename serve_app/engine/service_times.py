"""How long a sequence runs in an engine, measured from outside: slot-seconds used, divided by sequences finished.

It is the total observed time divided by the observed ends, with running sequences included in the time: the maximum
likelihood estimate of a mean lifetime when some still live. So it holds at any load, needs no time stamp per sequence,
and long requests count before they end. `slots / mean_s` is what a full engine finishes in a second, also when its
cache lets it run fewer than its slots.
"""

from __future__ import annotations

FILLS = 4
"""The memory of the mean: as many ends as fill the slots so often. Counted in ends, not in time: what was measured
before a quiet night is still the best estimate in the morning."""


class ServiceTimes:
    """Call `enter` and `leave` for each sequence. All times are stamps of one clock, in seconds."""

    def __init__(self, slots: int, now_s: float) -> None:
        self._slots = slots
        self._keep = 1 - 1 / (FILLS * max(slots, 1))
        self._held = 0
        self._since_s = now_s
        self._since_last_end_slot_s = 0.0
        self._slot_s = 0.0
        self._ends = 0.0

    def enter(self, now_s: float) -> None:
        """A sequence has arrived. It may wait before it runs."""
        self._run_until(now_s)
        self._held += 1

    def leave(self, now_s: float, *, served: bool) -> None:
        """A sequence has left. Not `served`: it was given up before it had a token, and tells nothing about run
        times."""
        self._run_until(now_s)
        self._held -= 1
        if served:
            self._slot_s = self._slot_s * self._keep + self._since_last_end_slot_s
            self._since_last_end_slot_s = 0.0
            self._ends = self._ends * self._keep + 1

    def mean_s(self, now_s: float) -> float | None:
        """Mean run time; None if no sequence has ended yet."""
        self._run_until(now_s)
        return (self._slot_s + self._since_last_end_slot_s) / self._ends if self._ends else None

    def _run_until(self, now_s: float) -> None:
        self._since_last_end_slot_s += min(self._held, self._slots) * (now_s - self._since_s)
        self._since_s = now_s
