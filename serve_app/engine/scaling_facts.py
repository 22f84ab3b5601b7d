"""What a replica measures for the scaling policy beside its load: arrivals, and the time per token by batch size."""

from __future__ import annotations

STEP_MEMORY = 10_000
"""Steps that the line is fitted to: minutes of a busy engine, in which its batch has had many sizes."""

LEAST_VARIANCE = 0.5
"""Batches that vary less say nothing about other sizes. Then half of a step is taken for what each sequence adds."""


class ScalingCounts:
    """Arrivals since the start, and the line `base_s + sequences * per_sequence_s` through the times of steps."""

    def __init__(self) -> None:
        self.arrived_requests = 0
        self.arrived_prefill_tokens = 0
        self.arrived_prefill_squares = 0
        self._last_s: float | None = None
        self._sums = (0.0, 0.0, 0.0, 0.0, 0.0)

    def arrive(self, prefill_tokens: int) -> None:
        """A request has come, with so many prompt tokens that are not cached."""
        self.arrived_requests += 1
        self.arrived_prefill_tokens += prefill_tokens
        self.arrived_prefill_squares += prefill_tokens**2

    def step(self, now_s: float, sequences: int, tokens: int) -> None:
        """A step has ended that gave `tokens` in all to `sequences` that had some before."""
        last_s, self._last_s = self._last_s, now_s
        if last_s is None or not sequences or not tokens:
            return  # nobody waited for it
        tpot_s = (now_s - last_s) * sequences / tokens
        keep = 1 - 1 / STEP_MEMORY
        new = (1.0, float(sequences), tpot_s, float(sequences) ** 2, sequences * tpot_s)
        count, x, y, xx, xy = (old * keep + one for old, one in zip(self._sums, new, strict=True))
        self._sums = (count, x, y, xx, xy)

    @property
    def tpot_line_s(self) -> tuple[float, float] | None:
        """`base_s` and `per_sequence_s`, neither below 0; None while there was no step."""
        count, x, y, xx, xy = self._sums
        if not count:
            return None
        mean_x, mean_y = x / count, y / count
        variance = xx / count - mean_x**2
        slope = (xy / count - mean_x * mean_y) / variance if variance >= LEAST_VARIANCE else mean_y / mean_x / 2
        slope = min(max(slope, 0.0), mean_y / mean_x)
        return mean_y - slope * mean_x, slope
