"""The model of one engine replica: the queue in front of its engine, and what it reports of its load. Pure.

The queue's order, the prefill rate and the service time are computed by the service's own classes
(`engine/fair_queue.py`, `engine/load_facts.py`, `engine/service_times.py`). An answer is charged to its client when it
ends, not token by token.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from serve_app.config.replicas import MAX_QUEUE_WAIT_S, MAX_QUEUED_REQUESTS
from serve_app.engine.fair_queue import OUTPUT_COST, FairQueue, Flow, prompt_cost
from serve_app.engine.load_facts import PrefillQueue, RecentMean, RecentRatio
from serve_app.engine.service_times import ServiceTimes
from serve_app.engine.session_tokens import SessionTokens
from serve_app.engine.start_queue import PATIENCE, engine_takes
from serve_app.simulate.engine_model import EngineModel, EngineSpec, ModelRequest, StepEnd
from serve_app.simulate.trace import TraceRequest

TPOT_MEMORY_TOKENS = 20_000.0
"""The time of a token is that of so many of the last ones."""


class ReplicaState(StrEnum):
    """Whether it takes requests. GPUs are its own in all three."""

    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"


@dataclass(frozen=True)
class QueueLimits:
    """As in the block `replicas` of the configuration."""

    max_queued_requests: int = MAX_QUEUED_REQUESTS
    max_queue_wait_s: float = MAX_QUEUE_WAIT_S


@dataclass(slots=True)
class Call:
    """A request on its way: where it is, and when it had its first token."""

    name: str
    asked: TraceRequest
    flow: Flow
    missing_tokens: int = 0
    queued_s: float = 0.0
    has_started: bool = False
    first_token_s: float | None = None


@dataclass(frozen=True, slots=True)
class ReplicaSnapshot:
    """What a replica reports. `unfinished` requests run or wait there, `queued` of them are not in the engine;
    `queued_prefill_tokens` are still to be computed for them. `prefill_tokens_per_s` and `service_s` are measured, None
    before that, as is `tpot_s`, the time of a token of an answer lately."""

    name: str
    unfinished: int
    queued: int
    slots: int
    queued_prefill_tokens: int
    prefill_tokens_per_s: float | None
    recent_unfinished: float
    kv_usage_ratio: float
    service_s: float | None
    tpot_s: float | None
    session_tokens: int = 0
    kv_cache_tokens: int = 0

    @property
    def utilization(self) -> float:
        """As `ReplicaLoad.utilization`."""
        slots = self.unfinished / self.slots
        return max(slots, self.kv_usage_ratio) if self.kv_usage_ratio > 0.9 else slots


@dataclass
class ReplicaModel:
    """One replica. `asked_s` is when its GPUs were taken."""

    name: str
    spec: EngineSpec
    limits: QueueLimits
    asked_s: float
    state: ReplicaState = ReplicaState.STARTING
    calls: dict[str, Call] = field(default_factory=dict)
    _prefilling: dict[str, int] = field(default_factory=dict)
    _queued_tokens: int = 0

    def __post_init__(self) -> None:
        slots = self.spec.max_num_seqs
        self.engine = EngineModel(self.spec)
        self._queue = FairQueue(slots, PATIENCE * self.limits.max_queue_wait_s)
        self._prefill = PrefillQueue(slots, self.asked_s)
        self._service = ServiceTimes(slots, self.asked_s)
        self._recent = RecentMean(self.asked_s)
        self._tpot = RecentRatio(TPOT_MEMORY_TOKENS)
        self._sessions = SessionTokens(0)

    @property
    def room(self) -> int:
        """How many more requests it may hold."""
        return self.spec.max_num_seqs + self.limits.max_queued_requests - len(self.calls)

    def cached_tokens(self, asked: TraceRequest) -> int:
        """How much of a prompt it need not compute."""
        return self.engine.cached_tokens(asked.session, asked.prefix_tokens)

    def take(self, call: Call, now_s: float) -> None:
        """A request comes."""
        cached = self.cached_tokens(call.asked)
        call.missing_tokens, call.queued_s = call.asked.prompt_tokens - cached, now_s
        self.calls[call.name] = call
        self._sessions.enter(call.asked.session or None)
        self._service.enter(now_s)
        self._recent.set(len(self.calls), now_s)
        self._queued_tokens += call.missing_tokens
        self._queue.put(call.name, call.flow, prompt_cost(call.missing_tokens, cached), now_s=now_s)
        self._start_next(now_s)

    def displaced_by(self, call: Call, now_s: float) -> Call | None:
        """The request that waits and has to go for this one; None where none has to."""
        name = self._queue.to_displace(call.flow)
        return None if name is None else self._give_up(name, now_s)

    def waited_too_long(self, now_s: float) -> list[Call]:
        """The requests that have waited for longer than any may. They are gone."""
        if not len(self._queue):
            return []
        since_s = now_s - self.limits.max_queue_wait_s
        names = [name for name, call in self.calls.items() if not call.has_started and call.queued_s <= since_s]
        gone = [self._give_up(name, now_s) for name in names]
        if gone:
            self._start_next(now_s)
        return gone

    def finish(self) -> list[Call]:
        """The engine's steps have ended: first tokens are noted in the calls, and those that ended are returned."""
        end = self.engine.finish()
        for one in end.first_tokens:
            self._first_token(one, end)
        ended = [self._end(one, end.at_s) for one in end.ended]
        if end.first_tokens or ended:
            self._start_next(end.at_s)
        return ended

    def snapshot(self, now_s: float) -> ReplicaSnapshot:
        """Its report."""
        return ReplicaSnapshot(
            self.name,
            len(self.calls),
            len(self._queue),
            self.spec.max_num_seqs,
            self.queued_prefill_tokens(now_s),
            self._prefill.tokens_per_s,
            self._recent.mean(now_s),
            self.engine.kv_usage_ratio,
            self._service.mean_s(now_s),
            self._tpot.value,
            self._sessions.active(sum(call.asked.prompt_tokens for call in self.calls.values()), now_s),
            self.spec.kv_cache_tokens,
        )

    def cost_s(self, asked: TraceRequest, now_s: float, assumed_tokens_per_s: float, assumed_s: float) -> float:
        """What `router/routing.py` computes for this replica, without the shares of prompts that others have too."""
        rate = self._prefill.tokens_per_s or assumed_tokens_per_s
        slots = self.spec.max_num_seqs
        prefill_s = max(asked.prompt_tokens - self.cached_tokens(asked), 1) / rate
        service_s = self._service.mean_s(now_s)
        slot_s = max(len(self.calls) + 1 - slots, 0) * (assumed_s if service_s is None else service_s) / slots
        return self.queued_prefill_tokens(now_s) / rate + prefill_s * (1 + self._others(now_s)) + slot_s

    def queued_prefill_tokens(self, now_s: float) -> int:
        """How many prompt tokens are still to be computed."""
        return self._prefill.queued_tokens(now_s) + self._queued_tokens

    # ---- inside ------------------------------------------------------------------------------------------------------

    def recent_unfinished(self, now_s: float) -> float:
        """How many requests it had on average in the last minute."""
        return self._recent.mean(now_s)

    def _others(self, now_s: float) -> float:
        running = float(len(self.calls) - len(self._queue))
        return min(max(running, self._recent.mean(now_s)), float(self.spec.max_num_seqs))

    def _start_next(self, now_s: float) -> None:
        while (name := self._queue.next(now_s)) is not None:
            call = self.calls[name]
            if not engine_takes(self._prefilling.values(), call.missing_tokens, self.spec.max_num_batched_tokens):
                return
            self._queue.start(name)
            call.has_started = True
            self._prefilling[name] = call.missing_tokens
            self._queued_tokens -= call.missing_tokens
            self._prefill.enter(name, call.missing_tokens, now_s)
            asked = call.asked
            request = ModelRequest(name, asked.prompt_tokens, asked.output_tokens, asked.session, asked.prefix_tokens)
            self.engine.add(request, now_s)

    def _first_token(self, one: ModelRequest, end: StepEnd) -> None:
        call = self.calls[one.name]
        call.first_token_s = end.at_s
        del self._prefilling[one.name]
        self._prefill.first_token(one.name, one.prompt_tokens - one.cached_tokens, end.at_s)

    def _end(self, one: ModelRequest, now_s: float) -> Call:
        self._queue.charge(one.name, OUTPUT_COST * one.output_tokens)
        self._queue.leave(one.name)
        self._prefill.leave(one.name, now_s)
        call = self._leave(one.name, now_s, served=True)
        if one.output_tokens > 1 and call.first_token_s is not None:
            self._tpot.add(now_s - call.first_token_s, one.output_tokens - 1)
        return call

    def _give_up(self, name: str, now_s: float) -> Call:
        self._queue.leave(name)
        self._queued_tokens -= self.calls[name].missing_tokens
        return self._leave(name, now_s, served=False)

    def _leave(self, name: str, now_s: float, *, served: bool) -> Call:
        self._service.leave(now_s, served=served)
        call = self.calls.pop(name)
        asked = call.asked
        self._sessions.leave(asked.session or None, asked.prompt_tokens + asked.output_tokens if served else 0, now_s)
        self._recent.set(len(self.calls), now_s)
        return call
