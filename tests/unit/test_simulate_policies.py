"""The policies that are compared: Serve's rules as Serve has them, and what each is told."""

from __future__ import annotations

import random

import pytest
from ray.serve.autoscaling_policy import _apply_delay_logic
from ray.serve.config import AutoscalingConfig

from serve_app.scaling import Bounds, Objective, Pace
from serve_app.simulate import results
from serve_app.simulate.fleet_model import FleetView, RequestResult, SimulationResult
from serve_app.simulate.policies import DelayedTarget, LookBack, ServeDelays, SloScaler, requests_scaler
from serve_app.simulate.replica_model import ReplicaSnapshot
from serve_app.simulate.trace import TraceRequest


@pytest.mark.parametrize("seed", range(4))
def test_delays_are_those_of_serve(seed: int) -> None:
    draw = random.Random(seed)
    config = AutoscalingConfig(min_replicas=1, max_replicas=9, upscale_delay_s=30, downscale_delay_s=60)
    ours, state = DelayedTarget(ServeDelays(30.0, 30.0, 60.0)), dict[str, object]()
    target, desired = 3, 3
    for look in range(500):
        if draw.random() < 0.15:
            desired = draw.randint(1, 9)
        theirs, state = _apply_delay_logic(desired, target, config, state, _now=1000.0 + look * 10.0)
        target = ours.apply(desired, target, 1000.0 + look * 10.0)
        assert target == theirs


def test_reports_are_averaged_over_the_look_back() -> None:
    look_back = LookBack(30.0)
    for look, value in enumerate([9.0, 1.0, 2.0, 3.0]):
        means = look_back.means(look * 10.0, {"a": value})
    assert means == [2.0]


def snapshot(**changes: object) -> ReplicaSnapshot:
    usual: dict[str, object] = {
        "name": "a",
        "unfinished": 4,
        "queued": 0,
        "slots": 8,
        "queued_prefill_tokens": 0,
        "prefill_tokens_per_s": 1000.0,
        "recent_unfinished": 4.0,
        "kv_usage_ratio": 0.1,
        "service_s": 5.0,
        "tpot_s": 0.02,
    }
    return ReplicaSnapshot(**{**usual, **changes})  # type: ignore[arg-type]  # the fields, by name


def view(now_s: float, one: ReplicaSnapshot, arrived: int = 0) -> FleetView:
    return FleetView(now_s, 1, (one,), 0, 0, arrived, arrived * 1000, arrived * 100)


def test_serves_policy_counts_requests() -> None:
    scaler = requests_scaler(2.0, ServeDelays(30.0, 0.0, 0.0))
    assert scaler.wanted(view(10.0, snapshot(unfinished=7)))[0] == 4


def test_the_slo_policy_is_told_what_waits_and_explains_itself() -> None:
    scaler = SloScaler(Objective(3.0, 0.05), Bounds(1, 4), Pace(up_after_s=20.0), 120.0, 0.01)
    one = snapshot(unfinished=30, queued=22, queued_prefill_tokens=60_000)
    found = [scaler.wanted(view(now_s, one, arrived=10)) for now_s in (10.0, 20.0, 30.0, 40.0)]
    assert max(target for target, _ in found) > 1
    assert any(reason.startswith("scaled 1 -> ") for _, reason in found)


def test_a_refused_request_has_not_kept_the_objective() -> None:
    asked = TraceRequest(0.0, 10, 10)
    kept, late, slow, refused = (
        RequestResult(asked, ttft_s, tpot_s, "a")
        for ttft_s, tpot_s in ((1.0, 0.01), (9.0, 0.01), (1.0, 0.9), (None, 0.0))
    )
    result = SimulationResult([kept, late, slow, refused], replica_s=3600.0)
    found = results.figures("p", result, Objective(5.0, 0.05), 2.0)
    assert (found.attainment_ratio, found.refused, found.of_static_ratio) == (0.25, 1, 0.5)
