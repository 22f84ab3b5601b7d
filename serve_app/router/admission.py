"""Start, wait, or refuse: a pure function of how much the replicas hold, how much they may hold, and how fast they
finish.

Requests wait at the replicas, which start them as soon as their engines can (`engine/start_queue.py`). A replica holds
as many as it runs plus `max_queued_requests`, whichever ingress they came from. It counts them itself and refuses the
next one (`replica.EngineReplica`), so that the bound holds for all ingresses together. An ingress predicts that refusal
here: a request without a chance gets its 429 before it is sent anywhere.

A refusal says when there should be room *for this request*. Requests that were refused before it, and were given a time
that is still to come, count first: each later one gets a later time. So refused clients come back one after the other,
as places become free, and not all at once. See `docs/decisions/0010-one-bound-for-the-fleet.md`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from serve_app.config.replicas import MAX_QUEUED_REQUESTS
from serve_app.config.schema import AppConfig, flag

ASSUMED_SERVICE_S = 20.0
"""Assumed run time of a request until one has finished: 1,000 tokens at 50 a second."""

LEAST_RETRY_S, MOST_RETRY_S = 1, 60
"""`Retry-After`, in whole seconds. OpenAI's and Anthropic's SDKs ignore a value above a minute and come back within
eight seconds: a longer, truthful value would bring them back sooner."""

UNKNOWN_START_S = 5.0
"""`Retry-After` without a replica, if no start was ever seen, or the start takes longer than the last one: a replica
may come at any moment, and an ingress finds it within a second."""

GOLDEN = (math.sqrt(5) - 1) / 2
"""Its multiples, modulo 1, are evenly spread for any count."""


@dataclass(frozen=True)
class AdmissionFacts:
    """What one ingress knows. All counts are of sequences: a request with `n=3` is three.

    `held` are in the replicas that take work, `room` is how many those may hold, `slots` how many they run at a time.
    `waiting` belong to this ingress and are at no replica yet. `service_s` is how long a sequence runs, None if no
    replica has measured it. `promised` were refused here and given a time that is still to come; other ingresses, of
    which there are `ingresses`, have refused others. `one_room` is what a single replica may hold, from the last one
    that was seen; 0 if none was.
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
    """The request may be sent."""


@dataclass(frozen=True)
class RejectRetryable:
    """All replicas are full. Retry in `retry_after_s`, when there should be room; `why` explains the time."""

    retry_after_s: int
    why: str
    measured: bool


@dataclass(frozen=True)
class RejectNoReplica:
    """No replica is up, and as many requests of this ingress wait for one as may: `waiting`."""

    waiting: int


@dataclass(frozen=True)
class RejectPermanently:
    """More sequences than all replicas hold when they are idle: `limit`. A retry is of no use."""

    limit: int


@dataclass(frozen=True)
class Admission:
    """The configuration: `max_queued_requests` for each engine beyond its `slots`, at least `engines` engines, at most
    `ingresses` ingresses."""

    max_queued_requests: int = MAX_QUEUED_REQUESTS
    slots: int = 0
    engines: int = 1
    ingresses: int = 1

    @classmethod
    def of(cls, config: AppConfig) -> Admission:
        """That of this configuration."""
        slots = flag(config.engine.flags, "max-num-seqs", 0)
        return cls(
            max_queued_requests=config.replicas.max_queued_requests,
            slots=slots if isinstance(slots, int) else 0,
            engines=config.replicas.needed,
            ingresses=config.ingress.max_replicas,
        )

    def decide(self, facts: AdmissionFacts) -> Admit | RejectRetryable | RejectNoReplica | RejectPermanently:
        """Whether `facts.asked` more sequences may start or wait."""
        one_room = facts.one_room or self.slots + self.max_queued_requests
        if not facts.slots:
            # No replica counts for all ingresses now. Each lets its share of one replica's room wait: the first
            # replica that comes then has room for all of them.
            share = max(one_room // self.ingresses, 1)
            return Admit() if facts.waiting + facts.asked <= share else RejectNoReplica(facts.waiting)
        if facts.held + facts.waiting + facts.asked <= facts.room:
            return Admit()
        limit = max(facts.room, one_room * self.engines)
        return RejectPermanently(limit) if facts.asked > limit else refuse(facts)


def refuse(facts: AdmissionFacts) -> RejectRetryable:
    """The refusal when all replicas are full. `facts` may be older than the refusal: at least one place is missing."""
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
    """`Retry-After` without a replica, and whether it is measured. The last engine took `start_s` to start, and none
    has been up for `down_s`."""
    if start_s is None or start_s <= down_s:
        return math.ceil(UNKNOWN_START_S), False
    return min(max(math.ceil(start_s - down_s), LEAST_RETRY_S), MOST_RETRY_S), True


def _spread(number: int) -> float:
    """A time in the later half of the allowed range, another one for each `number`."""
    return MOST_RETRY_S * (1 - number * GOLDEN % 1 / 2)


def _rate(per_s: float) -> str:
    return f"{per_s:.0f} a second" if per_s >= 10 else f"{max(per_s * 60, 1):.0f} a minute"


def _duration(seconds: float) -> str:
    whole = max(math.ceil(seconds), 1)
    if whole > 120:
        return f"{math.ceil(whole / 60)} minutes"
    return "1 second" if whole == 1 else f"{whole} seconds"
