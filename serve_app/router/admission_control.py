"""What an ingress tells a client that comes to a full fleet: gathers the facts, and keeps what it has told whom.

The decision is `router/admission.py`'s. The last word is the replicas' (`engine/replica.py`): they know of every
ingress' requests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from serve_app.protocol.errors import QueueFull, ServeError, TooManySequences
from serve_app.router.admission import Admission, Admit, Facts, NobodyUp, RejectPermanently, refuse
from serve_app.router.replica_pool import ReplicaPool


class Promises:
    """The refused that have been told when to come back, by the second."""

    def __init__(self) -> None:
        self._due: Counter[int] = Counter()

    def add(self, due_s: float, count: int) -> None:
        """So many have been told that time."""
        self._due[int(due_s)] += count

    def outstanding(self, now_s: float) -> int:
        """How many have been told a time that is still to come."""
        for second in [second for second in self._due if second < now_s]:
            del self._due[second]
        return self._due.total()


class AdmissionControl:
    """For one ingress. `in_flight` tells how many sequences it has taken that have not ended, `clock` is a loop's."""

    def __init__(
        self, admission: Admission, links: ReplicaPool, in_flight: Callable[[], int], clock: Callable[[], float]
    ) -> None:
        self._admission = admission
        self._links = links
        self._in_flight = in_flight
        self._clock = clock
        self._promises = Promises()

    def check(self, asked: int) -> None:
        """Raise `QueueFull`, `NoReplica` or `TooManySequences` where `asked` more sequences must not be taken."""
        facts = self._facts(asked)
        verdict = self._admission.decide(facts)
        if isinstance(verdict, Admit):
            return
        if isinstance(verdict, RejectPermanently):
            raise TooManySequences(asked, verdict.limit)
        raise (
            self._links.no_replica(f"{verdict.waiting} requests wait for one")
            if isinstance(verdict, NobodyUp)
            else self._full(facts)
        )

    def refusal(self) -> ServeError:
        """For a sequence that every replica has refused."""
        facts = self._facts(1)
        return self._full(replace(facts, waiting=facts.waiting - 1))  # it is not in front of itself

    def _full(self, facts: Facts) -> QueueFull:
        told = refuse(facts)
        self._promises.add(self._clock() + told.retry_after_s, facts.asked)
        return QueueFull(told.retry_after_s, told.why, measured=told.measured)

    def _facts(self, asked: int) -> Facts:
        links = self._links.taking_work()
        rooms = [link.room(self._admission.max_waiting) for link in links]
        measured = [link for link in links if link.capacity.service_s is not None]
        # Of all their slots together: the mean of the rates, weighed by the slots.
        rate = sum(link.load.max_num_seqs / max(link.capacity.service_s or 0.0, 0.001) for link in measured)
        slots = sum(link.load.max_num_seqs for link in measured)
        return Facts(
            asked=asked,
            held=sum(link.facts().unfinished for link in links),
            room=sum(rooms),
            slots=sum(link.load.max_num_seqs for link in links),
            waiting=self._in_flight() - self._links.attempts(),
            service_s=slots / rate if rate else None,
            promised=self._promises.outstanding(self._clock()),
            ingresses=max((link.capacity.ingresses for link in links), default=1),
            one_room=max(rooms, default=self._links.last_room(self._admission.max_waiting)),
        )
