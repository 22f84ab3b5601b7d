"""Start now, wait, or refuse: a pure function of how much is in flight and how much the fleet can run at once.

Requests wait in the replicas' own queues, where vLLM starts them as soon as it can. What is decided here is only when
the line is so long that a client does better to come back: then it gets a 429 with a `Retry-After` that is an estimate
of when there is room, before any header of a stream has been sent."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Facts:
    """`in_flight` sequences at this ingress, `asked` more wanted, `slots` that the replicas can run at the same
    time."""

    in_flight: int
    asked: int
    slots: int


@dataclass(frozen=True)
class Admit:
    """Go ahead."""


@dataclass(frozen=True)
class Refuse:
    """Come back in `retry_after_s`."""

    retry_after_s: float


@dataclass(frozen=True)
class Never:
    """More at a time than there is room for with nobody else here: `limit` sequences. Coming back is of no use."""

    limit: int


@dataclass(frozen=True)
class Admission:
    """`max_waiting` bounds the sequences of this ingress beyond those that the replicas can run at the same time.

    `typical_request_s` is how long one takes, for the estimate.
    """

    max_waiting: int
    typical_request_s: float = 20.0

    def decide(self, facts: Facts) -> Admit | Refuse | Never:
        """Whether `facts.asked` more sequences may start or wait."""
        room = facts.slots + self.max_waiting
        if facts.in_flight + facts.asked <= room:
            return Admit()
        if facts.asked > room and facts.slots:
            return Never(room)
        waiting = max(facts.in_flight - facts.slots, 0)
        rounds = 1.0 if facts.slots == 0 else waiting / facts.slots
        return Refuse(retry_after_s=round(max(1.0, rounds * self.typical_request_s / 2), 1))
