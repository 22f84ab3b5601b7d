"""A `Transport` over several others, one for each part of the fleet: the dispatcher sees one set of replicas.

The ids of replicas are unique in all of Serve. A part without a replica that answers does not hide the others, and does
not make the list incomplete for long: a part that never starts must not keep the rest from noticing who has left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from serve_app.protocol.errors import ReplicaLost
from serve_app.protocol.messages import AttemptRequest, OnFrame, ReplicaInfo
from serve_app.protocol.paced_reads import PacedReads
from serve_app.router.attempts import Transport

PATIENCE_LISTINGS = 10
"""After so many listings without an answer, about a second apart, a part has no replicas any more. Until then those
that it had may only be slow to answer."""

KEPT_OWNERS = 4096
"""Replicas whose part is kept, those that were listed last: far more than drain at a time."""


class _Part:
    """One transport, and what its last listings said."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.known: frozenset[str] = frozenset()
        self._unanswered = 0

    async def list(self) -> tuple[Sequence[ReplicaInfo], bool] | ReplicaLost:
        """Its replicas and whether that is all of them, or why they are not known."""
        try:
            infos, complete = await self.transport.replicas()
        except ReplicaLost as error:
            self._unanswered += 1
            if self._unanswered >= PATIENCE_LISTINGS:
                self.known = frozenset()
            return error
        self._unanswered = 0
        found = frozenset(info.replica_id for info in infos)
        self.known = found if complete else self.known | found
        return infos, complete


class CompositeTransport:
    """`Transport` over the parts of a fleet, by name. Parts may come and go. `reads` receives the frames of all that
    have data channels; None: each part its own."""

    def __init__(self, parts: Mapping[str, Transport], reads: PacedReads | None = None) -> None:
        self.reads = reads
        self._parts = {name: _Part(one) for name, one in parts.items()}
        self._owners: dict[str, _Part] = {}
        self._withheld: set[str] = set()

    def add(self, name: str, transport: Transport, *, gives_partial_outputs: bool = True) -> None:
        """A part has come. The next listing has its replicas. A canary's partial outputs are not given to others: they
        do not say whose they are, and a replica of other weights would finish its answers."""
        self._parts[name] = _Part(transport)
        (self._withheld.discard if gives_partial_outputs else self._withheld.add)(name)

    def remove(self, name: str) -> None:
        """A part is gone. Its replicas are no longer listed; attempts on them go on."""
        self._parts.pop(name, None)

    async def replicas(self) -> tuple[Sequence[ReplicaInfo], bool]:
        """See `Transport`. All parts are asked at a time. Raises `ReplicaLost` where none answers."""
        parts = list(self._parts.values())
        answers = await asyncio.gather(*(part.list() for part in parts))
        infos: list[ReplicaInfo] = []
        complete = True
        for part, answer in zip(parts, answers, strict=True):
            if isinstance(answer, ReplicaLost):
                complete = complete and not part.known
                continue
            infos += answer[0]
            complete = complete and answer[1]
            for info in answer[0]:
                self._owners.pop(info.replica_id, None)  # the newest stand last
                self._owners[info.replica_id] = part
        if not infos and (errors := [one for one in answers if isinstance(one, ReplicaLost)]):
            raise errors[0]
        while len(self._owners) > KEPT_OWNERS:
            del self._owners[next(iter(self._owners))]
        return infos, complete

    async def follow(self, replica_id: str, on_frame: OnFrame) -> None:
        """See `Transport`."""
        await self._owner(replica_id).follow(replica_id, on_frame)

    async def fetch_partial_output(self, resume_key: str) -> list[int]:
        """See `Transport`."""
        asked = [part.transport for name, part in self._parts.items() if name not in self._withheld]
        found = await asyncio.gather(*(one.fetch_partial_output(resume_key) for one in asked))
        return max(found, key=len, default=[])

    async def share_quarantine(self, quarantine: Mapping[str, float]) -> None:
        """See `Transport`."""
        await asyncio.gather(*(part.transport.share_quarantine(quarantine) for part in self._parts.values()))

    async def wake(self) -> None:
        """See `Transport`: by the first part, for pools may not sleep."""
        await next(iter(self._parts.values())).transport.wake()

    async def run_attempt(self, replica_id: str, attempt: AttemptRequest) -> None:
        """See `Transport`."""
        await self._owner(replica_id).run_attempt(replica_id, attempt)

    def _owner(self, replica_id: str) -> Transport:
        part = self._owners.get(replica_id)
        if part is None:
            raise ReplicaLost(f"no part of the fleet has listed {replica_id}")
        return part.transport
