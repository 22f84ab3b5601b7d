"""Which request killed a replica, as far as there is evidence. Pure.

When an engine dies, the attempts in it are of two kinds: those that had tokens from it, and *newcomers* without one. An
engine that has made steps with an attempt is unlikely to die of it in the next step; one that dies in the first step
with something new has likely died of that. So

named      it was the only newcomer when the engine reported an error or crashed: it is the cause
suspect    one of several newcomers, or there was none; or the engine was killed (by an operator, for lack of
           memory, by its watchdog), or nobody knows why it died
beside     it had tokens, and there was a newcomer: nothing points at it

A named request gets no further attempt. Others do, and the deaths of their replicas add up, each by its weight: a
request that is often there when replicas die is not there by chance.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final


class Blame(StrEnum):
    """How far the evidence ties the death of a replica to an attempt that was in it."""

    NAMED = "named"
    SUSPECT = "suspect"
    BESIDE = "beside"


WEIGHTS: Final = {Blame.NAMED: 4, Blame.SUSPECT: 2, Blame.BESIDE: 1}
LIMIT: Final = 4
"""One death that names a request, two in which it is suspect, four with it beside."""


def blame(*, is_newcomer: bool, newcomers: int, failed_by_itself: bool) -> Blame:
    """How far one attempt is to blame for the death of an engine with `newcomers` attempts without a token."""
    if newcomers and not is_newcomer:
        return Blame.BESIDE
    return Blame.NAMED if newcomers == 1 and failed_by_itself else Blame.SUSPECT


def is_poison(deaths: Iterable[Blame]) -> bool:
    """Whether a request with these deaths must not get another replica."""
    return sum(WEIGHTS[death] for death in deaths) >= LIMIT


MAX_REMEMBERED: Final = 4096

SAME_S: Final = 5.0
"""Differences of clocks and the time of a message: two remaining times that are so close are the same quarantine."""


@dataclass
class Quarantine:
    """Names that are refused for a while, because they crashed a replica: `period_s` after the first time, twice as
    long after each further time.

    A name is the digest of a prompt, or a client's key. So a client that crashed one replica crashes no second one with
    the same request, nor with another request before the first replica is back.
    """

    period_s: float = 60.0
    longest_s: float = 3600.0
    _until_s: dict[str, tuple[float, float]] = field(default_factory=dict)
    """By name: until when it is refused, and for how long in all."""

    def add(self, names: Iterable[str], now_s: float) -> None:
        """These crashed a replica."""
        for name in names:
            _, before_s = self._until_s.pop(name, (0.0, 0.0))
            length_s = min(max(2 * before_s, self.period_s), self.longest_s)
            self._until_s[name] = (now_s + length_s, length_s)
        self._forget()

    def remaining(self, now_s: float) -> dict[str, float]:
        """All names that are still refused, and for how many more seconds."""
        return {name: until_s - now_s for name, (until_s, _) in self._until_s.items() if until_s > now_s}

    def learn(self, remaining: Mapping[str, float], now_s: float) -> None:
        """Add the quarantine of another ingress (its `remaining`)."""
        for name, left_s in remaining.items():
            until_s, _ = self._until_s.get(name, (0.0, 0.0))
            # A difference of a second or so is the message's delay, and no other quarantine.
            if left_s > 0 and now_s + left_s > until_s + SAME_S:
                self._until_s[name] = (now_s + left_s, max(left_s, self.period_s))
        self._forget()

    def _forget(self) -> None:
        while len(self._until_s) > MAX_REMEMBERED:
            del self._until_s[next(iter(self._until_s))]

    @property
    def is_empty(self) -> bool:
        """Whether nothing has crashed a replica yet."""
        return not self._until_s

    def remaining_s(self, names: Iterable[str], now_s: float) -> float:
        """How long the longest refused of these names is still refused; 0 if none is."""
        return max([0.0, *(self._until_s[name][0] - now_s for name in names if name in self._until_s)])
