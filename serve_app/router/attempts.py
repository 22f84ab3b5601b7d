"""How an attempt ends, and what the dispatcher expects of its transport and of the sink for its results.

Nothing here knows Ray (see `router/serve_transport.py`) or vLLM (see `ingress/engine_client.py`).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from serve_app.protocol.errors import ServeError
from serve_app.protocol.messages import AttemptRequest, Frame, ReplicaInfo, ReplicaLoad, TokenDelta


class End(Enum):
    """How an attempt ended."""

    FINISHED = "finished"
    DIED = "died"
    """The engine died or hung with the attempt in it, or the replica's process ended: the request may be the cause."""
    NAMED = "named"
    """The engine died, and the evidence points at this attempt (`protocol/poison.py`)."""
    BESIDE = "beside"
    """The engine died, and nothing points at this attempt."""
    CUT = "cut"
    """The connection broke or fell silent, or tokens were missing: there is no evidence that anything died."""
    MOVED = "moved"
    """Its replica is stopping, or did not take it: nothing died."""
    REFUSED = "refused"
    """Its replica was full."""


@dataclass(frozen=True)
class ReplicaFacts:
    """What routing must know of a replica. Its `load` counts the attempts just sent and not yet reported, too."""

    replica_id: str
    load: ReplicaLoad


class Transport(Protocol):
    """The connection of this ingress to all engine replicas."""

    async def replicas(self) -> tuple[Sequence[ReplicaInfo], bool]:
        """The replicas that take new work, and whether the list is complete (False: some did not answer)."""

    def frames(self, replica_id: str) -> AsyncGenerator[Frame, None]:
        """The frames of one replica, until closed. Raises `ReplicaLost`, `ReplicaDied`, `WrongReplica`."""

    async def fetch_partial_output(self, resume_key: str) -> list[int]:
        """The longest partial output of a broken stream at any replica (`engine/partial_outputs.py`); empty if none has
        one."""

    async def share_quarantine(self, quarantine: Mapping[str, float]) -> None:
        """Send the names that crashed a replica to every replica. Other ingresses learn them from there
        (`ReplicaInfo.quarantine`)."""

    async def run_attempt(self, replica_id: str, attempt: AttemptRequest) -> None:
        """Run an attempt; returns when it has ended there. Cancelling it aborts the attempt on the replica.

        Raises `ReplicaLost`, `ReplicaDied`, `WrongReplica`, `ReplicaFull`, `EngineDead`, `AttemptRefused`.
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
