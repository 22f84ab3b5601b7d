"""The model of a fleet: requests come, replicas start and stop, a policy decides how many there are. Pure.

Events are worked off in the order of their times: arrivals, ends of steps, replicas that are ready, and every `tick_s`
a look at the fleet, after which the policy decides. A replica's GPUs count from the decision to start it until it has
gone. One that is to stop finishes what it holds, and takes nothing more; those that still start are stopped first, then
those with the fewest requests. A refused request does not come back.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Protocol

from serve_app.engine.fair_queue import Flow
from serve_app.router.admission import ASSUMED_SERVICE_S
from serve_app.router.routing import ASSUMED_PREFILL_TOKENS_PER_S
from serve_app.simulate.engine_model import EngineSpec
from serve_app.simulate.replica_model import Call, QueueLimits, ReplicaModel, ReplicaSnapshot, ReplicaState
from serve_app.simulate.trace import TraceRequest


@dataclass(frozen=True)
class FleetSpec:
    """The fleet. `overhead_s` is what the front end adds to each first token. The policy looks every `tick_s`."""

    engine: EngineSpec = field(default_factory=EngineSpec)
    limits: QueueLimits = field(default_factory=QueueLimits)
    min_replicas: int = 1
    max_replicas: int = 8
    initial_replicas: int | None = None
    tick_s: float = 10.0
    overhead_s: float = 0.0


@dataclass(frozen=True)
class FleetView:
    """What a policy sees. `replicas` are those that run, `starting` those that do not yet. Since the last look
    `arrived` requests have come, with `arrived_prefill_tokens` that the fleet must compute and `arrived_output_tokens`.
    """

    now_s: float
    target: int
    replicas: tuple[ReplicaSnapshot, ...]
    starting: int
    waiting: int
    arrived: int
    arrived_prefill_tokens: int
    arrived_output_tokens: int
    arrived_prefill_squares: int = 0


class Scaler(Protocol):
    """How many replicas there are to be."""

    def wanted(self, view: FleetView) -> tuple[int, str]:
        """The number, and why. The fleet keeps it within its bounds."""


@dataclass(frozen=True, slots=True)
class RequestResult:
    """One request. Seconds from its arrival to its first token, and for each further token on average; `ttft_s` is None
    where it was refused, `refused` says why."""

    request: TraceRequest
    ttft_s: float | None
    tpot_s: float
    replica: str
    refused: str = ""


@dataclass(frozen=True, slots=True)
class ScaleEvent:
    """A decision that changed the number of replicas."""

    at_s: float
    before: int
    after: int
    reason: str


@dataclass
class SimulationResult:
    """What became of a trace. Not all events may be done when the last request ends: replica-seconds count until
    then."""

    requests: list[RequestResult] = field(default_factory=list)
    scale_events: list[ScaleEvent] = field(default_factory=list)
    replica_s: float = 0.0
    most_replicas: int = 0
    ended_s: float = 0.0


def simulate(
    trace: Sequence[TraceRequest],
    spec: FleetSpec,
    scaler: Scaler,
    on_progress: Callable[[float], None] = lambda _: None,
) -> SimulationResult:
    """Run a trace, whose requests are in the order of their arrival. `on_progress` hears the part that is done, now and
    then."""
    fleet = _Fleet(spec, scaler)
    for number, asked in enumerate(trace):
        fleet.run_until(asked.arrival_s)
        fleet.arrive(Call(str(number), asked, Flow(asked.key, asked.session)), asked.arrival_s)
        if number % 2048 == 0:
            on_progress(number / len(trace))
    fleet.run_to_the_end(trace[-1].arrival_s if trace else 0.0)
    return fleet.result


class _Fleet:
    """The state of a run."""

    def __init__(self, spec: FleetSpec, scaler: Scaler) -> None:
        self._spec = spec
        self._scaler = scaler
        self._order = count()
        self._numbers = count()
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._replicas: dict[str, ReplicaModel] = {}
        self._planned: dict[str, float] = {}
        self._waiting: deque[Call] = deque()
        self._open = 0
        self._target = spec.min_replicas if spec.initial_replicas is None else spec.initial_replicas
        self._arrived = [0, 0, 0, 0]
        self.result = SimulationResult()
        for _ in range(self._target):
            self._ready(self._add(0.0), 0.0)
        self._at(spec.tick_s, self._tick)

    def run_until(self, now_s: float) -> None:
        """Work off what happens until then."""
        while self._events and self._events[0][0] <= now_s:
            at_s, _, action = heapq.heappop(self._events)
            action(at_s)

    def run_to_the_end(self, last_arrival_s: float) -> None:
        """Work off what happens until no request is left."""
        now_s = last_arrival_s
        while self._open:
            now_s = max(now_s, self._events[0][0])
            self.run_until(now_s)
        for replica in self._replicas.values():
            self.result.replica_s += now_s - replica.asked_s
        self.result.ended_s = now_s

    def arrive(self, call: Call, now_s: float) -> None:
        """A request comes."""
        self._open += 1
        self._route(call, now_s)
        self._arrived[0] += 1
        missing = call.missing_tokens or call.asked.prompt_tokens - call.asked.prefix_tokens
        self._arrived[1] += missing
        self._arrived[2] += call.asked.output_tokens
        self._arrived[3] += missing**2

    # ---- requests ----------------------------------------------------------------------------------------------------

    def _route(self, call: Call, now_s: float) -> None:
        running = self._running()
        if not running:
            limits = self._spec.limits
            if len(self._waiting) < self._spec.engine.max_num_seqs + limits.max_queued_requests:
                self._waiting.append(call)
            else:
                self._refuse(call, "no replica")
            return
        chosen = self._cheapest([one for one in running if one.room > 0] or running, call.asked, now_s)
        if chosen.room <= 0:
            displaced = chosen.displaced_by(call, now_s)
            self._refuse(call if displaced is None else displaced, "full")
            if displaced is None:
                return
        chosen.take(call, now_s)
        self._replan(chosen)

    def _cheapest(self, running: list[ReplicaModel], asked: TraceRequest, now_s: float) -> ReplicaModel:
        if len(running) == 1:
            return running[0]
        costs = (one.cost_s(asked, now_s, ASSUMED_PREFILL_TOKENS_PER_S, ASSUMED_SERVICE_S) for one in running)
        return min(zip(costs, running, strict=True), key=lambda pair: (pair[0], pair[1].recent_unfinished(now_s)))[1]

    def _step_ended(self, replica: ReplicaModel, now_s: float) -> None:
        if self._planned.get(replica.name) != now_s:
            return  # it was planned again
        for call in replica.finish():
            self._done(call, replica, now_s)
        self._planned.pop(replica.name, None)
        self._replan(replica)
        if replica.state is ReplicaState.DRAINING and not replica.calls:
            self._gone(replica, now_s)

    def _replan(self, replica: ReplicaModel) -> None:
        ends_s = replica.engine.next_end_s
        if self._planned.get(replica.name) == ends_s or ends_s == float("inf"):
            return
        self._planned[replica.name] = ends_s
        self._at(ends_s, lambda now_s: self._step_ended(replica, now_s))

    def _done(self, call: Call, replica: ReplicaModel, now_s: float) -> None:
        first_s = now_s if call.first_token_s is None else call.first_token_s
        tpot_s = (now_s - first_s) / max(call.asked.output_tokens - 1, 1)
        ttft_s = first_s - call.asked.arrival_s + self._spec.overhead_s
        self._open -= 1
        self.result.requests.append(RequestResult(call.asked, ttft_s, tpot_s, replica.name))

    def _refuse(self, call: Call, why: str) -> None:
        self._open -= 1
        self.result.requests.append(RequestResult(call.asked, None, 0.0, "", why))

    # ---- replicas ----------------------------------------------------------------------------------------------------

    def _at(self, at_s: float, action: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (at_s, next(self._order), action))

    def _running(self) -> list[ReplicaModel]:
        return [one for one in self._replicas.values() if one.state is ReplicaState.RUNNING]

    def _add(self, now_s: float) -> ReplicaModel:
        replica = ReplicaModel(f"engine-{next(self._numbers)}", self._spec.engine, self._spec.limits, now_s)
        self._replicas[replica.name] = replica
        self.result.most_replicas = max(self.result.most_replicas, len(self._replicas))
        return replica

    def _ready(self, replica: ReplicaModel, now_s: float) -> None:
        if replica.name not in self._replicas:
            return  # it was stopped before
        replica.state = ReplicaState.RUNNING
        waiting, self._waiting = self._waiting, deque()
        for call in waiting:
            self._route(call, now_s)

    def _gone(self, replica: ReplicaModel, now_s: float) -> None:
        del self._replicas[replica.name]
        self.result.replica_s += now_s - replica.asked_s

    def _tick(self, now_s: float) -> None:
        for replica in list(self._replicas.values()):
            for call in replica.waited_too_long(now_s):
                self._refuse(call, "waited too long")
            self._replan(replica)
        wanted, reason = self._scaler.wanted(self._view(now_s))
        self._scale(min(max(wanted, self._spec.min_replicas), self._spec.max_replicas), reason, now_s)
        self._at(now_s + self._spec.tick_s, self._tick)

    def _view(self, now_s: float) -> FleetView:
        starting = sum(one.state is ReplicaState.STARTING for one in self._replicas.values())
        running = tuple(one.snapshot(now_s) for one in self._running())
        arrived, self._arrived = self._arrived, [0, 0, 0, 0]
        return FleetView(now_s, self._target, running, starting, len(self._waiting), *arrived)

    def _scale(self, wanted: int, reason: str, now_s: float) -> None:
        if wanted == self._target:
            return
        self.result.scale_events.append(ScaleEvent(now_s, self._target, wanted, reason))
        for _ in range(wanted - self._target):
            replica = self._add(now_s)
            self._at(now_s + self._spec.engine.start_s, partial(self._ready, replica))
        for _ in range(self._target - wanted):
            self._stop_one(now_s)
        self._target = wanted

    def _stop_one(self, now_s: float) -> None:
        active = [one for one in self._replicas.values() if one.state is not ReplicaState.DRAINING]
        chosen = min(reversed(active), key=lambda one: (one.state is ReplicaState.RUNNING, len(one.calls)))
        chosen.state = ReplicaState.DRAINING
        if not chosen.calls:
            self._gone(chosen, now_s)
