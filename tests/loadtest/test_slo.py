"""Objectives: failures are misses. Recovery: how long after a disturbance they are met again."""

from __future__ import annotations

import math

import pytest

from loadtest.api.record import RunRecords
from loadtest.errors import UsageError
from loadtest.metrics.slo import evaluate_bounds, joint_attainment, parse_bounds, recoveries
from tests.loadtest.records import record, run_of


def test_a_failure_is_a_miss() -> None:
    records = [record(0, 100, 10, 5) for _ in range(98)] + [record(0, 100, 10, 5, ok=False) for _ in range(2)]
    results = evaluate_bounds(parse_bounds("ttft_p99<1s,ttft_p90<1s,failed<1%,failed<=2%"), run_of(records))
    assert [result.met for result in results] == [False, True, False, True]
    assert math.isinf(results[0].value)
    assert results[0].attainment == pytest.approx(0.98)


def test_units_are_converted() -> None:
    assert [bound.limit for bound in parse_bounds("ttft_p50<1.5s,tpot_mean<30ms,e2el_max<200,failed<1%")] == [
        1500, 30, 200, 0.01,
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["ttft<3s", "foo_p99<3", "failed_p99<1", "ttft_p99=3", "ttft_p99<"])
def test_a_malformed_bound_is_rejected(text: str) -> None:
    with pytest.raises(UsageError):
        parse_bounds(text)


def test_all_limits_at_once() -> None:
    run = run_of([record(0, 100, 10, 5), record(0, 300, 10, 5), record(0, 100, 50, 5)])
    assert joint_attainment(parse_bounds("ttft_p99<200ms,tpot_p99<20ms"), run) == pytest.approx(1 / 3)


BOUNDS = parse_bounds("ttft_p90<100ms")


def test_recovery_ends_with_the_first_good_window() -> None:
    records = [record(i * 100, 1000 if 10_000 <= i * 100 < 14_000 else 50, 1, 3, index=i) for i in range(300)]
    ((moment, seconds),) = recoveries(run_of(records), BOUNDS, [10.0])
    assert moment == 10.0
    assert seconds == pytest.approx(3.5, abs=0.6)


def test_no_miss_is_zero_and_no_recovery_is_none() -> None:
    calm = [record(i * 100, 50, 1, 3, index=i) for i in range(100)]
    assert recoveries(run_of(calm), BOUNDS, [5.0]) == ((5.0, 0.0),)
    lost = [record(i * 100, 50 if i < 50 else 900, 1, 3, index=i) for i in range(100)]
    assert recoveries(run_of(lost), BOUNDS, [5.0]) == ((5.0, None),)


@pytest.mark.parametrize(
    ("bound", "value"),
    [
        ("ttft_min<1s", 100), ("ttft_mean<1s", 150), ("ttft_max<1s", 200), ("ttft_p50<1s", 150), ("e2el_max<1s", 240),
        ("tpot_max<1s", 10), ("gap_max<1s", 10), ("ttft_intended_max<1s", 200), ("e2el_intended_min<1s", 140),
        ("visible_max<1s", 200), ("failed<1%", 0), ("request_rate>1", 2 / 0.24), ("output_rate>1", 10 / 0.24),
    ],
)  # fmt: skip
def test_every_metric_and_statistic_has_its_value(bound: str, value: float) -> None:
    run = run_of([record(0, 100, 10, 5), record(0, 200, 10, 5)])
    (result,) = evaluate_bounds(parse_bounds(bound), run)
    assert result.value == pytest.approx(value)
    assert result.met
    rate = bound.split("<", maxsplit=1)[0] == "failed" or ">" in bound
    assert result.attainment == (None if rate else 1.0)


def test_the_limit_itself_meets_only_bounds_that_include_it() -> None:
    run = run_of([record(0, 100, 10, 5), record(0, 100, 10, 5, ok=False)])
    results = evaluate_bounds(parse_bounds("failed<50%,failed<=50%,failed>50%,failed>=50%"), run)
    assert [result.met for result in results] == [False, True, False, True]


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("ttft<3s", "ttft_p99"),
        ("failed_p99<1", "Write failed alone"),
        ("ttft_p101<3s", "ttft_p99.9"),
        ("x", "metrics are"),
    ],
)
def test_a_malformed_bound_gets_its_remedy(text: str, remedy: str) -> None:
    with pytest.raises(UsageError, match=remedy):
        parse_bounds(text)


def test_a_run_without_requests_meets_no_time_limit() -> None:
    run = RunRecords([], 0, 10**9, 0.0)
    (result,) = evaluate_bounds(parse_bounds("ttft_p99<1s"), run)
    assert (result.value, result.met, result.attainment) == (math.inf, False, 0.0)
    assert recoveries(run, parse_bounds("ttft_p99<1s"), [1.0]) == ()
    assert joint_attainment(parse_bounds("ttft_p99<1s"), run) is None
