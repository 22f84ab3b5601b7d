"""How many ingresses are wanted, from the load of their event loops."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.ingress.autoscaling import LAG_LIMIT_S, IngressLoad, ingresses_wanted

TARGET = 0.6
IDLE = IngressLoad(1, [0.02], lag_s=0.002, requests_ratio=0.0, silent_replicas=0)
LATE_S = 2 * LAG_LIMIT_S


def wanted(load: IngressLoad = IDLE, **changes: Any) -> int:
    return ingresses_wanted(replace(load, **changes), TARGET)


@pytest.mark.parametrize(
    ("busy_ratios", "count"),
    [
        ([0.0], 1),
        ([0.6], 1),
        ([0.61], 2),
        ([0.95], 2),
        ([0.6, 0.6, 0.6], 3),
        ([0.9, 0.9, 0.9], 5),
        ([0.2, 0.2, 0.9], 3),  # the mean counts: connections spread
    ],
)
def test_ingresses_are_added_until_their_mean_is_at_the_target(busy_ratios: list[float], count: int) -> None:
    assert wanted(target_replicas=len(busy_ratios), busy_ratios=busy_ratios) == count


@pytest.mark.parametrize(
    ("busy_ratios", "count"),
    [
        ([0.3, 0.3], 2),  # one would be at the target: it would be two again with the next request
        ([0.23, 0.23], 2),
        ([0.2, 0.2], 1),
        ([0.3, 0.3, 0.3], 2),
        ([0.02] * 8, 1),
    ],
)
def test_ingresses_are_stopped_where_the_others_stay_well_below_the_target(
    busy_ratios: list[float], count: int
) -> None:
    assert wanted(target_replicas=len(busy_ratios), busy_ratios=busy_ratios) == count


@given(work=st.floats(0, 40), first=st.integers(1, 60), lag_s=st.floats(0, 2 * LAG_LIMIT_S))
def test_constant_work_settles_at_the_second_decision(work: float, first: int, lag_s: float) -> None:
    def decide(count: int) -> int:
        return wanted(target_replicas=count, busy_ratios=[work / count] * count, lag_s=lag_s)

    settled = decide(decide(first))
    assert decide(settled) == settled


@given(work=st.floats(0, 40), wave=st.floats(0, 0.1))
def test_a_load_that_wavers_by_a_tenth_never_stops_what_it_started(work: float, wave: float) -> None:
    high = wanted(busy_ratios=[work * (1 + wave)])
    assert wanted(target_replicas=high, busy_ratios=[work * (1 - wave)]) == high


def test_a_late_event_loop_gets_one_more_ingress_and_no_second_one() -> None:
    assert wanted(lag_s=LATE_S) == 2
    assert wanted(target_replicas=2, busy_ratios=[0.02, 0.02], lag_s=LATE_S) == 2
    assert wanted(target_replicas=4, busy_ratios=[0.02] * 4, lag_s=LATE_S) == 2


def test_lag_adds_nothing_while_the_work_asks_for_more() -> None:
    assert wanted(busy_ratios=[0.99], lag_s=LATE_S) == 2
    assert wanted(target_replicas=2, busy_ratios=[0.6, 0.6], lag_s=LATE_S) == 3


def test_what_lag_has_added_stays_until_the_lag_is_low() -> None:
    two = replace(IDLE, target_replicas=2, busy_ratios=[0.02, 0.02])
    assert wanted(two, lag_s=0.6 * LAG_LIMIT_S) == 2
    assert wanted(two, lag_s=0.4 * LAG_LIMIT_S) == 1
    assert wanted(lag_s=0.6 * LAG_LIMIT_S) == 1


def test_requests_that_wait_quietly_need_room_too() -> None:
    assert wanted(requests_ratio=0.7) == 2
    assert wanted(target_replicas=2, busy_ratios=[0.02, 0.02], requests_ratio=0.5) == 2


def test_nothing_is_stopped_while_a_replica_is_silent() -> None:
    assert wanted(target_replicas=3, busy_ratios=[0.05, 0.05], silent_replicas=1) == 3
    assert wanted(target_replicas=3, busy_ratios=[0.99, 0.99], silent_replicas=1) == 4
