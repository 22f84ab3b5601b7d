"""Which attempt is ended early so that one of a higher class can start. Pure.

A waiting attempt ends at most one, when it comes and finds all slots taken. The one that is ended is of the lowest
class, and has the fewest tokens: least is computed again. Its request goes on with all of them where and when it is its
turn (`router/dispatcher.py`), and is not ended so again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Running:
    """An attempt in the engine that may be ended. It has so many tokens of output, earlier attempts' included."""

    attempt_id: str
    rank: int
    output_tokens: int


def to_preempt(rank: int, running: Iterable[Running]) -> str | None:
    """The attempt to end for one of this rank; None where all are of its rank or above."""
    lower = [one for one in running if one.rank < rank]
    if not lower:
        return None
    return min(lower, key=lambda one: (one.rank, one.output_tokens)).attempt_id
