"""Attempts: how they end, the connection that they run on, and the dispatcher's interfaces (transport, sink, limits).

Nothing here knows Ray (see `router/serve_transport.py`) or vLLM (see `ingress/engine_client.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Protocol

import msgspec

from serve_app.protocol.errors import (
    EngineDead,
    EngineDeadBeside,
    EngineDeadByRequest,
    ReplicaDied,
    ReplicaFull,
    ServeError,
    WrongReplica,
)
from serve_app.protocol.images import SentImages
from serve_app.protocol.liveness import SilenceClock
from serve_app.protocol.messages import (
    NO_LABEL,
    AttemptRequest,
    OnFrame,
    ReplicaCapacity,
    ReplicaInfo,
    ReplicaLabel,
    ReplicaLoad,
    TokenDelta,
)
from serve_app.router.prefix_index import ReplicaCache
from serve_app.router.routing import ReplicaFacts

WATCH_PERIOD_S = 1.0
"""How often connections are checked for silence, and draining replicas for attempts that must move."""

FRAME_PERIOD_S = 0.5
"""A connection has a frame at least so often: the replicas' heartbeat (`engine/replica.py`)."""


DISCOVERY_PERIOD_S = 1.0
"""How often the list of replicas is read, of `LISTED_PER_S` at most. A new one gets its first request so late at the
latest."""

LISTED_PER_S = 32
"""How many replicas are asked a second where there are more: each answers every ingress, and an ingress reads every
answer. What changes fast comes with the frames."""


class End(Enum):
    """How an attempt ended."""

    FINISHED = "finished"
    DIED = "died"
    """The engine died or hung with the attempt in it, or the replica's process ended: the request may be the cause."""
    NAMED = "named"
    """The engine died, and the evidence points at this attempt (`protocol/poison.py`)."""
    BESIDE = "beside"
    """The engine died, and nothing points at this attempt."""
    CANCELLED = "cancelled"
    """The ingress needs no more of it: its client has left, or a stop string has ended it."""
    CUT = "cut"
    """The connection broke or fell silent, or tokens were missing: there is no evidence that anything died."""
    MOVED = "moved"
    """Its replica is stopping, or did not take it: nothing died."""
    PREEMPTED = "preempted"
    """It made room for one of a higher class."""
    REFUSED = "refused"
    """Its replica was full."""
    IMAGES_MISSING = "images missing"
    """Its replica does not have images that it was sent before."""


class ReplicaState(StrEnum):
    """A replica, as an ingress knows it."""

    UP = "up"
    """It takes work."""
    CONNECTING = "connecting"
    """It is listed, and no frame has come yet."""
    LEAVING = "leaving"
    """Its node is about to go: new requests go elsewhere while another one has room."""
    DRAINING = "draining"
    """It is stopping, or its engine is dead."""
    REFUSED = "refused"
    """It runs another version: nothing is sent to it."""


NOT_TAKEN = (End.REFUSED, End.IMAGES_MISSING)
"""Ends of attempts that their replica did not take: they do not count."""

LOST = tuple(end for end in End if end not in (End.FINISHED, End.CANCELLED, End.PREEMPTED, *NOT_TAKEN))
"""How an attempt can be lost. One that is preempted goes on later, a cancelled one not at all: neither migrates."""


def discovery_period_s(replicas: int) -> float:
    """How often the list of so many replicas is read."""
    return max(DISCOVERY_PERIOD_S, replicas / LISTED_PER_S)


class AttemptHandle(Protocol):
    """An attempt on its connection."""

    def end(self, how: End) -> None:
        """The attempt has ended. Only the first call counts."""


@dataclass(eq=False)
class ReplicaConnection:
    """The connection to one replica. `attempts` are this ingress' own, by id; `prefilling` has, of those without a
    token, the flow (client and session) and how many tokens must be computed; `draining_since_s` is a stamp of
    `loop.time()`.

    `deregistered`: Serve no longer routes to it, and may end its process. `leaves_at_s`: when its node goes, where that
    is known, on the same clock (`math.inf`: it goes, nobody said when).
    """

    replica_id: str
    load: ReplicaLoad
    capacity: ReplicaCapacity
    info: ReplicaInfo | None = None
    """Its last answer to a listing; what the status page shows of it."""
    up: bool = False
    draining_since_s: float | None = None
    deregistered: bool = False
    leaves_at_s: float | None = None
    frame_number: int = -1
    last_frame_s: float | None = None
    attempts: dict[str, AttemptHandle] = field(default_factory=dict)
    prefilling: dict[str, tuple[str, int]] = field(default_factory=dict)
    images: SentImages = field(init=False)
    cache: ReplicaCache = field(init=False)
    task: asyncio.Task[None] | None = None
    clock: SilenceClock = field(default_factory=lambda: SilenceClock(WATCH_PERIOD_S))

    def __post_init__(self) -> None:
        self.images = SentImages(self.capacity.image_bytes)
        self.cache = ReplicaCache(self.capacity.kv_cache_tokens, reports=self.capacity.reports_cache)

    @property
    def draining(self) -> bool:
        """Whether the replica is stopping, or cordoned."""
        return self.draining_since_s is not None

    @property
    def state(self) -> ReplicaState:
        """The state of the replica; `REFUSED` is none of a connection's."""
        if self.draining:
            return ReplicaState.DRAINING
        if self.up and self.leaves_at_s is not None:
            return ReplicaState.LEAVING
        return ReplicaState.UP if self.up else ReplicaState.CONNECTING

    def lateness_s(self, now_s: float) -> float:
        """How long ago a frame was due at the latest."""
        return 0.0 if self.last_frame_s is None else max(0.0, now_s - self.last_frame_s - FRAME_PERIOD_S)

    @property
    def label(self) -> ReplicaLabel:
        """Its part of the fleet."""
        return NO_LABEL if self.info is None else self.info.label

    @property
    def takes_work(self) -> bool:
        """Whether a new attempt may be sent here; `departures.usable` has the last word."""
        return self.up and not self.draining

    @property
    def unfinished(self) -> int:
        """How many attempts are there. The last frame does not count what was sent since; this ingress does."""
        return max(len(self.attempts), self.load.unfinished)

    def facts(self, pages: Sequence[int] = (), flow: str = "") -> ReplicaFacts:
        """The replica, as routing sees it for a prompt with these pages, of this client and session."""
        load = self.load
        goes_before = load.queued > 0 and not any(flow == one for one, _ in self.prefilling.values())
        if not load.queued:
            own = sum(tokens for _, tokens in self.prefilling.values())
            before = max(own, load.queued_prefill_tokens)
        elif goes_before:  # who has nothing waiting there is started before others have all of theirs
            before = load.newcomer_prefill_tokens
        else:
            before = load.queued_prefill_tokens
        if self.unfinished != load.unfinished or before != load.queued_prefill_tokens:
            load = msgspec.structs.replace(load, unfinished=self.unfinished, queued_prefill_tokens=before)
        return ReplicaFacts(self.replica_id, load, self.capacity, self.cache.count(pages), goes_before, self.label.pool)

    def begin(
        self, attempt_id: str, attempt: AttemptHandle, pages: Sequence[int], flow: str, prefill_tokens: int
    ) -> None:
        """An attempt for a prompt with these pages is sent there."""
        self.attempts[attempt_id] = attempt
        self.prefilling[attempt_id] = flow, prefill_tokens
        self.cache.expect(pages)

    def finish(self, attempt_id: str, pages: Sequence[int]) -> None:
        """That attempt has ended."""
        self.attempts.pop(attempt_id, None)
        self.prefilling.pop(attempt_id, None)
        self.cache.release(pages)

    def room(self, max_queued_requests: int) -> int:
        """How many attempts it may hold: what it reports, else its slots plus `max_queued_requests`."""
        limit = self.capacity.max_unfinished
        return self.load.max_num_seqs + max_queued_requests if limit is None else limit

    def note_full(self) -> None:
        """The replica has refused an attempt: until its next frame, count it as full."""
        if self.capacity.max_unfinished is not None:
            unfinished = max(self.load.unfinished, self.capacity.max_unfinished)
            self.load = msgspec.structs.replace(self.load, unfinished=unfinished)

    def end_by(self, error: Exception) -> End:
        """How an attempt here ended, from its error. A replica that ends after Serve has deregistered it did not
        crash."""
        if isinstance(error, ReplicaFull):
            return End.REFUSED
        if isinstance(error, WrongReplica) or (isinstance(error, ReplicaDied) and self.deregistered):
            return End.MOVED
        if isinstance(error, EngineDeadByRequest):
            return End.NAMED
        if isinstance(error, EngineDeadBeside):
            return End.BESIDE
        return End.DIED if isinstance(error, EngineDead | ReplicaDied) else End.CUT

    def end_all(self, how: End, limit: int | None = None) -> None:
        """End the attempts here, the oldest first."""
        for attempt in list(self.attempts.values())[:limit]:
            attempt.end(how)


class Transport(Protocol):
    """The connection of this ingress to all engine replicas."""

    async def replicas(self) -> tuple[Sequence[ReplicaInfo], bool]:
        """The replicas that take new work, and whether the list is complete (False: some did not answer)."""

    async def follow(self, replica_id: str, on_frame: OnFrame) -> None:
        """Give `on_frame` the frames of one replica, until cancelled. Raises `ReplicaLost`, `ReplicaDied`,
        `WrongReplica`, and what `on_frame` raises."""

    async def fetch_partial_output(self, resume_key: str) -> list[int]:
        """The longest partial output of a broken stream at any replica (`engine/partial_outputs.py`); empty if none has
        one."""

    async def share_quarantine(self, quarantine: Mapping[str, float]) -> None:
        """Send the names that crashed a replica to every replica. Other ingresses learn them from there
        (`ReplicaInfo.quarantine`)."""

    async def wake(self) -> None:
        """Ask for an engine where there is none; returns when one answers. Raises `EngineCannotStart`,
        `ReplicaLost`."""

    async def run_attempt(self, replica_id: str, attempt: AttemptRequest) -> None:
        """Run an attempt; returns when it has ended there. Cancelling it aborts the attempt on the replica.

        Raises `ReplicaLost`, `ReplicaDied`, `WrongReplica`, `ReplicaFull`, `ImagesMissing`, `EngineDead`,
        `AttemptRefused`.
        """


class DispatcherSink(Protocol):
    """Receives the dispatcher's results. Both methods are called on the event loop and must not block."""

    def deltas(self, deltas: Sequence[tuple[str, TokenDelta]]) -> None:
        """New tokens, by request id, in order."""

    def failed(self, request_id: str, error: ServeError) -> None:
        """A request that gets no more tokens."""


@dataclass(frozen=True)
class DispatcherLimits:
    """When the dispatcher gives a request, a replica or a connection up. `protocol/poison.py` decides on poison.

    A request without a new token for `request_deadline_s` gets no further attempt. A request whose attempts are cut off
    ends when, since its last token, `max_gone_replicas` replicas went silent for good, or after `max_cut_attempts`. (It
    may be the network; it may also be a request that stops its replicas.)

    A connection without a frame for `connection_silence_s` is lost (replicas send a heartbeat every half second). What
    still runs on a draining replica after `drain_timeout_s` moves to another.
    """

    request_deadline_s: float
    quarantine_s: float = 60.0
    """How long a request and its client are refused after they crashed a replica; it doubles each time (see
    `poison.Quarantine`). A minute outlasts a client's own retries; an engine of eight GPUs is back after a few."""
    max_gone_replicas: int = 5
    max_cut_attempts: int = 20
    connection_silence_s: float = 10.0
    drain_timeout_s: float = 120.0
    may_sleep: bool = False
    """Whether there may be no engine while nobody asks (`router/wake.py`)."""
