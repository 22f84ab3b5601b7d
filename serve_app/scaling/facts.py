"""What the scaling policy is told, what it is asked to keep, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from serve_app.scaling.schedule import ScheduleRule


@dataclass(frozen=True)
class ReplicaFacts:
    """One engine that serves, as measured at its replica. None: not measured yet.

    Of `slots` sequences that run at a time `running` are taken; `queued` requests wait in front of the engine. Prompts
    of `queued_prefill_tokens` in all are yet to be computed, at `prefill_tokens_per_s` beside the decoding. A sequence
    runs for `service_s`. It gets a token each `tpot_base_s + sequences * tpot_per_sequence_s`, when so many decode.
    Its requests, and sessions that asked lately, have `session_tokens`, whether the cache holds them or not; there is
    room for `kv_cache_tokens` (0: not known).
    """

    slots: int
    running: int = 0
    queued: int = 0
    queued_prefill_tokens: float = 0.0
    prefill_tokens_per_s: float | None = None
    kv_usage_ratio: float = 0.0
    service_s: float | None = None
    tpot_base_s: float | None = None
    tpot_per_sequence_s: float | None = None
    session_tokens: float = 0.0
    kv_cache_tokens: float = 0.0


@dataclass(frozen=True)
class FleetFacts:
    """The fleet at `now_s` (unix time). Of the `target` replicas that there are to be, `starting` do not serve yet.

    `arrived_requests` and the `arrived_prefill_tokens` of their prompts, those that a cache held left out, count from
    any beginning and never go back, as does the sum of their squares (0: not counted). An engine takes `start_s` to
    start.
    """

    now_s: float
    replicas: tuple[ReplicaFacts, ...]
    target: int
    starting: int
    start_s: float
    arrived_requests: float
    arrived_prefill_tokens: float
    arrived_prefill_squares: float = 0.0


@dataclass(frozen=True)
class Objective:
    """What users are to feel: of 20 requests 19 at most so long. None: no such objective."""

    ttft_p95_s: float | None = None
    tpot_p95_s: float | None = None


@dataclass(frozen=True)
class Bounds:
    """Fewest and most replicas, and the GPUs of all of them together (None: any number). The budget wins over the
    schedule, and `maximum` over `minimum`."""

    minimum: int
    maximum: int
    gpus_per_replica: int = 0
    gpu_budget: int | None = None
    schedule: tuple[ScheduleRule, ...] = ()

    @property
    def most(self) -> int:
        """Most replicas, by number and by GPUs."""
        if self.gpu_budget is None or not self.gpus_per_replica:
            return self.maximum
        return min(self.maximum, self.gpu_budget // self.gpus_per_replica)

    def fewest(self, now_s: float) -> int:
        """Fewest replicas at this unix time."""
        scheduled = (rule.minimum for rule in self.schedule if rule.applies(now_s))
        return min(max(self.minimum, *scheduled, 0), self.most)

    def rule(self, now_s: float) -> ScheduleRule | None:
        """The rule that asks for the most at this unix time, if one asks for more than `minimum`."""
        rules = [rule for rule in self.schedule if rule.applies(now_s) and rule.minimum > self.minimum]
        return max(rules, key=lambda rule: rule.minimum, default=None)


@dataclass(frozen=True)
class Pace:
    """How quickly the policy follows. More engines are wanted for `up_after_s` before they are started; fewer would do
    for `down_after_s`, and for a start time, before one is stopped. Arrival rates are means over `rate_window_s`."""

    up_after_s: float = 30.0
    down_after_s: float = 600.0
    rate_window_s: float = 60.0


@dataclass(frozen=True)
class Settings:
    """The configuration of the policy."""

    objective: Objective
    bounds: Bounds
    pace: Pace = field(default_factory=Pace)


class Cause(StrEnum):
    """Why a target changed, for metrics."""

    PREFILL = "prefill"
    SLOTS = "slots"
    KV_CACHE = "kv_cache"
    SESSIONS = "sessions"
    TPOT = "tpot"
    SPARE = "spare"
    BOUNDS = "bounds"
    SCHEDULE = "schedule"
    NONE = "none"


@dataclass(frozen=True)
class Decision:
    """How many replicas there are to be, and why: `reason` is a sentence without an end, empty where nothing changes.

    `needed` keep the objective, whatever bounds and hysteresis say. The forecasts are for the fleet as it was, a start
    time (`horizon_s`) from now; None: nothing is measured, or there is no such objective.
    """

    target: int
    reason: str = ""
    cause: Cause = Cause.NONE
    needed: int = 0
    ttft_p95_forecast_s: float | None = None
    tpot_p95_forecast_s: float | None = None
    horizon_s: float = 0.0


@dataclass(frozen=True)
class EngineRates:
    """What one engine of the fleet does, on average. `kv_per_sequence_ratio`: the share of its KV cache that a running
    sequence takes."""

    slots: float
    prefill_tokens_per_s: float | None = None
    service_s: float | None = None
    tpot_base_s: float | None = None
    tpot_per_sequence_s: float | None = None
    kv_per_sequence_ratio: float | None = None
    kv_cache_tokens: float = 0.0


@dataclass(frozen=True)
class Arrivals:
    """What had arrived at `at_s`, as in `FleetFacts`."""

    at_s: float
    requests: float
    prefill_tokens: float
    prefill_squares: float = 0.0


@dataclass(frozen=True)
class ScalingState:
    """What the policy remembers from one decision to the next; begin with `ScalingState()`.

    `enough` has the numbers that would have kept the objective with a margin, by time: each lower than the one before,
    as a higher one makes the earlier ones meaningless.
    """

    rates: EngineRates | None = None
    arrivals: tuple[Arrivals, ...] = ()
    enough: tuple[tuple[float, int], ...] = ()
    since_s: float | None = None
    wants_more_since_s: float | None = None
    last_up_s: float | None = None
    last_down_s: float | None = None
