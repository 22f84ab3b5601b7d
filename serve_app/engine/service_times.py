"""How long a sequence runs in a full engine, measured from outside: slot-seconds used, divided by sequences finished.

It is the total observed time divided by the observed ends, with running sequences included in the time: the maximum
likelihood estimate of a mean lifetime when some still live. So it needs no time stamp per sequence, and long requests
count before they end. `slots / mean_s` is what a full engine finishes in a second, also when its cache lets it run
fewer than its slots.

Sequences take longer the more of them run. So the time in which all slots are taken is counted apart, and what was seen
at other times is only where that begins.
"""

from __future__ import annotations

FILLS = 4
"""The memory of the mean: as many ends as fill the slots so often. Counted in ends, not in time: what was measured
before a quiet night is still the best estimate in the morning."""

PRIOR_FILLS = 0.25
"""What was seen at other times counts as much as so many ends, in fills of the slots. When the slots have just been
filled, few sequences end because most have just begun: those few alone say too long a time."""


class ServiceTimes:
    """Call `enter` and `leave` for each sequence. All times are stamps of one clock, in seconds."""

    def __init__(self, slots: int, now_s: float) -> None:
        self._slots = slots
        self._held = 0
        self._since_s = now_s
        keep = 1 - 1 / (FILLS * max(slots, 1))
        self._at_other_times = _Mean(keep)
        self._when_full = _Mean(keep)

    def enter(self, now_s: float) -> None:
        """A sequence has arrived. It may wait before it runs."""
        self._run_until(now_s)
        self._held += 1

    def leave(self, now_s: float, *, served: bool) -> None:
        """A sequence has left. Not `served`: it was given up before it had a token, and tells nothing about run
        times."""
        self._run_until(now_s)
        if served:
            self._present().end()
        self._held -= 1

    def mean_s(self, now_s: float) -> float | None:
        """Mean run time; None if no sequence has ended yet."""
        self._run_until(now_s)
        other, full = self._at_other_times, self._when_full
        if not other.ends:
            return (full.slot_s + other.slot_s) / full.ends if full.ends else None
        prior_ends = PRIOR_FILLS * self._slots
        return (full.slot_s + prior_ends * other.slot_s / other.ends) / (full.ends + prior_ends)

    def _present(self) -> _Mean:
        return self._when_full if self._held >= self._slots else self._at_other_times

    def _run_until(self, now_s: float) -> None:
        self._present().add(min(self._held, self._slots) * (now_s - self._since_s))
        self._since_s = now_s


class _Mean:
    """Slot-seconds and ends, of which the older ones count less: `keep` of them at each end."""

    def __init__(self, keep: float) -> None:
        self._keep = keep
        self._since_last_end_slot_s = 0.0
        self._slot_s = 0.0
        self.ends = 0.0

    @property
    def slot_s(self) -> float:
        return self._slot_s + self._since_last_end_slot_s

    def add(self, slot_s: float) -> None:
        self._since_last_end_slot_s += slot_s

    def end(self) -> None:
        self._slot_s = self._slot_s * self._keep + self._since_last_end_slot_s
        self._since_last_end_slot_s = 0.0
        self.ends = self.ends * self._keep + 1
