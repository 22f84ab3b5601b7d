"""The forecast, and what makes its answers usable: more load never asks for fewer engines, more engines never hurt."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from heapq import heappop, heappush

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.scaling.facts import EngineRates, Objective
from serve_app.scaling.forecast import Load, _wait_p95, engines_needed, forecast

RATES = EngineRates(slots=64, prefill_tokens_per_s=8000.0, service_s=10.0, tpot_base_s=0.02, tpot_per_sequence_s=0.0005)
QUIET = Load(
    RATES,
    requests_per_s=0.5,
    prefill_tokens_per_s=1000.0,
    queued_prefill_tokens=0.0,
    queued_requests=0,
    running=5,
    ready=1,
    ordered=1,
    ordered_in_s=0.0,
    horizon_s=300.0,
)
OBJECTIVE = Objective(ttft_p95_s=3.0, tpot_p95_s=0.05)

MAYBE = st.none() | st.floats(0.001, 50)
LOADS = st.builds(
    Load,
    rates=st.builds(
        EngineRates,
        slots=st.integers(1, 512),
        prefill_tokens_per_s=st.none() | st.floats(10, 1e5),
        service_s=MAYBE,
        tpot_base_s=st.none() | st.floats(0, 0.2),
        tpot_per_sequence_s=st.none() | st.floats(0, 0.01),
        kv_per_sequence_ratio=st.none() | st.floats(0.001, 1.5),
    ),
    requests_per_s=st.floats(0, 100),
    prefill_tokens_per_s=st.floats(0, 1e6),
    queued_prefill_tokens=st.floats(0, 1e7),
    queued_requests=st.integers(0, 2000),
    running=st.integers(0, 2000),
    ready=st.integers(0, 20),
    ordered=st.integers(0, 20),
    ordered_in_s=st.floats(0, 900),
    horizon_s=st.floats(0, 900),
)
OBJECTIVES = st.builds(Objective, st.none() | st.floats(0.01, 100), st.none() | st.floats(0.001, 1))


@given(
    load=LOADS,
    objective=OBJECTIVES,
    field=st.sampled_from(["requests_per_s", "queued_prefill_tokens", "queued_requests"]),
    factor=st.floats(1, 20),
)
def test_more_load_never_asks_for_fewer_engines(load: Load, objective: Objective, field: str, factor: float) -> None:
    changes: dict[str, float] = {field: math.ceil(getattr(load, field) * factor)}
    if field == "requests_per_s":  # more of the same requests
        grown = changes[field] / load.requests_per_s if load.requests_per_s else 1.0
        changes["prefill_tokens_per_s"] = load.prefill_tokens_per_s * grown
    more = replace(load, **changes)  # type: ignore[arg-type]  # numbers of the fields' own kinds
    assert engines_needed(more, objective, 100) >= engines_needed(load, objective, 100)


@given(load=LOADS, objective=OBJECTIVES, factor=st.floats(1, 5))
def test_a_margin_never_asks_for_fewer_engines(load: Load, objective: Objective, factor: float) -> None:
    assert engines_needed(load.with_margin(factor), objective, 100) >= engines_needed(load, objective, 100)


@given(load=LOADS, objective=OBJECTIVES, engines=st.integers(1, 40))
def test_another_engine_never_breaks_the_objective(load: Load, objective: Objective, engines: int) -> None:
    if forecast(engines, load).keeps(objective):
        assert forecast(engines + 1, load).keeps(objective)


@given(load=LOADS, objective=OBJECTIVES)
def test_the_fewest_engines_are_the_fewest(load: Load, objective: Objective) -> None:
    found = engines_needed(load, objective, 60)
    assert found == 60 or forecast(found, load).keeps(objective)
    assert found == 1 or not forecast(found - 1, load).keeps(objective)


@pytest.mark.parametrize(("servers", "busy_ratio"), [(1, 0.5), (1, 0.8), (2, 0.8), (4, 0.7), (4, 0.9), (16, 0.9)])
def test_the_wait_is_that_of_a_simulated_queue(servers: int, busy_ratio: float) -> None:
    """Within a fifth of a service time, or 15 %: M/M/c, simulated."""
    draw, free, now_s, waits = random.Random(1), [0.0] * servers, 0.0, []
    for _ in range(200_000):
        now_s += draw.expovariate(servers * busy_ratio)
        start_s = max(now_s, heappop(free))
        waits.append(start_s - now_s)
        heappush(free, start_s + draw.expovariate(1))
    measured_s = sorted(waits)[int(0.95 * len(waits))]
    assert _wait_p95(servers, busy_ratio, 1.0) == pytest.approx(measured_s, rel=0.15, abs=0.2)


def test_a_quiet_engine_is_enough() -> None:
    assert engines_needed(QUIET, OBJECTIVE, 8) == 1
    assert forecast(1, QUIET).prompt_p95_s == pytest.approx(3 * 2000 / 8000, rel=0.01)


def test_a_queue_that_is_gone_before_an_engine_could_start_asks_for_none() -> None:
    assert engines_needed(replace(QUIET, queued_prefill_tokens=60 * 8000), OBJECTIVE, 8) == 1
    assert engines_needed(replace(QUIET, queued_prefill_tokens=900 * 8000), OBJECTIVE, 8) > 1


def test_what_is_on_its_way_counts() -> None:
    busy = replace(QUIET, requests_per_s=6.0, prefill_tokens_per_s=12_000.0, queued_prefill_tokens=100_000)
    alone = forecast(3, busy)
    helped = forecast(3, replace(busy, ordered=3, ordered_in_s=30.0))
    assert helped.prefill_wait_p95_s < alone.prefill_wait_p95_s + 1e-9
    assert forecast(2, replace(busy, ordered=2, ordered_in_s=200.0)).prefill_wait_p95_s > 0


def test_a_prompt_that_takes_longer_than_the_objective_does_not_start_every_engine() -> None:
    long = replace(QUIET, requests_per_s=0.02, prefill_tokens_per_s=0.02 * 60_000)
    assert forecast(1, long).prompt_p95_s > 3
    assert engines_needed(long, OBJECTIVE, 64) <= 4


def test_an_engine_that_is_slower_than_the_objective_alone_does_not_start_others() -> None:
    slow = replace(QUIET, rates=replace(RATES, tpot_base_s=0.2))
    assert engines_needed(slow, OBJECTIVE, 8) == 1


def test_a_cache_that_holds_fewer_sequences_than_there_are_slots_counts() -> None:
    crowded = replace(QUIET, requests_per_s=3.0, prefill_tokens_per_s=300.0, running=30)
    objective = Objective(ttft_p95_s=3.0)
    assert engines_needed(crowded, objective, 8) == 1
    assert engines_needed(replace(crowded, rates=replace(RATES, kv_per_sequence_ratio=0.05)), objective, 8) >= 2
