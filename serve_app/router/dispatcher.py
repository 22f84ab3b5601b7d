"""Dispatches requests to engine replicas, and migrates them to another replica when one is lost.

A request runs in *attempts*, one replica each. An attempt has two halves: a control call, which returns when the
attempt has ended on the replica, and the deltas, which come with the frames of this ingress' connection to the replica
(`router/replica_pool.py`). A request is complete when a delta says that it has finished. Whatever else ends an attempt
(a dead replica, a silent or broken connection, a gap in the positions, the end of a drain) starts another one on
another replica, with the prompt and the tokens so far.

Nothing here knows Ray (see `router/serve_transport.py`) or vLLM (see `ingress/engine_client.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
from collections import Counter, deque
from collections.abc import Coroutine, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any, Self

from msgspec import structs

from serve_app.protocol.errors import (
    AttemptRefused,
    CutOff,
    EngineDead,
    ImagesMissing,
    InQuarantine,
    PoisonRequest,
    Preempted,
    ReplicaFull,
    ReplicaLost,
    ReplicaStopping,
    ServeError,
    WaitedTooLong,
    WrongReplica,
    refused_by_engine,
)
from serve_app.protocol.messages import WIRE_VERSION, AttemptRequest, ReplicaInfo, ReplicaLabel, TokenDelta
from serve_app.protocol.poison import Blame, Quarantine, is_poison
from serve_app.protocol.service_class import Holder, holds_little
from serve_app.protocol.trace_context import new_span_id
from serve_app.router.admission import Admission
from serve_app.router.admission_control import AdmissionControl, AdmissionDecision
from serve_app.router.attempts import (
    LOST,
    NOT_TAKEN,
    DispatcherLimits,
    DispatcherSink,
    End,
    ReplicaConnection,
    ReplicaState,
    Transport,
)
from serve_app.router.canary_arm import CanaryArm, is_exact
from serve_app.router.departures import FindDepartures, no_departures
from serve_app.router.fleet_state import FleetFacts, queue_sentence
from serve_app.router.migration_throttle import MigrationThrottle
from serve_app.router.replica_choice import ReplicaChoice
from serve_app.router.replica_pool import FindIncompatibility, ReplicaPool
from serve_app.router.request_context import AttemptTrace, Migration, SubmittedRequest, WaitedFor
from serve_app.router.routing import Decision, PromptFacts, ReplicaFacts

logger = logging.getLogger(__name__)

BLAME = {End.NAMED: Blame.NAMED, End.DIED: Blame.SUSPECT, End.BESIDE: Blame.BESIDE}

LAST_FRAME_S = 5.0
"""How long the last tokens of a finished attempt may come after its control call, which goes another way. A longer wait
means that the connection is broken."""

WEIGHTS = "weights"
"""What an answer does not carry exactly to a replica of another checkpoint (`RequestTrace.inexact`)."""

WORTH_SAYING_S = 0.01
"""A shorter wait for migrations is a turn of the event loop."""

KEPT_MIGRATIONS = 50
"""How many of the last migrations are kept for the status page."""

ROOM_PERIOD_S = 0.5
"""How often a request that can no longer be refused tries full replicas again: frames may free a place, and an idle
connection has one so often."""


@dataclass(eq=False)
class _ActiveRequest:
    request: SubmittedRequest
    prompt: PromptFacts
    connection: ReplicaConnection | None = None
    """Where its current attempt runs."""
    emitted: list[int] = field(default_factory=list)
    attempts: int = 0
    """Attempts that a replica refused for lack of room are not counted."""
    admitted: bool = False
    """Whether a replica has taken it: then no replica refuses it for lack of room."""
    was_preempted: bool = False
    """Whether an attempt of it has made room for another request: none does so again."""
    in_no_hurry: bool = False
    """Whether none has given a token since: the next one takes nobody's turn."""
    full: set[str] = field(default_factory=set)
    """Replicas that have refused it since it last waited for room."""
    died: dict[str, Blame] = field(default_factory=dict)
    """Replicas that died with it in them, and how far the evidence points at it."""
    cut: list[str] = field(default_factory=list)
    """Replicas whose attempts were cut off, since the last attempt that gave a token."""
    begun: ReplicaLabel | None = None
    """The part of the fleet that its tokens are from."""
    last_token_s: float = 0.0
    """When the last attempt that gave a token ended; before that, when the request came."""
    ended: asyncio.Future[End] | None = None
    """The end of the current attempt."""
    lost_by: End | None = None
    """How the last attempt was lost, until another one begins."""
    task: asyncio.Task[None] | None = None

    def end(self, how: End) -> None:
        """See `AttemptHandle` in `router/replica_pool.py`."""
        if self.ended is not None and not self.ended.done():
            self.ended.set_result(how)

    def note_end(self, how: End, replica_id: str) -> None:
        """An attempt on that replica has ended so."""
        self.was_preempted |= how is End.PREEMPTED
        self.in_no_hurry |= how is End.PREEMPTED
        if how in BLAME:
            self.died[replica_id] = BLAME[how]
        elif how is End.CUT:
            self.cut.append(replica_id)
        self.lost_by = how if how in LOST else None


class Dispatcher:
    """Runs requests on the replicas that are up. Use as an async context manager: leaving it ends every task.

    `incompatibility` says which replicas must get nothing, and why (`router/routing.py`), `find_departures` which nodes
    are about to go (`router/departures.py`).
    """

    def __init__(
        self,
        transport: Transport,
        ingress_id: str,
        limits: DispatcherLimits,
        sink: DispatcherSink,
        admission: Admission | None = None,
        incompatibility: FindIncompatibility = lambda _info: None,
        choice: ReplicaChoice | None = None,
        find_departures: FindDepartures = no_departures,
    ) -> None:
        self._transport = transport
        self._ingress_id = ingress_id
        self._limits = limits
        self._sink = sink
        self._active: dict[str, _ActiveRequest] = {}
        self._attempts: dict[str, _ActiveRequest] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._migrations: deque[Migration] = deque(maxlen=KEPT_MIGRATIONS)
        self._quarantine = Quarantine(limits.quarantine_s)
        self.migrations_by_cause: Counter[End] = Counter()
        """Attempts that took over from a lost one, by how that was lost."""
        self._throttle = MigrationThrottle(lambda: len(self._pool.taking_work()))
        self._pool = ReplicaPool(
            transport,
            limits,
            self._spawn,
            self._on_deltas,
            self._throttle.admit_waiting,
            self._accept_info,
            find_departures,
        )
        self._incompatibility = incompatibility
        self._choice = choice or ReplicaChoice()
        self.canary = CanaryArm()
        self._admission = AdmissionControl(admission or Admission(), self._pool, lambda: len(self._active), _loop_time)

    async def __aenter__(self) -> Self:
        self._pool.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- what the ingress asks -------------------------------------------------------------------------------------

    def submit(self, request: SubmittedRequest) -> None:
        """Start a request. Its deltas, or its failure, go to the sink."""
        active = _ActiveRequest(request, self._choice.facts(request))
        request.trace.submitted_s = active.last_token_s = asyncio.get_running_loop().time()
        request.trace.prompt_tokens = request.spec.prompt_tokens
        self._active[request.spec.request_id] = active
        active.task = self._spawn(self._dispatch(active), f"request {request.spec.request_id}")
        active.task.add_done_callback(lambda task: self._complete(active, task))

    def check_room(self, asked: int, holder: Holder | None = None) -> None:
        """Raise `QueueFull`, `NoReplica` or `TooManySequences` where `asked` more requests of a client must not be
        submitted."""
        client = holder or Holder("")
        self._admission.check(asked, lambda: holds_little(client, asked, self._held()))

    def _held(self) -> list[Holder]:
        specs = (active.request.spec for active in self._active.values())
        return [Holder(spec.client, spec.rank, spec.weight) for spec in specs]

    def cancel(self, request_id: str) -> None:
        """Stop a request wherever it is. Unknown ids are ignored: the request may just have completed."""
        active = self._active.get(request_id)
        if active is not None and active.task is not None:
            active.task.cancel()

    @property
    def in_flight(self) -> int:
        """Requests that are not complete."""
        return len(self._active)

    def replicas_up(self) -> list[ReplicaFacts]:
        """The replicas that can take a request now."""
        return self._pool.up()

    def replicas_refused(self) -> list[str]:
        """Why some replicas get nothing, a sentence for each."""
        return list(self._pool.refused.values())

    @property
    def refused(self) -> dict[str, str]:
        """The same by replica id."""
        return self._pool.refused

    def connections(self) -> list[ReplicaConnection]:
        """The connections to all replicas that are listed and not refused."""
        return self._pool.connections()

    @property
    def migrations(self) -> list[Migration]:
        """The last migrations of this ingress' requests, the oldest first."""
        return list(self._migrations)

    def index_bytes(self) -> int:
        """About how much memory the index of the replicas' caches takes."""
        return self._choice.size_bytes() + sum(one.cache.size_bytes() for one in self._pool.taking_work())

    def replicas_by_state(self) -> Mapping[ReplicaState, int]:
        """How many replicas this ingress knows in each state."""
        return self._pool.by_state()

    def frame_lateness_s(self) -> float:
        """How late a frame was, the worst of the last ten seconds."""
        return self._pool.lateness_s()

    def admission_decisions(self) -> Mapping[AdmissionDecision, int]:
        """How many requests were admitted or refused, by the decision."""
        return self._admission.decisions

    def inflight_tokens(self) -> int:
        """Tokens of the requests that are not complete: prompts, and answers so far."""
        return sum(one.request.trace.prompt_tokens + len(one.emitted) for one in self._active.values())

    def queued(self) -> int:
        """How many requests, of all ingresses, wait at the replicas."""
        return sum(one.load.queued for one in self._pool.taking_work())

    def fleet(self) -> FleetFacts:
        """Whether there is an engine, or about when there will be one."""
        return self._pool.fleet()

    def note_failed_starts(self, reason: str) -> None:
        """Engines fail to start: requests end that wait for one, where there may be none."""
        self._pool.note_failed_starts(reason)

    async def wait_for_replica(self, timeout_s: float) -> None:
        """Return when a replica is up. Raises `NoReplica` after `timeout_s`."""
        await self._pool.wait_for_one(timeout_s)

    # ---- tokens ----------------------------------------------------------------------------------------------------

    def _on_deltas(self, deltas: Sequence[TokenDelta]) -> None:
        now_s = asyncio.get_running_loop().time()
        delivered = [pair for delta in deltas if (pair := self._take(delta, now_s)) is not None]
        if delivered:
            self._sink.deltas(delivered)

    def _take(self, delta: TokenDelta, now_s: float) -> tuple[str, TokenDelta] | None:
        active = self._attempts.get(delta.attempt_id)
        if active is None or active.ended is None or active.ended.done():
            return None  # of an attempt that has ended: its tokens are generated again
        if delta.position != len(active.emitted):
            logger.error("tokens missing or repeated", extra={"attempt": delta.attempt_id, "position": delta.position})
            del self._attempts[delta.attempt_id]
            active.end(End.CUT)
            return None
        active.emitted.extend(delta.token_ids)
        if active.connection is not None:
            active.connection.prefilling.pop(delta.attempt_id, None)
        trace = active.request.trace
        if trace.first_token_s is None and delta.token_ids:
            trace.first_token_s = now_s
            trace.waits_for = lambda: ""
        if active.attempts > 1 and trace.attempts[-1].first_token_s is None:
            self._note_migration(active)
        trace.attempts[-1].take(delta, now_s)
        trace.output_tokens = len(active.emitted)
        if delta.cached_tokens is not None and delta.position == 0:
            trace.cached_tokens = delta.cached_tokens
        if active.attempts > 1:
            self._throttle.leave(active)
        if delta.finish_reason is not None:
            del self._attempts[delta.attempt_id]
            active.end(End.FINISHED)
        return active.request.spec.request_id, delta

    def _note_migration(self, active: _ActiveRequest) -> None:
        """Keep it for the status page, where the last attempt was lost and not preempted."""
        request, (*_, lost, now) = active.request, active.request.trace.attempts
        if lost.end == End.PREEMPTED.value:
            return
        name = request.http_request_id or request.spec.request_id
        self._migrations.append(
            Migration(time.time(), name, request.spec.client, lost.replica_id, now.replica_id, lost.end)
        )

    # ---- requests --------------------------------------------------------------------------------------------------

    async def _dispatch(self, active: _ActiveRequest) -> None:
        request_id = active.request.spec.request_id
        try:
            self._refuse_in_quarantine(active)
            if active.request.resumes_key:
                await self._resume_partial_output(active)
            while not await self._attempt(active, await self._choose(active)):
                self._check_losses(active)
        except ServeError as error:
            self._fail(active, error)
        finally:
            self._throttle.leave(active)
            self._active.pop(request_id, None)

    async def _resume_partial_output(self, active: _ActiveRequest) -> None:
        """Begin with the tokens of the broken stream, as if an attempt of this request had produced them."""
        request = active.request
        active.emitted = await self._transport.fetch_partial_output(request.resumes_key)
        if active.emitted:
            active.admitted = True
            trace = request.trace
            trace.first_token_s = asyncio.get_running_loop().time()
            trace.output_tokens = trace.resumed_tokens = len(active.emitted)
            self._sink.deltas([(request.spec.request_id, TokenDelta("", 0, list(active.emitted)))])

    def _check_losses(self, active: _ActiveRequest) -> None:
        """Raises `PoisonRequest` or `CutOff` where there must not be another attempt."""
        limits = self._limits
        deaths = [how for replica_id, how in active.died.items() if not self._pool.serves(replica_id)]
        if is_poison(deaths):
            now_s = asyncio.get_running_loop().time()
            self._quarantine.add(self._names(active.request), now_s)
            self._spawn(self._transport.share_quarantine(self._quarantine.remaining(now_s)), "quarantine")
            raise PoisonRequest(len(deaths))
        if len(active.cut) >= limits.max_cut_attempts or self._gone(set(active.cut)) >= limits.max_gone_replicas:
            raise CutOff(len(active.cut), limits.connection_silence_s)  # by then silent replicas are known

    def _accept_info(self, info: ReplicaInfo) -> str | None:
        """Learn the quarantine that other ingresses have sent to a replica. Returns why the replica must get nothing,
        if so."""
        if info.quarantine:
            self._quarantine.learn(info.quarantine, asyncio.get_running_loop().time())
        return self._incompatibility(info)

    def _refuse_in_quarantine(self, active: _ActiveRequest) -> None:
        """Raises `PoisonRequest` for a request that crashed a replica, `InQuarantine` for a client whose request
        did."""
        if self._quarantine.is_empty:
            return
        now_s = asyncio.get_running_loop().time()
        prompt, *clients = self._names(active.request)
        if self._quarantine.remaining_s([prompt], now_s):
            raise PoisonRequest(1)
        if (left_s := self._quarantine.remaining_s(clients, now_s)) > 0:
            raise InQuarantine(left_s)

    @staticmethod
    def _names(request: SubmittedRequest) -> list[str]:
        """The names that a quarantine may hold: the prompt's, and the client's where it is known."""
        client = [f"client {request.spec.client}"] if request.spec.client else []
        return [
            f"prompt {hashlib.blake2b(request.spec.prompt, digest_size=16).hexdigest()}",
            *client,
        ]

    def _gone(self, replica_ids: set[str]) -> int:
        """How many of them take no work. One that takes work again has not died: its connection broke, or it was
        slow."""
        return sum(not self._pool.serves(replica_id) for replica_id in replica_ids)

    def _complete(self, active: _ActiveRequest, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            # A bug here, which `_reap` logs. The client must not wait forever.
            self._fail(active, ServeError("The server failed while it worked on this request."))

    def _fail(self, active: _ActiveRequest, error: ServeError) -> None:
        active.request.trace.error = error
        self._sink.failed(active.request.spec.request_id, error)

    async def _choose(self, active: _ActiveRequest) -> AttemptTrace:
        """The replica for the next attempt, and why, when it is this request's turn.

        Raises `NoReplica` at its deadline, and `QueueFull` where all replicas have refused it, and none took it before.
        """

        def eligible() -> list[ReplicaConnection]:
            return self._eligible(active)

        active.request.trace.waits_for = self._pool.waits_for
        waited_for = WaitedFor.NOTHING if eligible() else WaitedFor.REPLICA
        if active.full and all(one.replica_id in active.full for one in eligible()):
            if not (active.admitted or active.emitted or active.request.answer_begun()):
                raise self._admission.refusal()
            waited_for = WaitedFor.ROOM
            await asyncio.sleep(ROOM_PERIOD_S)
            active.full.clear()
        now_s = asyncio.get_running_loop().time()
        left_s = active.last_token_s + self._limits.request_deadline_s - now_s
        if left_s <= 0:  # also with replicas up: it got no token from them
            raise self._pool.no_replica(f"waited {self._limits.request_deadline_s:.0f} s")
        # A request that has begun waits: in a rolling upgrade a replica of its version may be starting.
        await self._pool.wait_for_one(left_s, eligible, patient=active.attempts > 0)
        try:
            async with asyncio.timeout_at(now_s + left_s):
                if active.attempts and not active.in_no_hurry:
                    self._throttle.leave(active)
                    tokens = active.request.spec.prompt_tokens + len(active.emitted)
                    await self._throttle.enter(active, tokens)
                elif not active.attempts:
                    await self._throttle.until_nobody_waits()
                if asyncio.get_running_loop().time() - now_s > WORTH_SAYING_S and waited_for is WaitedFor.NOTHING:
                    waited_for = WaitedFor.MIGRATIONS
                await self._pool.wait_for_one(left_s, eligible)  # they may be gone since
        except TimeoutError:
            raise self._pool.no_replica(f"waited {left_s:.0f} s") from None
        up = eligible()
        candidates = [one for one in up if one.replica_id not in active.full] or up
        decision = self._choice.choose(candidates, active.prompt, len(active.emitted))
        return self._trace(self._pool[decision.replica_id], decision, waited_for)

    @staticmethod
    def _trace(connection: ReplicaConnection, decision: Decision, waited_for: WaitedFor) -> AttemptTrace:
        load = connection.load
        return AttemptTrace(
            decision.replica_id,
            asyncio.get_running_loop().time(),
            decision,
            waited_for,
            max(load.unfinished, len(connection.attempts)),
            load.max_num_seqs,
            load.kv_usage_ratio,
            pool=connection.label.pool,
            on_canary=connection.label.is_canary,
        )

    def _eligible(self, active: _ActiveRequest) -> list[ReplicaConnection]:
        """The replicas that are up and may take its next attempt (`router/canary_arm.py`). Raises `WeightsGone`."""
        self.canary.check(active.begun, self._pool.connections())
        return self.canary.eligible(self._pool.taking_work(), active.request.who, active.begun, active.full)

    async def _attempt(self, active: _ActiveRequest, chosen: AttemptTrace) -> bool:
        """One attempt on one replica. True when the request is complete."""
        connection, prefill_tokens = self._pool[chosen.replica_id], chosen.routing.missing_tokens
        active.attempts += 1
        attempt_id = f"{active.request.spec.request_id}:{active.attempts}"
        trace = active.request.trace
        trace.attempts.append(chosen)
        loop = asyncio.get_running_loop()
        active.ended = ended = loop.create_future()
        had = len(active.emitted)
        self._note_begin(active, connection)
        self._attempts[attempt_id] = active
        attempt = self._attempt_request(active, attempt_id, connection, chosen)
        active.connection = connection
        connection.begin(attempt_id, active, active.request.pages, active.request.flow, prefill_tokens)
        call = self._transport.run_attempt(connection.replica_id, attempt)
        control = loop.create_task(call, name=f"attempt {attempt_id}", context=Context())
        how = End.CUT
        try:
            how = await self._await_end(active, connection, control, ended)
        except asyncio.CancelledError:
            how = End.CANCELLED
            raise
        except ServeError:
            how = End.REFUSED
            raise
        finally:
            self._attempts.pop(attempt_id, None)
            connection.finish(attempt_id, active.request.pages)
            chosen.ended_s, chosen.end = loop.time(), how.value
            await self._settle(control, finished=how is End.FINISHED)
        if len(active.emitted) > had:
            active.last_token_s = loop.time()
            active.begun = connection.label
            active.cut.clear()
            active.in_no_hurry = False
        if how in NOT_TAKEN:
            active.attempts -= 1
            trace.attempts.pop()
        else:
            self._note_taken(active)
        active.note_end(how, connection.replica_id)
        return how is End.FINISHED

    def _note_taken(self, active: _ActiveRequest) -> None:
        """An attempt that a replica took has ended."""
        active.full.clear()
        if len(active.request.trace.attempts) == 1:
            self.canary.count(active.request.trace.arm)

    def _note_begin(self, active: _ActiveRequest, connection: ReplicaConnection) -> None:
        """An attempt begins at this replica. One that no replica takes counts as a migration, too, and the next one
        then does not again."""
        label = connection.label
        if active.lost_by is not None:
            self.migrations_by_cause[active.lost_by] += 1
            active.lost_by = None
        trace = active.request.trace
        if trace.first_token_s is None:
            trace.waits_for = lambda: queue_sentence(connection.load)
        if len(trace.attempts) == 1:  # the first, or the first that a replica may take
            trace.arm = self.canary.of(active.request.who, label).value
        if active.begun is not None and not is_exact(active.begun, label) and WEIGHTS not in trace.inexact:
            trace.inexact = (*trace.inexact, WEIGHTS)

    def _attempt_request(
        self, active: _ActiveRequest, attempt_id: str, connection: ReplicaConnection, chosen: AttemptTrace
    ) -> AttemptRequest:
        request = active.request
        trace_headers: dict[str, str] = {}
        if (trace_context := request.trace.trace_context) is not None:
            chosen.span_id = new_span_id()
            trace_headers = trace_context.headers(chosen.span_id)
        return AttemptRequest(
            WIRE_VERSION,
            attempt_id,
            self._ingress_id,
            structs.replace(request.spec, preemptible=False) if active.was_preempted else request.spec,
            list(active.emitted),
            active.admitted,
            connection.images.to_send(request.images),
            chosen.routing.missing_tokens,
            trace_headers,
            active.in_no_hurry,
        )

    async def _await_end(
        self,
        active: _ActiveRequest,
        connection: ReplicaConnection,
        control: asyncio.Task[None],
        ended: asyncio.Future[End],
    ) -> End:
        waiting: set[asyncio.Future[Any]] = {control, ended}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done() and not control.cancelled():
            try:
                control.result()
            except AttemptRefused as error:
                raise refused_by_engine(str(error)) from error
            except ReplicaFull as error:
                if isinstance(error, WaitedTooLong) and not active.emitted and not active.request.answer_begun():
                    raise self._admission.refusal() from error
                active.full.add(connection.replica_id)
                connection.note_full()
                return End.REFUSED
            except Preempted:
                active.admitted = True
                return End.PREEMPTED
            except ImagesMissing:
                connection.images.forget(active.request.images)
                return End.IMAGES_MISSING
            except (WrongReplica, ReplicaLost, EngineDead) as error:
                active.admitted |= not isinstance(error, WrongReplica) or isinstance(error, ReplicaStopping)
                logger.warning(
                    "lost an attempt", extra={"request": active.request.spec.request_id, "error": str(error)}
                )
                how = connection.end_by(error)
                # Otherwise the next attempt would go to the same replica.
                self._pool.cordon(connection, deregistered=how is End.MOVED)
                return how
            await asyncio.wait({ended}, timeout=LAST_FRAME_S)
        active.admitted = True
        return ended.result() if ended.done() else End.CUT

    async def _settle(self, control: asyncio.Task[None], *, finished: bool) -> None:
        """Leave no control call behind: that of a finished attempt is about to return by itself, any other is
        cancelled."""
        if control.done():
            _forget(control)
            return
        if finished:
            self._tasks.add(control)
            control.add_done_callback(self._tasks.discard)
            control.add_done_callback(_forget)
            return
        control.cancel()
        with contextlib.suppress(
            *(asyncio.CancelledError, ReplicaLost, WrongReplica, ReplicaFull, Preempted, ImagesMissing),
            *(EngineDead, AttemptRefused),
        ):
            await control

    def _spawn(self, coroutine: Coroutine[object, object, None], name: str) -> asyncio.Task[None]:
        # In a context of its own: Serve takes a call's identity from the HTTP request around it, and would take two
        # calls of one request (`n=2`, a migration) for one call made twice.
        task = asyncio.get_running_loop().create_task(coroutine, name=name, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._reap)
        return task

    def _reap(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a task of the dispatcher failed", exc_info=error, extra={"task": task.get_name()})


def _loop_time() -> float:
    return asyncio.get_running_loop().time()


def _forget(control: asyncio.Task[None]) -> None:
    """Retrieve the exception of a control call that nobody awaits: asyncio would log it as never retrieved."""
    if not control.cancelled():
        control.exception()
