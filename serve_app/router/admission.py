"""Start, wait, or refuse: a pure function of what the fleet holds, how much it may hold, and how fast it gets done.

Requests wait in the replicas' own queues, where vLLM starts them as soon as it can. A replica holds as many as it runs
and `max_waiting` more, whichever ingress they came by; it counts them itself and refuses the next one
(`replica.EngineReplica`), so that the bound is the fleet's. What is decided here, at one ingress, is what that would
say: a request that has no chance gets its 429 before it is sent anywhere.

A refusal says when there should be room *for this request*. Those that were refused before it and have been told a
time come first: each later one is told a later time. So refused clients come back one after the other, as places get
free, and not in one herd. See `docs/decisions/0010-one-bound-for-the-fleet.md`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from serve_app.config.schema import MAX_WAITING

ASSUMED_SERVICE_S = 20.0
"""How long a request runs, as long as none has finished to measure it by: 1,000 tokens at 50 a second."""

LEAST_RETRY_S, MOST_RETRY_S = 1, 60
"""`Retry-After`, in whole seconds. OpenAI's and Anthropic's SDKs ignore more than a minute and come back within eight
seconds: a longer wait, told truly, would bring them back sooner."""

UNKNOWN_START_S = 5.0
"""`Retry-After` without a replica, if none was ever seen to start, or the start takes longer than the last one did: it
may come at any moment, and an ingress finds it within a second."""

GOLDEN = (math.sqrt(5) - 1) / 2
"""Multiples of it, modulo 1, lie evenly spread however many there are."""


@dataclass(frozen=True)
class Facts:
    """What one ingress knows. All counts are of sequences: a request with `n=3` is three.

    `held` are in the replicas that take work, `room` is how many these may hold, `slots` how many they run at a time.
    `waiting` are of this ingress and at no replica yet. `service_s` is how long a sequence runs, None if none of the
    replicas has measured it. `promised` were refused here and have been told a time that is still to come; the other
    ingresses have refused others: there are `ingresses`.
    `one_room` is what a single replica may hold, from the last one that was seen; 0 if none was.
    """

    asked: int
    held: int = 0
    room: int = 0
    slots: int = 0
    waiting: int = 0
    service_s: float | None = None
    promised: int = 0
    ingresses: int = 1
    one_room: int = 0


@dataclass(frozen=True)
class Admit:
    """Go ahead."""


@dataclass(frozen=True)
class RejectRetryable:
    """The fleet is full. Come back in `retry_after_s`, when there should be room: `why` says so in words."""

    retry_after_s: int
    why: str
    measured: bool


@dataclass(frozen=True)
class RejectNoReplica:
    """No replica is up, and `waiting` requests of this ingress wait for one: as many as may."""

    waiting: int


@dataclass(frozen=True)
class RejectPermanently:
    """More at a time than there is room for with nobody else here: `limit` sequences. Coming back is of no use."""

    limit: int


@dataclass(frozen=True)
class Admission:
    """The configured part: `max_waiting` for each engine beyond its `slots`, `engines` that are always there, and at
    most `ingresses`."""

    max_waiting: int = MAX_WAITING
    slots: int = 0
    engines: int = 1
    ingresses: int = 1

    def decide(self, facts: Facts) -> Admit | RejectRetryable | RejectNoReplica | RejectPermanently:
        """Whether `facts.asked` more sequences may start or wait."""
        one_room = facts.one_room or self.slots + self.max_waiting
        if not facts.slots:
            # Nobody counts for all ingresses now. Each lets its share of one replica's room wait: there is then room
            # for all of them in the first one that comes.
            share = max(one_room // self.ingresses, 1)
            return Admit() if facts.waiting + facts.asked <= share else RejectNoReplica(facts.waiting)
        if facts.held + facts.waiting + facts.asked <= facts.room:
            return Admit()
        limit = max(facts.room, one_room * self.engines)
        return RejectPermanently(limit) if facts.asked > limit else refuse(facts)


def refuse(facts: Facts) -> RejectRetryable:
    """When to come back to a full fleet. `facts` may be older than the refusal: at least one place is missing."""
    missing = max(facts.held + facts.waiting + facts.asked - facts.room, 1)
    before_it = facts.promised * max(facts.ingresses, 1)
    service_s = ASSUMED_SERVICE_S if facts.service_s is None else max(facts.service_s, 0.001)
    places_per_s = max(facts.slots, 1) / service_s
    wait_s = (missing + before_it) / places_per_s
    retry_s = wait_s if wait_s <= MOST_RETRY_S else _spread(facts.promised)
    measured = facts.service_s is not None
    basis = "measured" if measured else f"assumed, at {ASSUMED_SERVICE_S:.0f} seconds each"
    why = (
        f"it holds {facts.held + facts.waiting} requests, of which {_rate(places_per_s)} finish ({basis}), "
        f"so there should be room in about {_duration(wait_s)}"
    )
    return RejectRetryable(max(math.ceil(retry_s), LEAST_RETRY_S), why, measured)


def start_wait(start_s: float | None, down_s: float) -> tuple[int, bool]:
    """When to come back to a fleet without a replica, and whether that is measured: the last engine took `start_s` to
    start, and none has been up for `down_s`."""
    if start_s is None or start_s <= down_s:
        return math.ceil(UNKNOWN_START_S), False
    return min(max(math.ceil(start_s - down_s), LEAST_RETRY_S), MOST_RETRY_S), True


def _spread(number: int) -> float:
    """A time in the later half of what may be told, another one for each `number`."""
    return MOST_RETRY_S * (1 - number * GOLDEN % 1 / 2)


def _rate(per_s: float) -> str:
    return f"{per_s:.0f} a second" if per_s >= 10 else f"{max(per_s * 60, 1):.0f} a minute"


def _duration(seconds: float) -> str:
    whole = max(math.ceil(seconds), 1)
    if whole > 120:
        return f"{math.ceil(whole / 60)} minutes"
    return "1 second" if whole == 1 else f"{whole} seconds"
