"""The policies that are compared: each decides how many replicas there are, from what replicas report. Pure.

* `static`: always as many.
* `utilization`: that of `engine/autoscaling.py`, with Serve's look-back and delays, as `app.py` sets them.
* `requests`: Serve's own, `target_ongoing_requests` for each replica.
* `slo`: `serve_app/scaling`, which keeps an objective.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from serve_app.engine.autoscaling import replicas_wanted
from serve_app.scaling import Bounds, FleetFacts, Objective, Pace, ReplicaFacts, ScalingState, Settings, decide
from serve_app.simulate.fleet_model import FleetView
from serve_app.simulate.replica_model import ReplicaSnapshot

DELAY_EPSILON_S = 1e-6
"""As in Serve: sums of times are not exact."""


@dataclass
class StaticScaler:
    """Always as many."""

    replicas: int

    def wanted(self, view: FleetView) -> tuple[int, str]:  # noqa: ARG002  # nothing that happens matters
        """See `fleet_model.Scaler`."""
        return self.replicas, ""


@dataclass(frozen=True)
class ServeDelays:
    """Serve's settings: `look_back_s` of reports are averaged; a decision must stand for a delay before it counts."""

    look_back_s: float = 30.0
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0


@dataclass
class DelayedTarget:
    """Serve's delays (`_apply_delay_logic` of its policies): a decision counts when all since a delay have pointed the
    same way. To zero only one by one."""

    delays: ServeDelays
    _direction: int = 0
    _since_s: float = 0.0

    def apply(self, desired: int, target: int, now_s: float) -> int:
        """The target from now on."""
        direction = (desired > target) - (desired < target)
        if direction != self._direction:
            self._direction, self._since_s = direction, now_s
        if not direction:
            return target
        delay_s = self.delays.upscale_delay_s if direction > 0 else self.delays.downscale_delay_s
        if now_s - self._since_s + DELAY_EPSILON_S < delay_s:
            return target
        self._direction = 0
        return desired if direction > 0 or target == 1 else max(desired, 1)


class LookBack:
    """The mean of what each replica reported lately, as Serve computes it."""

    def __init__(self, look_back_s: float) -> None:
        self._look_back_s = look_back_s
        self._reports: dict[str, deque[tuple[float, float]]] = {}

    def means(self, now_s: float, reports: dict[str, float]) -> list[float]:
        """The means of the replicas that report now."""
        self._reports = {name: self._reports.get(name, deque()) for name in reports}
        for name, value in reports.items():
            kept = self._reports[name]
            kept.append((now_s, value))
            while kept[0][0] <= now_s - self._look_back_s:
                kept.popleft()
        return [sum(value for _, value in kept) / len(kept) for kept in self._reports.values()]


class ServeScaler:
    """A policy with Serve's look-back and delays: `measure` is what a replica reports, `desired` how many replicas are
    wanted with these means."""

    def __init__(
        self, measure: Callable[[ReplicaSnapshot], float], desired: Callable[[list[float]], int], delays: ServeDelays
    ) -> None:
        self._measure = measure
        self._desired = desired
        self._look_back = LookBack(delays.look_back_s)
        self._delayed = DelayedTarget(delays)

    def wanted(self, view: FleetView) -> tuple[int, str]:
        """See `fleet_model.Scaler`."""
        means = self._look_back.means(view.now_s, {one.name: self._measure(one) for one in view.replicas})
        if not means:
            return view.target, ""
        desired = self._desired(means)
        after = self._delayed.apply(desired, view.target, view.now_s)
        return after, f"{sum(means) / len(means):.2f} in each of {len(means)} replicas"


def utilization_scaler(target_load: float, delays: ServeDelays) -> ServeScaler:
    """Today's policy."""
    return ServeScaler(lambda one: one.utilization, lambda means: replicas_wanted(means, target_load), delays)


def requests_scaler(target_ongoing_requests: float, delays: ServeDelays) -> ServeScaler:
    """Serve's own policy: as many replicas as have so many requests each."""
    return ServeScaler(
        lambda one: float(one.unfinished), lambda means: replicas_wanted(means, target_ongoing_requests), delays
    )


@dataclass
class SloScaler:
    """The policy that keeps an objective. An engine takes `start_s` to start, which the fleet knows from its last
    start. `tpot_base_s` is the time of a token for a request that is alone."""

    objective: Objective
    bounds: Bounds
    pace: Pace
    start_s: float
    tpot_base_s: float
    _state: ScalingState = field(default_factory=ScalingState)
    _arrived_requests: int = 0
    _arrived_prefill_tokens: int = 0
    _arrived_prefill_squares: int = 0

    def wanted(self, view: FleetView) -> tuple[int, str]:
        """See `fleet_model.Scaler`."""
        self._arrived_requests += view.arrived
        self._arrived_prefill_tokens += view.arrived_prefill_tokens
        self._arrived_prefill_squares += view.arrived_prefill_squares
        facts = FleetFacts(
            now_s=view.now_s,
            replicas=tuple(self._facts(one) for one in view.replicas),
            target=view.target,
            starting=view.starting,
            start_s=self.start_s,
            arrived_requests=self._arrived_requests,
            arrived_prefill_tokens=self._arrived_prefill_tokens,
            arrived_prefill_squares=self._arrived_prefill_squares,
        )
        decision, self._state = decide(facts, self._state, Settings(self.objective, self.bounds, self.pace))
        return decision.target, decision.reason

    def _facts(self, one: ReplicaSnapshot) -> ReplicaFacts:
        running = one.unfinished - one.queued
        beside_others_s = None if one.tpot_s is None else max(one.tpot_s - self.tpot_base_s, 0.0)
        return ReplicaFacts(
            slots=one.slots,
            running=running,
            queued=one.queued,
            queued_prefill_tokens=one.queued_prefill_tokens,
            prefill_tokens_per_s=one.prefill_tokens_per_s,
            kv_usage_ratio=one.kv_usage_ratio,
            service_s=one.service_s,
            tpot_base_s=None if one.tpot_s is None else self.tpot_base_s,
            tpot_per_sequence_s=None if beside_others_s is None else beside_others_s / max(one.recent_unfinished, 1.0),
            session_tokens=one.session_tokens,
            kv_cache_tokens=one.kv_cache_tokens,
        )
