"""Which request a replica died of, as far as there is evidence. Facts in, verdict out.

When an engine dies, what ran in it is of two kinds: attempts that had had tokens from it, and *newcomers*, with none
yet. An engine that made steps with an attempt is not likely to die of it in the next; one that dies in the first step
with something new is likely to die of that. So

    named      it was the only newcomer when the engine reported an error or crashed: it is why
    suspect    one of several newcomers, or there was none; or the engine was killed (by an operator, for want of
               memory, by its watchdog), or nobody knows what it died of
    beside     it had had tokens, and there was a newcomer: nothing points at it

A named request gets no further attempt. Others do, and the deaths they were in add up, each by its weight: what dies
beside others often enough is not there by chance.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final


class Blame(StrEnum):
    """How far the death of a replica is tied to an attempt that was in it."""

    NAMED = "named"
    SUSPECT = "suspect"
    BESIDE = "beside"


WEIGHTS: Final = {Blame.NAMED: 4, Blame.SUSPECT: 2, Blame.BESIDE: 1}
LIMIT: Final = 4
"""One death that names a request, two in which it is suspect, four beside which it stood."""


def blame(*, is_newcomer: bool, newcomers: int, failed_by_itself: bool) -> Blame:
    """What the death of an engine with `newcomers` attempts without a token says of one attempt in it."""
    if newcomers and not is_newcomer:
        return Blame.BESIDE
    return Blame.NAMED if newcomers == 1 and failed_by_itself else Blame.SUSPECT


def is_poison(deaths: Iterable[Blame]) -> bool:
    """Whether a request that was in these deaths must not get another replica."""
    return sum(WEIGHTS[death] for death in deaths) >= LIMIT


MAX_REMEMBERED: Final = 4096

SAME_S: Final = 5.0
"""Two clocks and a message lie between what two ingresses know of one quarantine."""


@dataclass
class Quarantine:
    """Who has cost a replica, for a while: `period_s` after the first time, twice as long after each further one.

    What is held against is a name: the digest of a prompt, or a client's key. A client that has taken one replica then
    takes no second with the same request, nor with another one before the first replica is back.
    """

    period_s: float = 60.0
    longest_s: float = 3600.0
    _until_s: dict[str, tuple[float, float]] = field(default_factory=dict)
    """By name: until when, and how long that was."""

    def add(self, names: Iterable[str], now_s: float) -> None:
        """These have cost a replica."""
        for name in names:
            _, before_s = self._until_s.pop(name, (0.0, 0.0))
            length_s = min(max(2 * before_s, self.period_s), self.longest_s)
            self._until_s[name] = (now_s + length_s, length_s)
        self._forget()

    def remaining(self, now_s: float) -> dict[str, float]:
        """Everybody who has still to wait, and for how many seconds."""
        return {name: until_s - now_s for name, (until_s, _) in self._until_s.items() if until_s > now_s}

    def learn(self, remaining: Mapping[str, float], now_s: float) -> None:
        """Take over what another ingress knows (its `remaining`)."""
        for name, left_s in remaining.items():
            until_s, _ = self._until_s.get(name, (0.0, 0.0))
            # A second more or less is the way here, and no other quarantine.
            if left_s > 0 and now_s + left_s > until_s + SAME_S:
                self._until_s[name] = (now_s + left_s, max(left_s, self.period_s))
        self._forget()

    def _forget(self) -> None:
        while len(self._until_s) > MAX_REMEMBERED:
            del self._until_s[next(iter(self._until_s))]

    @property
    def is_empty(self) -> bool:
        """Whether nobody has cost a replica yet."""
        return not self._until_s

    def left_s(self, names: Iterable[str], now_s: float) -> float:
        """How long one of these has still to wait; 0 if none has."""
        return max([0.0, *(self._until_s[name][0] - now_s for name in names if name in self._until_s)])
