"""The time per token by batch size, measured from steps."""

from __future__ import annotations

import random

import pytest

from serve_app.engine.scaling_facts import ScalingCounts


def measured(sizes: list[int], base_s: float, each_s: float, tokens_per_step: int = 1) -> tuple[float, float]:
    counts, now_s = ScalingCounts(), 0.0
    for size in sizes:
        now_s += (base_s + each_s * size) * tokens_per_step
        counts.step(now_s, size, size * tokens_per_step)
    assert counts.tpot_line_s is not None
    return counts.tpot_line_s


def test_the_line_is_found_where_batches_vary() -> None:
    draw = random.Random(1)
    sizes = [draw.randint(1, 40) for _ in range(500)]
    assert measured(sizes, 0.02, 0.0005) == pytest.approx((0.02, 0.0005), rel=0.01)


def test_a_step_of_several_tokens_counts_for_each() -> None:
    draw = random.Random(1)
    sizes = [draw.randint(1, 40) for _ in range(500)]
    assert measured(sizes, 0.02, 0.0005, tokens_per_step=3) == pytest.approx((0.02, 0.0005), rel=0.01)


def test_batches_of_one_size_tell_the_time_at_that_size() -> None:
    base_s, each_s = measured([10] * 50, 0.02, 0.001)
    assert base_s + 10 * each_s == pytest.approx(0.03)
    assert base_s > 0 and each_s > 0


def test_waiting_for_a_first_token_is_no_step() -> None:
    counts = ScalingCounts()
    counts.step(1.0, 0, 0)
    counts.step(90.0, 0, 0)
    assert counts.tpot_line_s is None
    counts.arrive(300)
    counts.arrive(200)
    assert (counts.arrived_requests, counts.arrived_prefill_tokens) == (2, 500)
