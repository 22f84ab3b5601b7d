"""The search: its path, its knee, its early stop, and what an interrupt leaves."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.metrics.load_search import (
    EarlyStopRule,
    SearchInterrupted,
    SearchRange,
    SearchStep,
    find_highest_load,
    find_knee,
    next_load,
    ttft_grew_throughout,
)
from loadtest.metrics.slo import evaluate_bounds, parse_bounds
from loadtest.metrics.vllm_metrics import compute_vllm_metrics
from loadtest.report.text import search_text
from tests.loadtest.records import record, run_of


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1100), st.integers(1, 64))
async def test_the_highest_passing_load_is_found(truth: int, low: int) -> None:
    async def run_step(load: float) -> SearchStep:
        records = [record(0, 10 if load <= truth else 1000, 1, 3)]
        bounds = parse_bounds("ttft_p99<100ms")
        run = run_of(records)
        return SearchStep(
            load, compute_vllm_metrics(records, 1.0, [50.0, 99.0]), tuple(evaluate_bounds(bounds, run)), False, run
        )

    found = await find_highest_load(SearchRange(low, 1024, integral=True, precision=0.0), run_step)
    if truth >= 1:
        assert found.best is not None
        assert found.best.load == min(truth, 1024)
    else:
        assert found.best is None
    assert found.exhausted == (truth >= 1024)


async def test_steps_before_an_interrupt_are_reported() -> None:
    async def run_step(load: float) -> SearchStep:
        if load > 4:
            raise SearchInterrupted
        records = [record(0, 10, 1, 3)]
        return SearchStep(load, compute_vllm_metrics(records, 1.0, [50.0, 99.0]), (), False, run_of(records))

    found = await find_highest_load(SearchRange(1, 1024, integral=True), run_step)
    assert [step.load for step in found.steps] == [1, 2, 4]
    assert found.interrupted
    assert not found.exhausted
    assert "4 requests at a time among those tried: the search was interrupted" in search_text(found, "concurrency")


def test_the_path_doubles_then_halves() -> None:
    span = SearchRange(1, 100, integral=True)
    assert next_load(span, 1, None) == 2
    assert next_load(span, 64, None) == 100
    assert next_load(span, 16, 32) == 24
    assert next_load(span, 16, 17) is None
    assert next_load(span, None, 1) is None
    assert next_load(span, None, 8) == 4
    assert next_load(span, 100, None) is None


def test_a_step_that_cannot_pass_is_known_early() -> None:
    rule = EarlyStopRule(parse_bounds("ttft_p99<100ms"), total=100)
    results = [rule.add(ok=True, ttft_ms=500, tpot_ms=1) for _ in range(3)]
    assert results == [False, False, True]


def test_the_knee_is_where_more_brings_less() -> None:
    def step(load: float, rate: float) -> SearchStep:
        records = [record(0, 10, 1, max(1, round(rate)))]
        return SearchStep(load, compute_vllm_metrics(records, 1.0, [99.0]), (), False, run_of(records))

    steps = [step(1, 100), step(2, 200), step(4, 390), step(8, 420), step(16, 425)]
    knee = find_knee(steps)
    assert knee is not None
    assert knee.load == 4


def test_a_growing_queue_is_overload_and_a_noisy_server_is_not() -> None:
    rng = np.random.default_rng(0)
    growing = [record(i * 10, 50 + i * 5 + rng.uniform(0, 60), 1, 3, index=i) for i in range(100)]
    noisy = [record(i * 10, rng.uniform(20, 600), 1, 3, index=i) for i in range(100)]
    assert ttft_grew_throughout(run_of(growing))
    assert not ttft_grew_throughout(run_of(noisy))
