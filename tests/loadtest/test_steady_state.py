"""The steady window, its intervals, and the series over time."""

from __future__ import annotations

import numpy as np
import pytest

from loadtest.metrics.steady_state import Estimate, find_steady_state
from loadtest.metrics.time_series import time_series_of
from tests.loadtest.records import record, run_of


def test_ramp_and_tail_are_left_out() -> None:
    records = [record(slot * 5 + wave * 1000, 100, 9, 100, index=wave) for wave in range(10) for slot in range(4)]
    steady = find_steady_state(run_of(records), slots=4)
    assert steady is not None
    assert steady.begin_s == pytest.approx(0.015)
    assert steady.end_s == pytest.approx(9.991, abs=0.02)
    assert steady.output_rate.mean == pytest.approx(400, rel=0.03)
    assert steady.ttft.mean == pytest.approx(100)


def test_a_run_too_short_has_none() -> None:
    assert find_steady_state(run_of([record(0, 10, 1, 3)]), slots=1) is None


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        estimate = Estimate.of(rng.normal(5, 2, size=10))
        hits += abs(estimate.mean - 5) <= estimate.half_width
    assert 930 <= hits <= 970


def test_the_series_adds_up_to_the_run() -> None:
    run = run_of([record(i * 37, 50, 7, 20, index=i) for i in range(30)])
    series = time_series_of(run)
    tokens = sum(rate or 0 for rate in series.output_rate) * series.step_s
    assert tokens == pytest.approx(600, abs=1)
    busy_s = sum(level or 0 for level in series.inflight) * series.step_s
    assert busy_s == pytest.approx(sum((r.end_ns - r.start_ns) / 1e9 for r in run.records), rel=1e-6)
