"""The owner of one engine: token ids in, frames of tokens out. `app.py` makes a Serve deployment of it.

Templates, parsers, detokenisation and stop strings run at the ingress, so that a stream loses nothing with a replica.
This process does as little as it can: its CPU time is the engine's."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from serve_app.config.replicas import MAX_QUEUE_WAIT_S, MAX_QUEUED_REQUESTS
from serve_app.engine.autoscaling import UTILIZATION
from serve_app.engine.cache_log import CacheMirror
from serve_app.engine.contract import FAILED_BY_ITSELF, Engine, EngineInfo, StepSink
from serve_app.engine.fair_queue import Flow
from serve_app.engine.figures import ReplicaFigures, SentFrames, StartTimes, load_by_class, timeline
from serve_app.engine.gpu_time import GpuTime
from serve_app.engine.load_facts import PrefillQueue, RecentMean, RecentRatio
from serve_app.engine.outbox import Outbox
from serve_app.engine.partial_outputs import PartialOutputs
from serve_app.engine.preemption import Preemption
from serve_app.engine.scale_in import LOSS_TOKENS
from serve_app.engine.scaling_facts import ScalingCounts
from serve_app.engine.service_times import ServiceTimes
from serve_app.engine.session_tokens import SessionTokens
from serve_app.engine.slow_causes import SlowCauses, Told
from serve_app.engine.start_queue import Abandoned, StartQueue
from serve_app.engine.start_watch import UNWATCHED, StartWatch
from serve_app.engine.watchdog import EngineState, Judgement, Watchdog, WatchdogLimits
from serve_app.protocol.data_channel import DataChannelServer
from serve_app.protocol.errors import (
    AttemptRefused,
    EngineDead,
    EngineDeadBeside,
    EngineDeadByRequest,
    Preempted,
    ReplicaFull,
    ReplicaStopping,
    WrongReplica,
)
from serve_app.protocol.images import ImageStore
from serve_app.protocol.messages import (
    NO_LABEL,
    WIRE_VERSION,
    AttemptRequest,
    DataChannelAddress,
    EngineTiming,
    Frame,
    OtherWireVersion,
    ReplicaActivity,
    ReplicaCapacity,
    ReplicaInfo,
    ReplicaLabel,
    ReplicaLoad,
    TokenDelta,
    decode_request,
    encode_frame,
    encode_info,
)
from serve_app.protocol.poison import Blame, Quarantine, blame
from serve_app.protocol.service_class import ServiceClass
from serve_app.scaling import ReplicaFacts, ReplicaReport

logger = logging.getLogger(__name__)

HEARTBEAT_S = 0.5
"""How often an idle connection gets a frame, which carries the replica's load."""

SLOW_STEP_S = 10.0
"""A longer step gets a line in the log, with the engine's activity and its requests."""

STEP_MEMORY = 10_000.0
"""Tokens per step are those of about so many steps of a request: some seconds of a busy engine."""

BLAMED = {Blame.NAMED: EngineDeadByRequest, Blame.SUSPECT: EngineDead, Blame.BESIDE: EngineDeadBeside}

EngineFactory = Callable[[StepSink], Engine]
"""Builds the engine, not yet started, with the sink for its steps."""


@dataclass(eq=False)
class Attempt:
    """An attempt that runs here. `output_token_ids` are the sequence's tokens so far, earlier attempts' included; they
    are collected only while it has a `resume_key`. It came with `tokens`, of which its ingress takes `prefill_tokens`
    for not cached."""

    ingress_id: str
    client: str
    resume_key: str
    output_token_ids: list[int]
    tokens: int
    prefill_tokens: int
    rank: int = 0
    preemptible: bool = True
    """Whether it may be ended to make room for another."""
    computed_tokens: int = 0
    """How many tokens this engine has computed for it, since its first token: of its prompt, and of output."""
    in_engine: asyncio.Timeout | None = None
    """Expires when it is preempted."""
    is_ending: bool = False
    """Whether it is complete, or being preempted: its slot is about to be free."""
    has_started: bool = False
    """Whether it is in the engine."""
    has_token: bool = False
    """Whether this engine has produced a token for it."""
    queue_wait_s: float = 0.0
    """How long it waited before its start."""
    told: Told = field(default_factory=Told)
    """What its ingress knows of what has slowed it."""
    session: tuple[str, str] | None = None
    """Its client and the session that this named."""

    @property
    def context_tokens(self) -> int:
        """About how many tokens its context has by now: at least those that it came with, or were computed."""
        return max(self.tokens, self.computed_tokens)


class EngineReplica:
    """One engine and its connections to ingresses. Call `start` first.

    An engine that has work and hangs or is stuck is killed (`engine/watchdog.py`). Data channels are accepted on
    `data_channel_host`, an address of this node; without one, everything goes by Serve's calls. `max_queued_requests`
    attempts may wait here beyond those that the engine runs at a time, none longer than `max_queue_wait_s`, in a fair
    order (`engine/fair_queue.py`). `image_bytes` of the images that were sent here are kept. `clock` gives seconds.
    `report` gets the replica's figures with every heartbeat, and `starting` how the start goes. `node_ids` are Ray's.
    `label` is what ingresses are told of its part of the fleet.
    """

    def __init__(
        self,
        replica_id: str,
        engine_factory: EngineFactory,
        watchdog_limits: WatchdogLimits,
        data_channel_host: str | None = None,
        max_queued_requests: int = MAX_QUEUED_REQUESTS,
        image_bytes: int = 0,
        max_queue_wait_s: float = MAX_QUEUE_WAIT_S,
        clock: Callable[[], float] = time.monotonic,
        report: Callable[[ReplicaFigures], None] = lambda _figures: None,
        starting: StartWatch = UNWATCHED,
        node_ids: Sequence[str] = (),
        label: ReplicaLabel = NO_LABEL,
    ) -> None:
        self._replica_id = replica_id
        self._node_ids = list(node_ids)
        self._report = report
        self._label = label
        self._sent = SentFrames()
        self._starting = starting
        self._start_times = StartTimes(clock, starting.process_s)
        self._judgement = Judgement(EngineState.WORKING, 0.0)
        self._clock = clock
        self._max_queue_wait_s = max_queue_wait_s
        self._images = ImageStore(image_bytes)
        self._gpu_time = GpuTime()
        self._counts = ScalingCounts()
        self._outboxes: dict[str, Outbox] = {}
        self._attempts: dict[str, Attempt] = {}
        self._partial_outputs = PartialOutputs()
        self._quarantine = Quarantine()
        self._cache = CacheMirror()
        self._engine = engine_factory(self._on_step)
        self._slow_causes = SlowCauses(self._engine.compilers, self._engine.cpu_wait)
        self._engine_dead = False
        self._stopping = False
        self._newcomers: int | None = None
        """How many attempts had no token yet when the engine died."""
        self._watchdog = Watchdog(watchdog_limits, HEARTBEAT_S)
        self._slow = False
        self._step_tokens = RecentRatio(STEP_MEMORY)
        self._data_channel_host = data_channel_host
        self._max_queued_requests = max_queued_requests
        self._channels = DataChannelServer(self)
        self._address: DataChannelAddress | None = None

    async def start(self) -> None:
        """Return when the engine can take requests. Raises `EngineDead` with the engine's own error if it cannot."""
        self._info: EngineInfo = await self._engine.start(self._progress)
        now_s = self._idle_since_s = self._clock()
        self._service = ServiceTimes(self._info.max_num_seqs, now_s)
        self._prefill = PrefillQueue(self._info.max_num_seqs, now_s)
        self._starts = StartQueue(
            self._info.max_num_seqs, self._info.max_num_batched_tokens, self._max_queue_wait_s, self._clock
        )
        self._preemption = Preemption(self._attempts, self._starts)
        self._recent_unfinished = RecentMean(now_s)
        self._sessions = SessionTokens(self._info.kv_cache_tokens)
        self._heartbeat_task = asyncio.get_running_loop().create_task(self._heartbeat(), name="heartbeat")
        if self._data_channel_host is not None:
            self._address = await self._channels.open(self._data_channel_host)
        start_s = self._start_times.seconds()
        facts = {"start_s": round(sum(start_s.values()), 1), "phases": timeline(start_s)}
        logger.info("engine ready", extra={"replica": self._replica_id, **facts})
        self._starting.ready()

    # ---- what an ingress calls ---------------------------------------------------------------------------------------

    async def info(self) -> bytes:
        """This replica's `ReplicaInfo`, encoded."""
        now_s = self._clock()
        capacity = ReplicaCapacity(
            max_unfinished=self._max_unfinished,
            service_s=self._service.mean_s(now_s),
            ingresses=len(self._outboxes),
            start_s=self._info.start_s,
            image_bytes=self._images.max_bytes,
            kv_cache_tokens=self._info.kv_cache_tokens,
            reports_cache=self._info.reports_cache,
            start_phases={str(phase): seconds for phase, seconds in self._start_times.seconds().items()},
        )
        return encode_info(
            ReplicaInfo(
                WIRE_VERSION,
                self._replica_id,
                self._load(),
                self._address,
                capacity,
                self._info.engine_version,
                self._quarantine.remaining(now_s),
                self._activity(),
                self._node_ids,
                self._label,
            )
        )

    async def lease(self, target: str) -> AsyncGenerator[bytes, None]:
        """Yield once, then wait until the caller ends it: Serve does not stop a replica with an open call."""
        self._check_target(target)
        yield b""
        await asyncio.Event().wait()

    async def run_attempt(self, target: str, data: bytes | memoryview) -> None:
        """Run one attempt (`AttemptRequest`); its deltas go out on the connection of its ingress.

        Raises `WrongReplica` when `target` is another replica or this one cannot take it, `ReplicaFull` for a new
        request beyond the bound, `ImagesMissing` where an image must be sent again, `AttemptRefused` as the engine
        does, `Preempted` when it made room for a higher class, and `EngineDead` when the engine died or hung with the
        attempt in it.
        """
        self._check_target(target)
        try:
            # Nothing is awaited before: the next attempt of this ingress may name the images of this one.
            attempt = self._images.complete(decode_request(data))
        except OtherWireVersion as error:
            raise WrongReplica(str(error)) from error
        if attempt.ingress_id not in self._outboxes:
            raise WrongReplica("the ingress has no connection to this replica")
        try:
            await self.check_health()
        except EngineDead as error:
            raise WrongReplica(f"its engine was dead before: {error}") from error
        is_full = not attempt.admitted and len(self._attempts) >= self._max_unfinished
        if is_full and not self._starts.displace(_flow(attempt)):
            raise ReplicaFull(f"it holds {len(self._attempts)} of {self._max_unfinished}")
        await self._run(attempt)

    async def _run(self, attempt: AttemptRequest) -> None:
        emitted = attempt.emitted_token_ids
        running = _arrived(attempt)
        self._enter(attempt.attempt_id, running)
        self._counts.arrive(attempt.prefill_tokens)
        served = False
        try:
            running.queue_wait_s = await self._turn(attempt, running.tokens)
            running.has_started = True
            self._gpu_time.begin(self._clock())
            self._prefill.enter(attempt.attempt_id, attempt.prefill_tokens, self._clock())
            async with asyncio.timeout(None) as running.in_engine:
                await self._engine.run(attempt)
            served = True
        except Abandoned:
            return
        except TimeoutError:
            if running.in_engine is None or not running.in_engine.expired():
                raise
            raise Preempted("a request of a higher class takes its place") from None
        except EngineDead as error:
            self._lose_engine(error)
            if self._stopping:  # the engine was shut down: the attempt is not the cause
                raise ReplicaStopping("it is being stopped") from error
            raise self._blamed(running, error) from error
        finally:
            # A cancelled attempt with tokens counts: the ingress may have found a stop string.
            preempted = running.in_engine is not None and running.in_engine.expired()
            made_some = len(running.output_token_ids) > len(emitted) and not preempted
            self._leave(attempt.attempt_id, served=served or made_some)
            self._keep(running)

    async def _turn(self, attempt: AttemptRequest, tokens: int) -> float:
        """Wait until the engine may start it. Raises as `StartQueue.turn`."""
        cached = max(tokens - attempt.prefill_tokens, 0)
        begun = bool(attempt.emitted_token_ids) or attempt.preempted
        try:
            waited_s = await self._starts.turn(
                attempt.attempt_id,
                _flow(attempt),
                attempt.prefill_tokens,
                cached,
                first=begun and not attempt.preempted,
                begun=begun,
                kept=attempt.admitted,
                on_full=lambda: self._preemption.want_slot(attempt.attempt_id, attempt.spec.rank),
            )
        finally:
            self._preemption.forget(attempt.attempt_id)
        if attempt.ingress_id not in self._outboxes:
            raise Abandoned
        try:
            await self.check_health()  # it may have died since the attempt came, and must not be blamed for that
        except EngineDead as error:
            raise ReplicaStopping(f"its engine died before it could start: {error}") from error
        return waited_s

    def _lose_engine(self, error: Exception) -> None:
        """The engine is dead. What waits was not in it, and goes elsewhere."""
        self._engine_dead = True
        self._starts.fail(ReplicaStopping(f"its engine died before it could start: {error}"))

    def _enter(self, attempt_id: str, attempt: Attempt) -> None:
        now_s = self._clock()
        self._attempts[attempt_id] = attempt
        self._service.enter(now_s)
        self._sessions.enter(attempt.session)
        self._recent_unfinished.set(len(self._attempts), now_s)

    def _leave(self, attempt_id: str, *, served: bool) -> None:
        now_s = self._clock()
        attempt = self._attempts.pop(attempt_id)
        if attempt.has_started:
            self._prefill.leave(attempt_id, now_s)
            if not self._prefill.prefilling + self._prefill.decoding:
                self._gpu_time.end(now_s, attempt.client)
        self._idle_since_s = now_s
        self._service.leave(now_s, served=served)
        self._sessions.leave(attempt.session, attempt.context_tokens if attempt.has_token else 0, now_s)
        self._starts.leave(attempt_id)
        self._recent_unfinished.set(len(self._attempts), now_s)

    async def fetch_partial_output(self, resume_key: str) -> bytes:
        """The token ids of the broken stream with this resume key; none if it is not known here."""
        # The client may notice the break and ask before this replica notices it.
        running = [attempt.output_token_ids for attempt in self._attempts.values() if attempt.resume_key == resume_key]
        kept = self._partial_outputs.find(resume_key, self._clock())
        return msgspec.msgpack.encode(max([kept, *running], key=len))

    async def share_quarantine(self, quarantine: bytes) -> None:
        """Keep a quarantine for the other ingresses: each learns it from the next `info`."""
        self._quarantine.learn(msgspec.msgpack.decode(quarantine, type=dict[str, float]), self._clock())

    async def frames(self, target: str, ingress_id: str) -> AsyncGenerator[bytes, None]:
        """The frames for one ingress: one per engine step, a heartbeat when idle, until the ingress closes it."""
        self._check_target(target)
        outbox = Outbox()
        if (previous := self._outboxes.get(ingress_id)) is not None:
            previous.close()
        self._outboxes[ingress_id] = outbox
        outbox.heartbeat()
        if self._info.reports_cache:
            outbox.put_cache(self._cache.everything())
        frame_number = 0
        try:
            while not outbox.closed:
                deltas, cache = await outbox.take()
                yield self._sent.add(encode_frame(Frame(self._replica_id, frame_number, self._load(), deltas, cache)))
                frame_number += 1
        finally:
            if self._outboxes.get(ingress_id) is outbox:
                del self._outboxes[ingress_id]
                await self._abandon(ingress_id)

    # ---- what Serve calls --------------------------------------------------------------------------------------------

    async def check_health(self) -> None:
        """Raises when the engine is dead: Serve then replaces this replica."""
        try:
            await self._engine.check()
        except EngineDead as error:
            self._lose_engine(error)
            raise

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """This replica's utilization, as routing computes it, for `autoscaling.UtilizationPolicy`, and its loss for
        `scale_in.LeastLossPolicy`."""
        return {UTILIZATION: self._load().utilization, LOSS_TOKENS: self.loss_tokens()}

    def loss_tokens(self) -> float:
        """How many tokens would be computed again elsewhere if it were stopped."""
        return float(self._sessions.lost(self._running_tokens, self._clock()))

    @property
    def _running_tokens(self) -> int:
        return sum(one.context_tokens for one in self._attempts.values())

    @property
    def idle_s(self) -> float:
        """How long it has had no attempt; 0 if it has one."""
        return 0.0 if self._attempts else self._clock() - self._idle_since_s

    def scaling_report(self) -> ReplicaReport:
        """What `scaling.SloPolicy` is told of this replica."""
        load, line = self._load(), self._counts.tpot_line_s
        facts = ReplicaFacts(
            slots=load.max_num_seqs,
            running=max(load.unfinished - load.queued, 0),
            queued=load.queued,
            queued_prefill_tokens=load.queued_prefill_tokens,
            prefill_tokens_per_s=load.prefill_tokens_per_s,
            kv_usage_ratio=load.kv_usage_ratio,
            service_s=self._service.mean_s(self._clock()),
            tpot_base_s=line and line[0],
            tpot_per_sequence_s=line and line[1],
            session_tokens=self._sessions.active(self._running_tokens, self._clock()),
            kv_cache_tokens=self._info.kv_cache_tokens,
        )
        counts = self._counts
        return ReplicaReport(
            facts,
            counts.arrived_requests,
            counts.arrived_prefill_tokens,
            self._info.start_s,
            counts.arrived_prefill_squares,
        )

    async def stop(self) -> None:
        """End the engine: its processes must not outlive the replica. May be called before `start` has returned."""
        self._stopping = True
        heartbeat: asyncio.Task[None] | None = getattr(self, "_heartbeat_task", None)
        if heartbeat is not None:
            heartbeat.cancel()
        await self._channels.close()
        await self._engine.shutdown()

    # ---- inside ------------------------------------------------------------------------------------------------------

    @property
    def _max_unfinished(self) -> int:
        return self._info.max_num_seqs + self._max_queued_requests

    def _check_target(self, target: str) -> None:
        if target != self._replica_id:
            raise WrongReplica(f"this is {self._replica_id}, not {target}")

    def _on_step(self, deltas: Sequence[TokenDelta]) -> None:
        now_s = self._clock()
        stall_s = 0.0
        if self._attempts:  # not while the engine warms up
            prefilling, decoding = self._prefill.prefilling > 0, self._prefill.decoding > 0
            announced = self._engine.stats().compilations
            stall_s = self._slow_causes.step(now_s, announced, prefilling=prefilling, decoding=decoding)
        decoded, computed = self._take(deltas, now_s)
        if computed:
            self._preemption.preempt()  # there may have been none with a token
        if decoded or computed:
            oldest = self._attempts.get(self._prefill.oldest or "")
            self._gpu_time.step(now_s, stall_s, decoded, computed, oldest.client if oldest is not None else "")
        if deltas:
            tokens = sum(len(one.token_ids) for one in deltas)
            self._step_tokens.add(tokens, len(deltas))
            sequences = sum(decoded.values())
            self._counts.step(now_s, sequences, tokens * sequences // len(deltas))
        self._share_cache()

    def _take(self, deltas: Sequence[TokenDelta], now_s: float) -> tuple[dict[str, int], list[tuple[str, int]]]:
        """Note a step's tokens, and send them on. Returns, by client, how many sequences had a token before; and the
        client, and how many tokens were computed, of each that has its first one."""
        slowed_s = self._slow_causes.total_s
        decoded: dict[str, int] = {}
        computed: list[tuple[str, int]] = []
        for_ingress: dict[str, list[TokenDelta]] = {}
        for delta in deltas:
            attempt = self._attempts.get(delta.attempt_id)
            if attempt is None:
                continue
            if attempt.has_token:
                decoded[attempt.client] = decoded.get(attempt.client, 0) + 1
                if attempt.told.seen_s != slowed_s or delta.finish_reason is not None:
                    self._slow_causes.tell(attempt.told, delta)
            else:
                computed.append((attempt.client, self._take_first(attempt, delta, now_s)))
            self._take_tokens(attempt, delta)
            for_ingress.setdefault(attempt.ingress_id, []).append(delta)
        for ingress_id, those in for_ingress.items():
            if (outbox := self._outboxes.get(ingress_id)) is not None:
                outbox.put(those)
        return decoded, computed

    def _take_first(self, attempt: Attempt, delta: TokenDelta, now_s: float) -> int:
        """Note its first token. Returns how many tokens were computed for it."""
        attempt.has_token = True
        delta.timing = delta.timing or EngineTiming()
        delta.timing.replica_queue_s = attempt.queue_wait_s
        attempt.told = self._slow_causes.first_token(delta.timing, now_s)
        self._starts.first_token(delta.attempt_id)
        if not delta.token_ids:
            computed = 0  # there was nothing left to do
        elif delta.cached_tokens is None:
            computed = attempt.prefill_tokens  # of an attempt that continues another, no engine says it
        else:
            computed = attempt.tokens - delta.cached_tokens
        self._prefill.first_token(delta.attempt_id, computed, now_s)
        attempt.computed_tokens = computed
        return computed

    def _take_tokens(self, attempt: Attempt, delta: TokenDelta) -> None:
        count = len(delta.token_ids)
        attempt.computed_tokens += count
        self._starts.generated(delta.attempt_id, count)
        if attempt.resume_key:
            attempt.output_token_ids.extend(delta.token_ids)
        if delta.finish_reason is not None:
            attempt.resume_key = ""  # it is complete: nothing to resume
            attempt.preemptible, attempt.is_ending = False, True

    def _share_cache(self) -> None:
        if (changes := self._engine.cache_changes()) is None:
            return
        self._cache.apply(changes)
        for outbox in self._outboxes.values():
            outbox.put_cache(changes)

    def _blamed(self, attempt: Attempt, error: EngineDead) -> EngineDead:
        """The engine's death as it concerns this attempt. The count of newcomers is kept: attempts leave one by one."""
        if self._newcomers is None:
            self._newcomers = sum(one.has_started and not one.has_token for one in self._attempts.values())
        by_itself = FAILED_BY_ITSELF in str(error)
        verdict = blame(is_newcomer=not attempt.has_token, newcomers=self._newcomers, failed_by_itself=by_itself)
        return BLAMED[verdict](str(error))

    def _keep(self, attempt: Attempt) -> None:
        if attempt.resume_key and attempt.output_token_ids:
            self._partial_outputs.keep(attempt.resume_key, attempt.output_token_ids, self._clock())

    def _load(self) -> ReplicaLoad:
        stats, now_s = self._engine.stats(), self._clock()
        return ReplicaLoad(
            max(stats.unfinished, len(self._attempts)),
            self._info.max_num_seqs,
            stats.kv_usage_ratio,
            self._engine_dead,
            queued_prefill_tokens=self._prefill.queued_tokens(now_s) + self._starts.waiting_tokens(),
            prefill_tokens_per_s=self._prefill.tokens_per_s,
            recent_unfinished=self._recent_unfinished.mean(now_s),
            queued=len(self._starts),
            newcomer_prefill_tokens=self._starts.tokens_before_newcomer(),
        )

    def _activity(self) -> ReplicaActivity:
        stats = self._engine.stats()
        if self._stopping or self._engine_dead:
            state = "stopping" if self._stopping else "dead"
        elif self._slow:
            state = "slow"
        else:
            state = "idle" if not self._attempts else str(self._judgement.state)
        under_way = ("compiling a kernel; " if self._slow_causes.compiles else "") + self._engine.under_way()
        return ReplicaActivity(state, under_way, self._step_tokens.value, stats.acceptance_ratio)

    async def _heartbeat(self) -> None:
        while True:
            due_s = self._clock() + HEARTBEAT_S
            await asyncio.sleep(HEARTBEAT_S)
            lag_s = max(0.0, self._clock() - due_s)
            self._check_engine()
            self._report(self.figures(lag_s))
            self._share_cache()
            for outbox in self._outboxes.values():
                outbox.heartbeat()

    def figures(self, lag_s: float = 0.0) -> ReplicaFigures:
        """The replica as it is now; `lag_s` is its event loop's."""
        attempts = self._attempts.values()
        return ReplicaFigures(
            load=load_by_class((ServiceClass(one.rank), one.has_started, one.tokens) for one in attempts),
            queued_prefill_tokens=self._prefill.queued_tokens(self._clock()) + self._starts.waiting_tokens(),
            state=self._judgement.state,
            silence_s=self._judgement.silence_s,
            start_s=self._start_times.seconds(),
            sent=self._sent,
            unsent_deltas=max((len(outbox) for outbox in self._outboxes.values()), default=0),
            lag_s=lag_s,
            engine_s=self._gpu_time.totals(),
        )

    def _check_engine(self) -> None:
        stats = self._engine.stats()
        if self._engine_dead:
            return
        judgement = self._watchdog.observe(self._clock(), stats.steps, self._engine.activity, busy=stats.unfinished > 0)
        self._judgement = judgement
        self._slow_causes.observe(self._clock(), stats.steps, busy=stats.unfinished > 0)
        if judgement.state in (EngineState.HUNG, EngineState.STUCK):
            reason = f"{judgement.state}: {judgement.evidence} (under way: {self._engine.under_way()})"
            logger.error("the engine is killed", extra={"replica": self._replica_id, "reason": reason})
            self._engine.fail(reason)
            self._lose_engine(EngineDead(reason))
        elif judgement.silence_s >= SLOW_STEP_S and not self._slow:
            self._slow = True
            facts = {"evidence": judgement.evidence, "under_way": self._engine.under_way()}
            logger.warning("the engine is slow, not dead", extra={"replica": self._replica_id, **facts})
        elif judgement.state is EngineState.WORKING:
            self._slow = False

    async def _abandon(self, ingress_id: str) -> None:
        """Abort the attempts of an ingress that is gone."""
        orphans = [name for name, attempt in self._attempts.items() if attempt.ingress_id == ingress_id]
        for attempt_id in orphans:
            self._starts.abandon(attempt_id)
        for attempt_id in orphans:
            with contextlib.suppress(AttemptRefused):
                await self._engine.abort(attempt_id)

    def _progress(self, what: str) -> None:
        self._start_times.note(what)
        self._starting.say(what)
        logger.info("starting the engine", extra={"replica": self._replica_id, "phase": what})


def _flow(attempt: AttemptRequest) -> Flow:
    """Whom it belongs to."""
    spec = attempt.spec
    return Flow(spec.client, spec.session, spec.rank, spec.weight)


def _arrived(attempt: AttemptRequest) -> Attempt:
    """It, as it comes."""
    spec = attempt.spec
    return Attempt(
        attempt.ingress_id,
        spec.client,
        spec.resume_key,
        list(attempt.emitted_token_ids),
        spec.prompt_tokens + len(attempt.emitted_token_ids),
        attempt.prefill_tokens,
        spec.rank,
        spec.preemptible and not attempt.preempted,
        session=(spec.client, spec.session) if spec.session else None,
    )
