"""The scaling policy, over fleets that are modelled by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.scaling import (
    Bounds,
    Cause,
    Decision,
    FleetFacts,
    Objective,
    Pace,
    ReplicaFacts,
    ScalingState,
    Settings,
    decide,
)
from serve_app.scaling.facts import EngineRates
from serve_app.scaling.forecast import Load, engines_needed
from serve_app.scaling.memory import prompt_spread, remember

START_S = 540.0
ENGINE = ReplicaFacts(
    slots=64, prefill_tokens_per_s=8000.0, service_s=10.0, tpot_base_s=0.02, tpot_per_sequence_s=0.0005
)
SETTINGS = Settings(Objective(ttft_p95_s=3.0, tpot_p95_s=0.06), Bounds(1, 8))
IDLE = FleetFacts(1_000_000.0, (ENGINE,), 1, 0, START_S, 0.0, 0.0)


class Fleet:
    """A fleet in virtual time: it gets what is decided a start time later, and computes what arrives as engines do."""

    def __init__(self, setup: Settings = SETTINGS, start_s: float = START_S, engine: ReplicaFacts = ENGINE) -> None:
        self.setup = setup
        self.engine = engine
        self.facts = replace(IDLE, start_s=start_s, replicas=(engine,))
        self.state = ScalingState()
        self.queued_tokens = 0.0
        self.starting: list[float] = []
        self.decisions: list[tuple[float, Decision]] = []

    @property
    def changes(self) -> list[tuple[float, Decision]]:
        """The decisions that changed something."""
        return [(at_s, one) for at_s, one in self.decisions if one.reason]

    def run(self, seconds: float, requests_per_s: float, prompt_tokens: float, step_s: float = 10.0) -> None:
        """Let so much time pass with such arrivals."""
        for _ in range(int(seconds / step_s)):
            self.step(step_s, requests_per_s, prompt_tokens)

    def step(self, step_s: float, requests_per_s: float, prompt_tokens: float) -> None:
        now_s = self.facts.now_s + step_s
        ready = self.facts.target - len(self.starting)
        self.starting = [at_s for at_s in self.starting if at_s > now_s]
        ready = max(self.facts.target - len(self.starting), 0)
        tokens = requests_per_s * step_s * prompt_tokens
        speed = ready * (self.engine.prefill_tokens_per_s or 0.0)
        self.queued_tokens = max(self.queued_tokens + tokens - speed * step_s, 0.0)
        each = self.queued_tokens / max(ready, 1)
        running = min(int(requests_per_s * (self.engine.service_s or 0) / max(ready, 1)), self.engine.slots)
        one = replace(self.engine, queued_prefill_tokens=each, running=running)
        self.facts = replace(
            self.facts,
            now_s=now_s,
            replicas=(one,) * ready,
            starting=len(self.starting),
            arrived_requests=self.facts.arrived_requests + requests_per_s * step_s,
            arrived_prefill_tokens=self.facts.arrived_prefill_tokens + tokens,
        )
        decision, self.state = decide(self.facts, self.state, self.setup)
        self.decisions.append((now_s, decision))
        before, self.facts = self.facts.target, replace(self.facts, target=decision.target)
        for _ in range(decision.target - before):
            self.starting.append(now_s + self.facts.start_s)
        if decision.target < before:
            self.starting = self.starting[: max(0, len(self.starting) - (before - decision.target))]


def test_an_idle_fleet_stays_as_it_is() -> None:
    fleet = Fleet()
    fleet.run(3600, 0.1, 500)
    assert not fleet.changes


def test_more_prompts_than_an_engine_computes_start_more_engines() -> None:
    fleet = Fleet()
    fleet.run(600, 0.5, 2000)
    fleet.run(3600, 8, 2000)  # 16,000 tokens/s: two engines cannot keep it, three can
    assert 3 <= fleet.facts.target <= 6
    assert Cause.PREFILL in {one.cause for _, one in fleet.changes}
    assert fleet.decisions[-1][1].ttft_p95_forecast_s is not None
    assert fleet.queued_tokens == 0


def test_the_fleet_shrinks_when_the_load_has_gone_and_says_why() -> None:
    fleet = Fleet()
    fleet.run(3600, 8, 2000)
    fleet.run(7200, 0.5, 2000)
    assert fleet.facts.target == 1
    last = fleet.changes[-1][1]
    assert last.cause is Cause.SPARE
    assert last.reason.startswith(f"scaled {fleet.changes[-2][1].target} -> 1: 1 would have been enough for 10 min")


def test_a_load_that_has_gone_is_forgotten_however_few_its_requests_were() -> None:
    fleet = Fleet(start_s=60.0)
    fleet.run(3600, 1, 14_000)  # 60 requests in a window: the rate is taken over two
    at_s, before = fleet.facts.now_s, fleet.facts.target
    assert before > 2
    fleet.run(3600, 0, 0)
    assert fleet.facts.target == 1
    pace = SETTINGS.pace
    assert fleet.changes[-1][0] - at_s <= pace.down_after_s + 2 * pace.rate_window_s


def test_a_lull_is_no_end_of_the_load() -> None:
    fleet = Fleet(start_s=60.0)
    fleet.run(3600, 1, 14_000)
    before = fleet.facts.target
    fleet.run(120, 0.3, 14_000)
    fleet.run(1200, 1, 14_000)
    assert fleet.facts.target == before


@pytest.mark.parametrize("up_after_s", [30.0, 120.0, 180.0])
def test_prompts_that_come_in_groups_start_engines_however_long_more_must_be_needed(up_after_s: float) -> None:
    pace = replace(SETTINGS.pace, up_after_s=up_after_s)
    fleet = Fleet(Settings(Objective(ttft_p95_s=30.0), Bounds(1, 8), pace), start_s=60.0)
    for _ in range(20):
        fleet.run(20, 0.3, 100_000)
        fleet.queued_tokens = 0.0  # else what waits would start them
        fleet.run(160, 0, 0)
    assert fleet.facts.target > 1


def test_a_short_burst_that_is_gone_before_an_engine_could_start_starts_none() -> None:
    fleet = Fleet()
    fleet.run(600, 0.5, 2000)
    fleet.queued_tokens = 20 * 8000.0
    fleet.run(600, 0.5, 2000)
    assert not fleet.changes


def test_tokens_that_come_too_slowly_start_engines() -> None:
    slow = replace(ENGINE, tpot_per_sequence_s=0.001)
    fleet = Fleet(engine=slow)
    fleet.run(1200, 5, 100)
    assert fleet.facts.target == 2
    assert fleet.changes[0][1].cause is Cause.TPOT
    assert "TPOT p95 forecast" in fleet.changes[0][1].reason


def test_a_full_cache_counts_as_full_slots() -> None:
    room = replace(ENGINE, kv_usage_ratio=0.95)
    fleet = Fleet(Settings(Objective(ttft_p95_s=3.0), Bounds(1, 8)), engine=room)
    fleet.run(1200, 3, 100)
    assert fleet.facts.target > 1
    assert fleet.changes[0][1].cause is Cause.KV_CACHE


def test_sessions_that_do_not_fit_into_the_caches_start_engines_before_they_are_computed_again() -> None:
    full = replace(ENGINE, session_tokens=2_500_000.0, kv_cache_tokens=2_700_000.0)
    fleet = Fleet(Settings(Objective(ttft_p95_s=3.0), Bounds(1, 8)), engine=full)
    fleet.run(60, 0.5, 100)
    (change,) = fleet.changes
    assert change[1].cause is Cause.SESSIONS
    assert change[1].reason.startswith("scaled 1 -> 2: sessions of 2.5 M tokens where 2.7 M fit into the KV caches")
    roomy = Fleet(engine=replace(full, session_tokens=1_500_000.0))
    roomy.run(600, 0.5, 100)
    assert not roomy.changes


def test_prompts_that_are_alike_need_fewer_engines_than_prompts_that_differ() -> None:
    load = Load(EngineRates(64.0, 8000.0, 10.0), 7.0, 14_000.0, 0.0, 0, 0, 3, 3, 0.0, START_S)
    alike, spread = replace(load, prompt_spread=0.1), replace(load, prompt_spread=4.0)
    needed = [engines_needed(one, Objective(ttft_p95_s=1.0), 64) for one in (alike, load, spread)]
    assert needed == sorted(needed)
    assert needed[0] < needed[2]


@pytest.mark.parametrize(("lengths", "expected"), [([2000], 0.1), ([500, 3500], 0.5625), ([1, 1, 1, 80_000], 2.9998)])
def test_the_spread_is_that_of_the_prompts_that_came(lengths: list[int], expected: float) -> None:
    state = remember(IDLE, ScalingState(), Pace())
    count = 40 * len(lengths)
    facts = replace(
        IDLE,
        now_s=IDLE.now_s + 60,
        arrived_requests=count,
        arrived_prefill_tokens=40.0 * sum(lengths),
        arrived_prefill_squares=40.0 * sum(one**2 for one in lengths),
    )
    assert prompt_spread(facts, state) == pytest.approx(expected, rel=1e-3)
    assert prompt_spread(replace(facts, arrived_requests=3), state) == 1.0, "too few to tell"


def test_the_reason_says_what_waits_and_what_users_would_feel() -> None:
    facts = replace(IDLE, replicas=(replace(ENGINE, queued_prefill_tokens=41 * 8000.0),) * 2, target=2)
    state = ScalingState()
    for second in range(0, 130, 5):
        now = replace(
            facts,
            now_s=facts.now_s + second,
            arrived_requests=second * 8.1,
            arrived_prefill_tokens=second * 8.1 * 2000,
        )
        decision, state = decide(now, state, SETTINGS)
        if decision.reason:
            break
    assert decision.reason.startswith(f"scaled 2 -> {decision.target}: 41 s of prefill queued, TTFT p95 forecast ")
    assert "s > 3 s in 9 min" in decision.reason


def test_no_replicas_are_left_alone() -> None:
    empty = replace(IDLE, replicas=(), target=0)
    decision, _ = decide(empty, ScalingState(), replace(SETTINGS, bounds=Bounds(0, 4)))
    assert decision.target == 0
    decision, _ = decide(replace(empty, target=1, starting=1), ScalingState(), replace(SETTINGS, bounds=Bounds(0, 4)))
    assert decision.target == 1


def test_an_engine_that_has_measured_nothing_is_sized_by_its_slots() -> None:
    fleet = Fleet(engine=ReplicaFacts(slots=4))
    fleet.run(300, 1, 100)
    assert fleet.facts.target == 1
    facts = replace(fleet.facts, replicas=(ReplicaFacts(slots=4, running=4, queued=5),))
    state = fleet.state
    for second in range(0, 60, 5):
        decision, state = decide(replace(facts, now_s=facts.now_s + second), state, fleet.setup)
        if decision.reason:
            break
    assert decision.target == 3
    assert decision.cause is Cause.SLOTS


# ---- properties ------------------------------------------------------------------------------------------------------

PHASES = st.lists(st.tuples(st.floats(30, 1500), st.floats(0, 30), st.floats(10, 20_000)), min_size=1, max_size=8)


@settings(max_examples=25, deadline=None)
@given(phases=PHASES, start_s=st.floats(0, 900), down_after_s=st.floats(0, 900))
def test_no_direction_changes_within_a_start_time(
    phases: list[tuple[float, float, float]], start_s: float, down_after_s: float
) -> None:
    fleet = Fleet(replace(SETTINGS, pace=Pace(0.0, down_after_s, 60.0)), start_s)
    for seconds, requests_per_s, tokens in phases:
        fleet.run(seconds, requests_per_s, tokens)
    before = 1
    last: tuple[float, bool] | None = None
    for at_s, decision in fleet.changes:
        up = decision.target > before
        if last is not None and last[1] != up:
            assert at_s - last[0] >= start_s
        last, before = (at_s, up), decision.target


@settings(max_examples=25, deadline=None)
@given(phases=PHASES, gpus=st.integers(1, 8), budget=st.integers(0, 40), maximum=st.integers(1, 9))
def test_the_gpu_budget_is_never_passed(
    phases: list[tuple[float, float, float]], gpus: int, budget: int, maximum: int
) -> None:
    bounds = Bounds(1, maximum, gpus_per_replica=gpus, gpu_budget=budget)
    fleet = Fleet(replace(SETTINGS, bounds=bounds), 60.0)
    for seconds, requests_per_s, tokens in phases:
        fleet.run(seconds, requests_per_s, tokens)
    assert all(one.target * gpus <= budget and one.target <= maximum for _, one in fleet.decisions)
