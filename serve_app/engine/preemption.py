"""Which attempt is ended early so that one of a higher class can start.

An attempt that comes and finds all slots taken ends at most one, then or while it waits, and only where the slot would
be for its class. The one that is ended is of the lowest class, and the engine has computed the fewest tokens for it:
least is computed again. Its request goes on with all that it has where and when it is its turn
(`router/dispatcher.py`), and is not ended so again.

One without a token is not ended: it may have been started a moment ago, after a long wait, and if its prompt is about
to kill the engine, another one would be blamed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from serve_app.engine.start_queue import StartQueue


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


class PreemptibleAttempt(Protocol):
    """What must be known of an attempt of the replica (`replica.Attempt`)."""

    rank: int
    preemptible: bool
    computed_tokens: int
    in_engine: asyncio.Timeout | None
    is_ending: bool
    has_token: bool


class Preemption:
    """Ends attempts of lower classes for those that wait for a slot. `attempts` are all of the replica, by id, and
    `starts` says for whom one more slot would be."""

    def __init__(self, attempts: Mapping[str, PreemptibleAttempt], starts: StartQueue) -> None:
        self._attempts = attempts
        self._starts = starts
        self._wants_slot: dict[str, int] = {}
        """Attempts that wait and may end one of a lower rank yet, by id, with their ranks."""

    def want_slot(self, attempt_id: str, rank: int) -> None:
        """It waits because all slots are taken. Call `forget` when it waits no more."""
        self._wants_slot[attempt_id] = rank
        self.preempt()

    def forget(self, attempt_id: str) -> None:
        """It waits no more. Unknown ones are ignored."""
        self._wants_slot.pop(attempt_id, None)

    def preempt(self) -> None:
        """Each that waits for a slot, the highest first, ends one of a lower class, as long as there is one."""
        while self._wants_slot:
            attempt_id = max(self._wants_slot, key=self._wants_slot.__getitem__)
            if not self._preempt_for(self._wants_slot[attempt_id]):
                return
            del self._wants_slot[attempt_id]

    def _preempt_for(self, rank: int) -> bool:
        """End one that runs and is of a lower class than this, if there is one and this class gains its slot."""
        running = (
            Running(name, one.rank, one.computed_tokens)
            for name, one in self._attempts.items()
            if one.has_token and one.preemptible and not self._starts.was_overdue(name)
        )
        if (attempt_id := to_preempt(rank, running)) is None:
            return False
        attempt, coming = self._attempts[attempt_id], sum(one.is_ending for one in self._attempts.values())
        if attempt.in_engine is None or not self._starts.gains(rank, coming):
            return False
        attempt.preemptible, attempt.is_ending = False, True
        attempt.in_engine.reschedule(asyncio.get_running_loop().time())
        return True
