"""Admission at one ingress: gathers the facts, and remembers the retry times that it has given.

`router/admission.py` decides. The replicas have the last word (`engine/replica.py`): they see the requests of all
ingresses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum

from serve_app.protocol.errors import QueueFull, ServeError, TooManySequences
from serve_app.router.admission import (
    Admission,
    AdmissionFacts,
    Admit,
    RejectNoReplica,
    RejectPermanently,
    RejectRetryable,
    refuse,
)
from serve_app.router.replica_pool import ReplicaPool


class AdmissionDecision(StrEnum):
    """What became of a request before it was sent to any replica, or when the last one refused it."""

    ADMITTED = "admitted"
    ADMITTED_BY_SHARE = "admitted_by_share"
    """All is full, but its client has less than its share: a replica may give it another one's place."""
    QUEUE_FULL = "queue_full"
    REPLICAS_FULL = "replicas_full"
    """It was admitted, and then every replica refused it."""
    NO_REPLICA = "no_replica"
    TOO_MANY_SEQUENCES = "too_many_sequences"


class PendingRetries:
    """Refused requests and the second at which each was told to retry."""

    def __init__(self) -> None:
        self._due: Counter[int] = Counter()

    def add(self, due_s: float, count: int) -> None:
        """`count` requests were told that time."""
        self._due[int(due_s)] += count

    def outstanding(self, now_s: float) -> int:
        """How many were told a time that is still to come."""
        for second in [second for second in self._due if second < now_s]:
            del self._due[second]
        return self._due.total()


class AdmissionControl:
    """Admission for one ingress. `in_flight` returns how many sequences it has taken that have not ended; `clock` is
    the event loop's."""

    def __init__(
        self, admission: Admission, pool: ReplicaPool, in_flight: Callable[[], int], clock: Callable[[], float]
    ) -> None:
        self._admission = admission
        self._pool = pool
        self._in_flight = in_flight
        self._clock = clock
        self._promises = PendingRetries()
        self.decisions: Counter[AdmissionDecision] = Counter()

    def check(self, asked: int, has_little: Callable[[], bool] = lambda: False) -> None:
        """Raise `QueueFull`, `NoReplica` or `TooManySequences` where `asked` more sequences must not be taken. What a
        client asks that `has_little` here is taken though all is full: a replica may give it another one's place."""
        facts = self._facts(asked)
        match self._admission.decide(facts):
            case Admit():
                self.decisions[AdmissionDecision.ADMITTED] += 1
            case RejectRetryable() if has_little():
                self.decisions[AdmissionDecision.ADMITTED_BY_SHARE] += 1
            case RejectRetryable():
                self.decisions[AdmissionDecision.QUEUE_FULL] += 1
                raise self._full(facts)
            case RejectNoReplica(waiting):
                self.decisions[AdmissionDecision.NO_REPLICA] += 1
                raise self._pool.no_replica(f"{waiting} requests wait for one")
            case RejectPermanently(limit):
                self.decisions[AdmissionDecision.TOO_MANY_SEQUENCES] += 1
                raise TooManySequences(asked, limit)

    def refusal(self) -> ServeError:
        """The error for a sequence that every replica has refused."""
        self.decisions[AdmissionDecision.REPLICAS_FULL] += 1
        facts = self._facts(1)
        return self._full(replace(facts, waiting=facts.waiting - 1))  # it does not wait for itself

    def _full(self, facts: AdmissionFacts) -> QueueFull:
        told = refuse(facts)
        self._promises.add(self._clock() + told.retry_after_s, facts.asked)
        return QueueFull(told.retry_after_s, told.why, measured=told.measured)

    def _facts(self, asked: int) -> AdmissionFacts:
        connections = self._pool.taking_work()
        rooms = [connection.room(self._admission.max_queued_requests) for connection in connections]
        measured = [connection for connection in connections if connection.capacity.service_s is not None]
        # The mean of the rates, weighted by the slots.
        rate = sum(
            connection.load.max_num_seqs / max(connection.capacity.service_s or 0.0, 0.001) for connection in measured
        )
        slots = sum(connection.load.max_num_seqs for connection in measured)
        return AdmissionFacts(
            asked=asked,
            held=sum(connection.unfinished for connection in connections),
            room=sum(rooms),
            slots=sum(connection.load.max_num_seqs for connection in connections),
            waiting=self._in_flight() - self._pool.attempts(),
            service_s=slots / rate if rate else None,
            promised=self._promises.outstanding(self._clock()),
            ingresses=max((connection.capacity.ingresses for connection in connections), default=1),
            one_room=max(rooms, default=self._pool.last_room(self._admission.max_queued_requests)),
        )
