"""Which attempt is ended early so that one of a higher class can start. Pure.

An attempt that comes and finds all slots taken ends at most one, then or while it waits, and only where the slot would
be for its class. The one that is ended is of the lowest class, and the engine has computed the fewest tokens for it:
least is computed again. Its request goes on with all that it has where and when it is its turn
(`router/dispatcher.py`), and is not ended so again.

One without a token is not ended: it may have been started a moment ago, after a long wait, and if its prompt is about
to kill the engine, another one would be blamed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Running:
    """An attempt in the engine that may be ended. So many tokens, of prompt and output, were computed for it there."""

    attempt_id: str
    rank: int
    computed_tokens: int


def to_preempt(rank: int, running: Iterable[Running]) -> str | None:
    """The attempt to end for one of this rank; None where all are of its rank or above."""
    lower = [one for one in running if one.rank < rank]
    if not lower:
        return None
    return min(lower, key=lambda one: (one.rank, one.computed_tokens)).attempt_id
