"""How many ingresses are wanted, and what Serve's controller makes of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.serve._private.common import DeploymentID, ReplicaID, TimeStampedValue
from ray.serve.config import AutoscalingContext, AutoscalingPolicy

from serve_app.app import _ingress_deployment
from serve_app.config.schema import AppConfig
from serve_app.ingress.autoscaling import (
    BUSY_RATIO,
    LAG_LIMIT_S,
    LAG_S,
    EventLoopPolicy,
    IngressLoad,
    ingresses_wanted,
)

TARGET = 0.6
DEPLOYMENT = DeploymentID("ingress", "step")
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


# ---- in Serve --------------------------------------------------------------------------------------------------------


def context(reports: list[tuple[float, list[float]] | None], requests: float = 0.0) -> AutoscalingContext:
    """What Serve's controller passes: a busy ratio and the reported lags of each replica; None for a silent one."""
    ids = [ReplicaID(f"replica-{number}", DEPLOYMENT) for number in range(len(reports))]
    heard = {replica: report for replica, report in zip(ids, reports, strict=True) if report is not None}
    metrics = {
        BUSY_RATIO: {replica: [TimeStampedValue(0.0, busy)] for replica, (busy, _) in heard.items()},
        LAG_S: {
            replica: [TimeStampedValue(6.0 * number, lag_s) for number, lag_s in enumerate(lags_s)]
            for replica, (_, lags_s) in heard.items()
        },
    }
    return AutoscalingContext(
        deployment_id=DEPLOYMENT,
        deployment_name="ingress",
        app_name="step",
        current_num_replicas=len(ids),
        target_num_replicas=len(ids),
        running_replicas=ids,
        total_num_requests=lambda: requests,
        total_queued_requests=0.0,
        aggregated_metrics=lambda: (
            {BUSY_RATIO: {replica: busy for replica, (busy, _) in heard.items()}} if heard else {}
        ),
        raw_metrics=lambda: metrics if heard else {},
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=4,
        policy_state={},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=None,
        config=None,
    )


@pytest.fixture
def policy() -> EventLoopPolicy:
    """As the controller gets it: from the deployment's options, through the copy that Serve makes."""
    config = AppConfig.model_validate({"model": {"source": "m", "served_name": "m"}})
    scaling = _ingress_deployment(config)._deployment_config.autoscaling_config
    assert scaling is not None
    copied = AutoscalingPolicy.from_serialized_policy_def(
        {"policy_function": scaling.policy.policy_function, "policy_kwargs": scaling.policy.policy_kwargs},
        scaling.policy.get_serialized_policy_def() or b"",
    )
    made: EventLoopPolicy = copied.get_policy()(**copied.policy_kwargs)
    return made


def test_ingresses_of_which_nothing_is_known_stay_as_they_are(policy: EventLoopPolicy) -> None:
    assert policy(context([None, None])) == (2, {})


def test_the_policy_adds_an_ingress_for_work_for_lag_and_for_room(policy: EventLoopPolicy) -> None:
    assert policy(context([(0.1, [0.0])])) == (1, {})
    assert policy(context([(0.7, [0.0])])) == (2, {})
    assert policy(context([(0.1, [LATE_S, LATE_S])])) == (2, {})
    assert policy(context([(0.1, [0.0])], requests=1500)) == (2, {})


def test_one_stall_is_not_lag(policy: EventLoopPolicy) -> None:
    assert policy(context([(0.1, [0.0, 5.0, 5.0, 0.01])])) == (1, {})


def test_a_new_ingress_counts_as_idle_and_none_is_stopped_before_its_first_report(policy: EventLoopPolicy) -> None:
    assert policy(context([(0.1, [0.0]), None])) == (2, {})
    assert policy(context([(0.1, [0.0]), (0.1, [0.0])])) == (1, {})
