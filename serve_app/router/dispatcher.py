"""The fleet as one ingress sees it: attempts, resume.

A request is a *flight*. It flies in *attempts*, one replica each. An attempt has two halves: a control call, which
returns when the attempt has ended on the replica, and the deltas, which come with the frames of the *link* that this
ingress holds to the replica (`router/replica_pool.py`). A flight lands when a delta says that it has finished. Whatever
else ends an attempt (a dead replica, a silent or broken link, a gap in the positions, the end of a drain) starts
another one elsewhere, with the prompt and what has been emitted.

Nothing here knows Ray (that is `Transport`, see `router/serve_transport.py`) or vLLM (`ingress/engine_client.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from array import array
from collections.abc import Coroutine, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any, Self

from serve_app.protocol.attempts import (
    AttemptRefused,
    End,
    EngineDead,
    FleetLimits,
    FleetRequest,
    FleetSink,
    ReplicaFacts,
    ReplicaFull,
    ReplicaLost,
    ReplicaStopping,
    Transport,
    WrongReplica,
)
from serve_app.protocol.errors import CutOff, InQuarantine, PoisonRequest, ServeError, refused_by_engine
from serve_app.protocol.messages import WIRE_VERSION, AttemptRequest, Hello, TokenDelta
from serve_app.protocol.poison import Blame, Quarantine, is_poison
from serve_app.router.admission import Admission
from serve_app.router.admission_control import AdmissionControl
from serve_app.router.migration_throttle import ResumeGate
from serve_app.router.replica_pool import Link, Links, Refusal
from serve_app.router.routing import affinity_key, choose_replica

logger = logging.getLogger(__name__)

BLAME = {End.NAMED: Blame.NAMED, End.DIED: Blame.SUSPECT, End.BESIDE: Blame.BESIDE}

LAST_FRAME_S = 5.0
"""How long a finished attempt's last tokens may lag behind its control call. They are on their way in another frame or
stream of the same pair; a longer wait means that the link is broken."""

ROOM_PERIOD_S = 0.5
"""How often a request that is too late to refuse asks full replicas again: a place may be free with each frame, and an
idle link has one so often."""


@dataclass(eq=False)
class _Flight:
    request: FleetRequest
    key: bytes
    emitted: list[int] = field(default_factory=list)
    attempts: int = 0
    """Those that a replica refused for want of room are not counted."""
    admitted: bool = False
    """Whether a replica has taken it: none refuses it any more."""
    full: set[str] = field(default_factory=set)
    """Replicas that have refused it since it last waited for room."""
    died: dict[str, Blame] = field(default_factory=dict)
    """Replicas that died while it ran there, and how far that is tied to it."""
    cut: list[str] = field(default_factory=list)
    """Where attempts were cut off, since the last one that gave a token."""
    last_token_s: float = 0.0
    """When the last attempt that gave one ended; before that, when the request came."""
    ended: asyncio.Future[End] | None = None
    """Of the current attempt."""
    task: asyncio.Task[None] | None = None

    def end(self, how: End) -> None:
        """See `links.Passenger`."""
        if self.ended is not None and not self.ended.done():
            self.ended.set_result(how)


class Fleet:
    """Flies requests on whatever replicas there are. Use as an async context manager: leaving it ends every task.

    `refusal` says which replicas must get nothing, and why (`router/engine_versions.py`).
    """

    def __init__(
        self,
        transport: Transport,
        ingress_id: str,
        limits: FleetLimits,
        sink: FleetSink,
        admission: Admission | None = None,
        refusal: Refusal = lambda _hello: None,
    ) -> None:
        self._transport = transport
        self._ingress_id = ingress_id
        self._limits = limits
        self._sink = sink
        self._flights: dict[str, _Flight] = {}
        self._attempts: dict[str, _Flight] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._quarantine = Quarantine(limits.quarantine_s)
        self._gate = ResumeGate(lambda: len(self._links.up()))
        self._links = Links(transport, limits, self._spawn, self._on_deltas, self._gate.look, self._greet)
        self._refusal = refusal
        self._admission = AdmissionControl(
            admission or Admission(), self._links, lambda: len(self._flights), _loop_time
        )

    async def __aenter__(self) -> Self:
        self._links.start()
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
        request.record.submitted_s = flight.last_token_s = asyncio.get_running_loop().time()
        request.record.prompt_tokens = len(request.prompt_token_ids)
        self._flights[request.request_id] = flight
        flight.task = self._spawn(self._fly(flight), f"flight {request.request_id}")
        flight.task.add_done_callback(lambda task: self._land(flight, task))

    def check_room(self, asked: int) -> None:
        """Raise `QueueFull`, `NoReplica` or `TooManySequences` where `asked` more requests must not be submitted."""
        self._admission.check(asked)

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
        return self._links.up()

    def replicas_refused(self) -> list[str]:
        """Why nothing is sent to replicas that are there, a sentence for each."""
        return self._links.refused

    async def wait_for_replica(self, timeout_s: float) -> None:
        """Return when a replica is up. Raises `NoReplica` after `timeout_s`."""
        await self._links.wait_for_one(timeout_s)

    # ---- tokens ----------------------------------------------------------------------------------------------------

    def _on_deltas(self, deltas: Sequence[TokenDelta]) -> None:
        delivered = [pair for delta in deltas if (pair := self._take(delta)) is not None]
        if delivered:
            self._sink.deltas(delivered)

    def _take(self, delta: TokenDelta) -> tuple[str, TokenDelta] | None:
        flight = self._attempts.get(delta.attempt_id)
        if flight is None:
            return None  # Of an attempt that was given up.
        if delta.position != len(flight.emitted):
            logger.error("tokens lost or doubled", extra={"attempt": delta.attempt_id, "position": delta.position})
            del self._attempts[delta.attempt_id]
            flight.end(End.CUT)
            return None
        flight.emitted.extend(delta.token_ids)
        record = flight.request.record
        if record.first_token_s is None and delta.token_ids:
            record.first_token_s = asyncio.get_running_loop().time()
        record.output_tokens = len(flight.emitted)
        if delta.cached_tokens is not None and delta.position == 0:
            record.cached_tokens = delta.cached_tokens
        if flight.attempts > 1:
            self._gate.leave(flight)
        if delta.finish_reason is not None:
            del self._attempts[delta.attempt_id]
            flight.end(End.FINISHED)
        return flight.request.request_id, delta

    # ---- flights ---------------------------------------------------------------------------------------------------

    async def _fly(self, flight: _Flight) -> None:
        request_id = flight.request.request_id
        try:
            self._refuse_in_quarantine(flight)
            if flight.request.takes_up:
                await self._take_up(flight)
            while not await self._attempt(flight, await self._choose(flight)):
                self._check_losses(flight)
        except ServeError as error:
            self._fail(flight, error)
        finally:
            self._gate.leave(flight)
            self._flights.pop(request_id, None)

    async def _take_up(self, flight: _Flight) -> None:
        """Begin with what a broken stream had said, as if an attempt of this flight had."""
        request = flight.request
        flight.emitted = await self._transport.left_of(request.takes_up)
        if flight.emitted:
            flight.admitted = True
            record = request.record
            record.first_token_s = asyncio.get_running_loop().time()
            record.output_tokens = record.taken_up_tokens = len(flight.emitted)
            self._sink.deltas([(request.request_id, TokenDelta("", 0, list(flight.emitted)))])

    def _check_losses(self, flight: _Flight) -> None:
        """Raises `PoisonRequest`, `CutOff` where there must not be another attempt."""
        limits = self._limits
        deaths = [how for replica_id, how in flight.died.items() if not self._links.serves(replica_id)]
        if is_poison(deaths):
            now_s = asyncio.get_running_loop().time()
            self._quarantine.add(self._names(flight.request), now_s)
            self._spawn(self._transport.hold_against(self._quarantine.remaining(now_s)), "quarantine")
            raise PoisonRequest(len(deaths))
        if len(flight.cut) >= limits.max_cut_attempts or self._gone(set(flight.cut)) >= limits.max_gone_replicas:
            raise CutOff(len(flight.cut), limits.link_silence_s)  # by then it is known who is silent

    def _greet(self, hello: Hello) -> str | None:
        """Take over what other ingresses have told a replica, and say why nothing may be sent to it, if so."""
        if hello.quarantine:
            self._quarantine.learn(hello.quarantine, asyncio.get_running_loop().time())
        return self._refusal(hello)

    def _refuse_in_quarantine(self, flight: _Flight) -> None:
        """Raises `PoisonRequest` for a request that has cost a replica, `InQuarantine` for a client that has."""
        if self._quarantine.is_empty:
            return
        now_s = asyncio.get_running_loop().time()
        prompt, *clients = self._names(flight.request)
        if self._quarantine.left_s([prompt], now_s):
            raise PoisonRequest(1)
        if (left_s := self._quarantine.left_s(clients, now_s)) > 0:
            raise InQuarantine(left_s)

    @staticmethod
    def _names(request: FleetRequest) -> list[str]:
        """What may be held against: the prompt, and its client where one is known."""
        client = [f"client {request.client}"] if request.client else []
        return [f"prompt {hashlib.blake2b(array('i', request.prompt_token_ids), digest_size=16).hexdigest()}", *client]

    def _gone(self, replica_ids: set[str]) -> int:
        """How many of them do not serve. One that serves again has not died: its connection broke, or it was slow."""
        return sum(not self._links.serves(replica_id) for replica_id in replica_ids)

    def _land(self, flight: _Flight, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            # A fault of ours, which `_reap` logs. The client must not wait for ever.
            self._fail(flight, ServeError("The server failed while it worked on this request."))

    def _fail(self, flight: _Flight, error: ServeError) -> None:
        flight.request.record.error = error
        self._sink.failed(flight.request.request_id, error)

    async def _choose(self, flight: _Flight) -> Link:
        """The replica for the next attempt, when it is this flight's turn. Raises `NoReplica` at its deadline, and
        `QueueFull` where all have refused it."""
        if flight.full and all(facts.replica_id in flight.full for facts in self._links.up()):
            if not flight.request.answer_begun():
                raise self._admission.refusal()
            await asyncio.sleep(ROOM_PERIOD_S)
            flight.full.clear()
        now_s = asyncio.get_running_loop().time()
        left_s = flight.last_token_s + self._limits.request_deadline_s - now_s
        if left_s <= 0:  # though there may be replicas: it gets nowhere on them
            raise self._links.no_replica(f"waited {self._limits.request_deadline_s:.0f} s")
        # One that has begun waits: where versions change one by one, a replica of its own may be on its way.
        await self._links.wait_for_one(left_s, patient=flight.attempts > 0)
        try:
            async with asyncio.timeout_at(now_s + left_s):
                if flight.attempts:
                    self._gate.leave(flight)
                    tokens = len(flight.request.prompt_token_ids) + len(flight.emitted)
                    await self._gate.enter(flight, tokens)
                else:
                    await self._gate.until_nobody_waits()
                await self._links.wait_for_one(left_s)  # they may have gone while it waited for its turn
        except TimeoutError:
            raise self._links.no_replica(f"waited {left_s:.0f} s") from None
        up = self._links.up()
        return self._links[choose_replica([one for one in up if one.replica_id not in flight.full] or up, flight.key)]

    async def _attempt(self, flight: _Flight, link: Link) -> bool:
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
        had = len(flight.emitted)
        self._attempts[attempt_id] = flight
        link.attempts[attempt_id] = flight
        attempt = self._transport.run_attempt(link.replica_id, self._wire(flight, attempt_id))
        control = loop.create_task(attempt, name=f"attempt {attempt_id}", context=Context())
        how = End.CUT
        try:
            how = await self._await_end(flight, link, control, ended)
        finally:
            self._attempts.pop(attempt_id, None)
            link.attempts.pop(attempt_id, None)
            await self._settle(control, landed=how is End.FINISHED)
        if len(flight.emitted) > had:
            flight.last_token_s = loop.time()
            flight.cut.clear()
        if how is End.REFUSED:
            flight.attempts -= 1
            record.replicas.pop()
            record.dispatched_s = record.dispatched_s if flight.attempts else None
        else:
            flight.full.clear()
        if how in BLAME:
            flight.died[link.replica_id] = BLAME[how]
        elif how is End.CUT:
            flight.cut.append(link.replica_id)
        return how is End.FINISHED

    async def _await_end(
        self, flight: _Flight, link: Link, control: asyncio.Task[None], ended: asyncio.Future[End]
    ) -> End:
        waiting: set[asyncio.Future[Any]] = {control, ended}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done() and not control.cancelled():
            try:
                control.result()
            except AttemptRefused as error:
                raise refused_by_engine(str(error)) from error
            except ReplicaFull:
                flight.full.add(link.replica_id)
                link.note_full()
                return End.REFUSED
            except (WrongReplica, ReplicaLost, EngineDead) as error:
                flight.admitted |= not isinstance(error, WrongReplica) or isinstance(error, ReplicaStopping)
                logger.warning("lost an attempt", extra={"request": flight.request.request_id, "error": str(error)})
                how = link.end_by(error)
                # Until it says otherwise itself: or the next attempt would come straight back here.
                self._links.avoid(link, dismissed=how is End.MOVED)
                return how
            await asyncio.wait({ended}, timeout=LAST_FRAME_S)
        flight.admitted = True
        return ended.result() if ended.done() else End.CUT

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
        with contextlib.suppress(
            asyncio.CancelledError, ReplicaLost, WrongReplica, ReplicaFull, EngineDead, AttemptRefused
        ):
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
            claim=request.claim,
            admitted=flight.admitted,
        )

    def _spawn(self, coroutine: Coroutine[object, object, None], name: str) -> asyncio.Task[None]:
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


def _loop_time() -> float:
    return asyncio.get_running_loop().time()


def _forget(control: asyncio.Task[None]) -> None:
    """Look at how a control call ended, which nobody needs any more: asyncio complains of errors that nobody saw."""
    if not control.cancelled():
        control.exception()
