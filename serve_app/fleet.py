"""The fleet as one ingress sees it: attempts, frames, resume.

A request is a *flight*. It flies in *attempts*, one replica each. An attempt has two halves: a control call, which
returns when the attempt has ended on the replica, and the deltas, which come with the frames of the *link* that this
ingress holds to the replica. A flight lands when a delta says that it has finished. Whatever else ends an attempt (a
dead replica, a broken link, a gap in the positions) starts another one elsewhere, with the prompt and what has been
emitted.

Nothing here knows Ray (that is `Transport`, see `transport.py`) or vLLM (`client.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from serve_app.engine.contract import AttemptRefused, EngineDead
from serve_app.errors import NoReplica, PoisonRequest, RequestRefused, ServeError
from serve_app.routing import ReplicaFacts, affinity_key, choose_replica
from serve_app.wire import WIRE_VERSION, AttemptRequest, Frame, Hello, Load, TokenDelta

logger = logging.getLogger(__name__)

DISCOVERY_PERIOD_S = 1.0
"""How often the list of replicas is read. A new replica gets its first request at most this late."""

LAST_FRAME_S = 5.0
"""How long a finished attempt's last tokens may lag behind its control call. They are on their way on another stream of
the same pair; a longer wait means that the link is broken."""


class ReplicaLost(Exception):
    """A replica, or the way to it, is gone: what ran there must run elsewhere."""


class WrongReplica(Exception):
    """The call landed on another replica than the one meant, which is therefore out of Serve's routing. Nobody died."""


class Transport(Protocol):
    """The way from this ingress to the engine replicas."""

    async def replicas(self) -> tuple[Sequence[Hello], bool]:
        """The replicas that take new work, and whether the list is complete (False: some did not answer)."""

    def frames(self, replica_id: str) -> AsyncGenerator[Frame, None]:
        """The link to one replica, open until closed. Raises `ReplicaLost`, `WrongReplica`."""

    async def run_attempt(self, replica_id: str, attempt: AttemptRequest) -> None:
        """Run an attempt; returns when it has ended there. Cancelling it aborts the attempt on the replica.

        Raises `ReplicaLost`, `WrongReplica`, `EngineDead`, `AttemptRefused`.
        """


@dataclass
class FlightRecord:
    """What became of a request on its way, for its log line. Times are `loop.time()` stamps in seconds."""

    submitted_s: float = 0.0
    dispatched_s: float | None = None
    first_token_s: float | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    replicas: list[str] = field(default_factory=list)
    resumed: int = 0
    error: ServeError | None = None


@dataclass(frozen=True)
class FleetRequest:
    """A request as the fleet flies it. `payload` is the engine's own form of it; the rest is what a resume must
    know."""

    request_id: str
    prompt_token_ids: list[int]
    max_tokens: int
    min_tokens: int
    ignore_eos: bool
    stop_token_ids: list[int]
    priority: int
    payload: list[bytes]
    session_id: str | None
    record: FlightRecord


class FleetSink(Protocol):
    """Where a fleet's results go. Both are called on the event loop and must not block."""

    def deltas(self, deltas: Sequence[tuple[str, TokenDelta]]) -> None:
        """New tokens, by request id, in order."""

    def failed(self, request_id: str, error: ServeError) -> None:
        """A request that will get no more tokens."""


@dataclass(frozen=True)
class FleetLimits:
    """`request_deadline_s` bounds the wait for a replica; `max_lost_replicas` is when a request counts as poison."""

    request_deadline_s: float
    max_lost_replicas: int = 2
    retry_after_s: float = 5.0


@dataclass(eq=False)
class _Link:
    replica_id: str
    load: Load
    up: bool = False
    draining: bool = False
    sequence: int = -1
    flights: dict[str, _Flight] = field(default_factory=dict)
    task: asyncio.Task[None] | None = None

    def facts(self) -> ReplicaFacts:
        # The load of the last frame does not yet know what was sent since: this ingress' own count does.
        unfinished = max(self.load.unfinished, len(self.flights))
        return ReplicaFacts(self.replica_id, unfinished, self.load.max_num_seqs, self.load.kv_usage_ratio)


@dataclass(eq=False)
class _Flight:
    request: FleetRequest
    key: bytes
    emitted: list[int] = field(default_factory=list)
    attempts: int = 0
    lost: int = 0
    ended: asyncio.Future[bool] | None = None
    """Of the current attempt: True when it finished, False when it was lost."""
    task: asyncio.Task[None] | None = None

    def end(self, *, finished: bool) -> None:
        if self.ended is not None and not self.ended.done():
            self.ended.set_result(finished)


class Fleet:
    """Flies requests on whatever replicas there are. Use as an async context manager: leaving it ends every task."""

    def __init__(self, transport: Transport, ingress_id: str, limits: FleetLimits, sink: FleetSink) -> None:
        self._transport = transport
        self._ingress_id = ingress_id
        self._limits = limits
        self._sink = sink
        self._links: dict[str, _Link] = {}
        self._flights: dict[str, _Flight] = {}
        self._attempts: dict[str, _Flight] = {}
        self._changed = asyncio.Event()
        self._look_again = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._spawn(self._discover(), name="fleet-discover")
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- what the ingress asks -------------------------------------------------------------------------------------

    def submit(self, request: FleetRequest) -> None:
        """Start flying a request. Its deltas, or its failure, go to the sink."""
        flight = _Flight(request, affinity_key(request.session_id, request.prompt_token_ids))
        request.record.submitted_s = asyncio.get_running_loop().time()
        request.record.prompt_tokens = len(request.prompt_token_ids)
        self._flights[request.request_id] = flight
        flight.task = self._spawn(self._fly(flight), name=f"flight {request.request_id}")

    def cancel(self, request_id: str) -> None:
        """Stop a request wherever it is. Unknown ids are ignored: it may just have landed."""
        flight = self._flights.get(request_id)
        if flight is not None and flight.task is not None:
            flight.task.cancel()

    @property
    def in_flight(self) -> int:
        """Requests that have not landed."""
        return len(self._flights)

    def replicas_up(self) -> list[ReplicaFacts]:
        """The replicas that can take a request now."""
        return [link.facts() for link in self._links.values() if link.up and not link.draining]

    async def wait_for_replica(self, timeout_s: float) -> None:
        """Return when a replica is up. Raises `NoReplica` after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                while not self.replicas_up():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise NoReplica(timeout_s, self._limits.retry_after_s) from None

    # ---- links -----------------------------------------------------------------------------------------------------

    async def _discover(self) -> None:
        while True:
            self._look_again.clear()
            try:
                hellos, complete = await self._transport.replicas()
            except ReplicaLost as error:
                logger.debug("cannot list the replicas", extra={"error": str(error)})
            else:
                self._reconcile(hellos, complete=complete)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DISCOVERY_PERIOD_S):
                    await self._look_again.wait()

    def _reconcile(self, hellos: Sequence[Hello], *, complete: bool) -> None:
        seen = set()
        for hello in hellos:
            seen.add(hello.replica_id)
            link = self._links.get(hello.replica_id)
            if link is None:
                link = _Link(hello.replica_id, hello.load)
                self._links[hello.replica_id] = link
                link.task = self._spawn(self._follow(link), name=f"link {hello.replica_id}")
            link.draining = hello.load.draining
            self._changed.set()  # Whoever waits for a replica looks again.
        for link in list(self._links.values()):
            if complete and link.replica_id not in seen:
                # Serve has taken it out of routing: it is draining. The link counts as an ongoing request there, so it
                # must go as soon as nothing needs it, or the replica would wait for us until its deadline.
                link.draining = True
            if link.draining and not link.flights and link.task is not None:
                link.task.cancel()

    async def _follow(self, link: _Link) -> None:
        try:
            async with contextlib.aclosing(self._transport.frames(link.replica_id)) as frames:
                async for frame in frames:
                    self._on_frame(link, frame)
        except (ReplicaLost, WrongReplica, EngineDead) as error:
            logger.warning("lost a replica", extra={"replica": link.replica_id, "error": str(error)})
        finally:
            link.up = False
            self._links.pop(link.replica_id, None)
            for flight in list(link.flights.values()):
                flight.end(finished=False)
            self._look_again.set()

    def _on_frame(self, link: _Link, frame: Frame) -> None:
        if frame.sequence != link.sequence + 1:
            raise ReplicaLost(f"frame {frame.sequence} came after {link.sequence}")
        link.sequence = frame.sequence
        link.load = frame.load
        if not link.up:
            link.up = True
            self._changed.set()
        delivered = [pair for delta in frame.deltas if (pair := self._take(delta)) is not None]
        if delivered:
            self._sink.deltas(delivered)

    def _take(self, delta: TokenDelta) -> tuple[str, TokenDelta] | None:
        flight = self._attempts.get(delta.attempt_id)
        if flight is None:
            return None  # Of an attempt that was given up.
        if delta.position != len(flight.emitted):
            logger.error("tokens lost or doubled", extra={"attempt": delta.attempt_id, "position": delta.position})
            del self._attempts[delta.attempt_id]
            flight.end(finished=False)
            return None
        flight.emitted.extend(delta.token_ids)
        record = flight.request.record
        if record.first_token_s is None and delta.token_ids:
            record.first_token_s = asyncio.get_running_loop().time()
        record.output_tokens = len(flight.emitted)
        if delta.cached_tokens is not None and flight.attempts == 1:
            record.cached_tokens = delta.cached_tokens
        if delta.finish_reason is not None:
            del self._attempts[delta.attempt_id]
            flight.end(finished=True)
        return flight.request.request_id, delta

    # ---- flights ---------------------------------------------------------------------------------------------------

    async def _fly(self, flight: _Flight) -> None:
        request_id = flight.request.request_id
        try:
            while not await self._attempt(flight, await self._choose(flight)):
                if flight.lost >= self._limits.max_lost_replicas:
                    raise PoisonRequest(flight.lost)
        except ServeError as error:
            flight.request.record.error = error
            self._sink.failed(request_id, error)
        finally:
            self._flights.pop(request_id, None)

    async def _choose(self, flight: _Flight) -> _Link:
        left_s = flight.request.record.submitted_s + self._limits.request_deadline_s - asyncio.get_running_loop().time()
        if flight.emitted:
            left_s = self._limits.request_deadline_s
        await self.wait_for_replica(max(left_s, 0.0))
        return self._links[choose_replica(self.replicas_up(), flight.key)]

    async def _attempt(self, flight: _Flight, link: _Link) -> bool:
        """One attempt on one replica. True when the flight has landed."""
        flight.attempts += 1
        attempt_id = f"{flight.request.request_id}:{flight.attempts}"
        record = flight.request.record
        record.replicas.append(link.replica_id)
        record.resumed = flight.attempts - 1
        loop = asyncio.get_running_loop()
        if record.dispatched_s is None:
            record.dispatched_s = loop.time()
        flight.ended = ended = loop.create_future()
        self._attempts[attempt_id] = flight
        link.flights[attempt_id] = flight
        attempt = self._transport.run_attempt(link.replica_id, self._wire(flight, attempt_id))
        control = loop.create_task(attempt, name=f"attempt {attempt_id}", context=Context())
        landed = False
        try:
            landed = await self._await_end(flight, link, control, ended)
        finally:
            self._attempts.pop(attempt_id, None)
            link.flights.pop(attempt_id, None)
            await self._settle(control, landed=landed)
        return landed

    async def _await_end(
        self, flight: _Flight, link: _Link, control: asyncio.Task[None], ended: asyncio.Future[bool]
    ) -> bool:
        waiting: set[asyncio.Future[Any]] = {control, ended}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            try:
                control.result()
            except AttemptRefused as error:
                raise RequestRefused(str(error)) from error
            except (WrongReplica, ReplicaLost, EngineDead) as error:
                logger.warning("lost an attempt", extra={"request": flight.request.request_id, "error": str(error)})
                # Until it says otherwise itself: or the next attempt would come straight back here.
                link.draining = True
                self._look_again.set()
                flight.lost += not isinstance(error, WrongReplica)
                return False
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_FRAME_S):
                    await ended
        finished = ended.done() and not ended.cancelled() and ended.result()
        if not finished:
            flight.lost += 1
        return finished

    async def _settle(self, control: asyncio.Task[None], *, landed: bool) -> None:
        """Leave no control call behind: a landed one is about to return by itself, any other is cancelled."""
        if control.done():
            _forget(control)
            return
        if landed:
            self._tasks.add(control)
            control.add_done_callback(self._tasks.discard)
            control.add_done_callback(_forget)
            return
        control.cancel()
        with contextlib.suppress(asyncio.CancelledError, ReplicaLost, WrongReplica, EngineDead, AttemptRefused):
            await control

    def _wire(self, flight: _Flight, attempt_id: str) -> AttemptRequest:
        request = flight.request
        return AttemptRequest(
            wire_version=WIRE_VERSION,
            attempt_id=attempt_id,
            request_id=request.request_id,
            ingress_id=self._ingress_id,
            prompt_token_ids=request.prompt_token_ids,
            emitted_token_ids=list(flight.emitted),
            max_tokens=request.max_tokens,
            min_tokens=request.min_tokens,
            ignore_eos=request.ignore_eos,
            stop_token_ids=request.stop_token_ids,
            priority=request.priority,
            payload=request.payload,
        )

    def _spawn(self, coroutine: Coroutine[object, object, None], *, name: str) -> asyncio.Task[None]:
        # In a context of its own: Serve takes a call's identity from the HTTP request around it, and would take two
        # calls of one request (`n=2`, a resume) for one call made twice.
        task = asyncio.get_running_loop().create_task(coroutine, name=name, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._reap)
        return task

    def _reap(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a task of the fleet failed", exc_info=error, extra={"task": task.get_name()})


def _forget(control: asyncio.Task[None]) -> None:
    """Look at how a control call ended, which nobody needs any more: asyncio complains of errors that nobody saw."""
    if not control.cancelled():
        control.exception()
