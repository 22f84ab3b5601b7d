"""How much longer an engine's steps take because they compute prompts.

A step that computes a part of a prompt takes longer than one that only decodes, and every sequence in it waits. The
excess over the usual step, summed up, is what a neighbour's prefill has cost those that were decoding meanwhile.
"""

from __future__ import annotations

LONGER = 1.5
"""A step that is less than so many times as long as usual is a usual one: a request without a token may just be waiting
in the engine for room in its cache, and steps vary."""

STEP_MEMORY = 0.05
"""Weight of the newest step in the usual step's duration: some twenty steps, for contexts grow and batches change."""


class PrefillStalls:
    """Call `step` after each step, with what was under way during it. `total_s` only grows; two readings of it give
    what came between."""

    def __init__(self) -> None:
        self.total_s = 0.0
        self._plain_s: float | None = None
        self._last_s: float | None = None

    @property
    def usual_s(self) -> float | None:
        """How long a step without a prompt takes; None: not known yet."""
        return self._plain_s

    def step(self, now_s: float, *, prefilling: bool, decoding: bool, compile_s: float = 0.0) -> float:
        """A step has ended at `now_s`. Returns how much longer it took than usual because of a prompt. `decoding`: some
        sequence had a token before it; `prefilling`: some other one waited for its first token in the engine. For
        `compile_s` of it a kernel was compiled: that is no prompt's time, and no usual step."""
        last_s, self._last_s = self._last_s, now_s
        if last_s is None or not decoding:
            return 0.0  # nobody waited for this step
        step_s = now_s - last_s - compile_s
        if not prefilling or (self._plain_s is not None and step_s < LONGER * self._plain_s):
            if compile_s:
                return 0.0
            self._plain_s = step_s if self._plain_s is None else self._plain_s + STEP_MEMORY * (step_s - self._plain_s)
        elif self._plain_s is not None:
            stall_s = max(step_s - self._plain_s, 0.0)
            self.total_s += stall_s
            return stall_s
        return 0.0
