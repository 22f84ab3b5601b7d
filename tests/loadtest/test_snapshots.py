"""Snapshots of the fleet become columns and events."""

from __future__ import annotations

import json
import warnings
from time import perf_counter_ns

import msgspec
import pytest

from loadtest.api.record import RunRecords
from loadtest.fleet.prometheus import MetricsReader, MetricValues
from loadtest.fleet.snapshots import (
    FleetSnapshot,
    ServeDeployment,
    ServeReplica,
    ServeStatus,
    build_view,
    take_snapshot,
)
from loadtest.fleet.view import SpecDecode, TimelineEvent


def run_around(times_ns: list[int]) -> RunRecords:
    return RunRecords([], times_ns[0], times_ns[-1] + 10**9, 1000.0)


def snapshots_of(*answers: dict[str, object]) -> list[FleetSnapshot]:
    """Snapshots of deployments `Engine` as Ray 2.60's own schema classes write them."""
    bodies = [msgspec.json.decode(true_answer(engine), type=ServeStatus) for engine in answers]
    return [take_snapshot(body, MetricValues({})) for body in bodies]


def true_answer(engine: dict[str, object]) -> bytes:
    """What `GET /api/serve/applications/` says of one deployment, made as Ray's controller makes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own classes use what pydantic deprecates
        from ray.serve.schema import ApplicationDetails, DeploymentDetails, ReplicaDetails, ServeInstanceDetails
    replicas = [
        ReplicaDetails(replica_id=name, state=state, start_time_s=1.0, pid=7, actor_id="ab", node_ip="10.0.0.1")
        for name, state in dict(engine["replicas"]).items()  # type: ignore[call-overload]
    ]
    deployment = DeploymentDetails(
        name="Engine", status="HEALTHY", status_trigger=engine["trigger"], message="",
        deployment_config={"name": "Engine"}, target_num_replicas=engine["target"], required_resources={"GPU": 8},
        replicas=replicas, recent_dead_replicas=[], autoscaling_detail=engine.get("detail"),
    )  # fmt: skip
    application = ApplicationDetails(
        name="step", route_prefix="/", docs_path=None, status="RUNNING", message="", last_deployed_time_s=1.0,
        source="declarative", deployments={"Engine": deployment}, external_scaler_enabled=False,
    )  # fmt: skip
    whole = ServeInstanceDetails(proxies={}, applications={"step": application})
    return json.dumps(whole._get_user_facing_json_serializable_dict(exclude_unset=True)).encode()


@pytest.mark.ray
def test_rays_own_schema_is_understood() -> None:
    detail = {
        "scaling_status": "UPSCALING",
        "decisions": [
            {"timestamp_s": 1000.5, "reason": "load", "prev_num_replicas": 2, "curr_num_replicas": 3, "policy": "p"}
        ],
    }
    snapshots = snapshots_of(
        {"target": 2, "trigger": "AUTOSCALING", "replicas": {"a": "RUNNING", "b": "STARTING"}},
        {"target": 3, "trigger": "AUTOSCALING", "replicas": {"a": "RUNNING", "b": "RUNNING"}},
        {"target": 3, "trigger": "HEALTH_CHECK_FAILED", "replicas": {"a": "STOPPING", "b": "RUNNING"}},
        {"target": 1, "trigger": "DOWNSCALE_COMPLETED", "replicas": {"a": "PENDING_MIGRATION"}},
    )
    view = build_view(snapshots, run_around([snapshot.at_ns for snapshot in snapshots]), 0.0, [], "")
    assert view.target_replicas == [2, 3, 3, 1]
    assert view.replicas["Engine RUNNING"] == [1, 2, 1, 0]
    assert [event.what for event in view.events] == [
        "Engine: target 2 to 3 replicas (autoscaling)",
        "Engine: replica b is ready",
        "Engine: replica a was lost",
        "Engine: target 3 to 1 replicas (downscale completed)",
        "Engine: replica b was removed",
        "Engine: replica a is ready",
    ]
    reported = snapshots_of({"target": 2, "trigger": "AUTOSCALING", "replicas": {}, "detail": detail})
    events = build_view(reported, run_around([reported[0].at_ns]), 0.0, [], "").events
    assert [event.what for event in events] == ["Engine: 2 to 3 replicas (load)"]


@pytest.mark.ray
def test_a_ray_without_serve_has_no_target() -> None:
    from ray.serve.schema import ServeInstanceDetails

    empty = msgspec.json.decode(json.dumps(ServeInstanceDetails.get_empty_schema_dict()), type=ServeStatus)
    assert take_snapshot(empty, MetricValues({})).target() is None


def test_what_the_ingress_holds_and_no_engine_runs_is_waiting() -> None:
    def queued(*lines: str) -> float | None:
        values = MetricsReader().update({"node": "\n".join(lines)})
        return build_view([take_snapshot(ServeStatus(), values)], run_around([perf_counter_ns()]), 0.0, [], "").queued[
            0
        ]

    held = 'ray_serve_replica_processing_queries{deployment="ingress",replica="a"} 18.0'
    other = 'ray_serve_replica_processing_queries{deployment="engine",replica="b"} 40.0'
    known = 'ray_vllm_time_to_first_token_seconds_count{ReplicaId="b"} 7'
    running = 'ray_vllm_num_requests_running{ReplicaId="b"} 5.0'
    assert queued(held, other, known) == 18, "the engine is gone"
    assert queued(held, other, known, running) == 13
    assert queued(held, other, known, running, 'ray_vllm_num_requests_waiting{ReplicaId="b"} 20.0') == 20
    assert queued(held, other) is None, "no engine tells what it runs"


def test_no_snapshot_is_a_problem() -> None:
    assert build_view([], RunRecords([], 0, 1, 0.0), 0.0, [], "").problem


def test_removed_lost_and_new_replicas_are_told_apart() -> None:
    def snapshot(at_ns: int, target: int, **states: str) -> FleetSnapshot:
        replicas = [ServeReplica(name, state) for name, state in states.items()]
        return FleetSnapshot(at_ns, {"engine": ServeDeployment(replicas, target, "AUTOSCALING")}, MetricValues({}))

    view = build_view(
        [
            snapshot(10**12, 2, a="RUNNING", b="RUNNING"),
            snapshot(10**12 + 10**9, 2, a="RUNNING", b="STOPPING", c="STARTING"),
            snapshot(10**12 + 2 * 10**9, 1, a="RUNNING", c="RUNNING"),
            snapshot(10**12 + 3 * 10**9, 1, a="STOPPING", c="RUNNING"),
            snapshot(10**12 + 60 * 10**9, 5),
        ],
        RunRecords([], 10**12, 10**12 + 3 * 10**9, 0.0),
        0.0,
        [TimelineEvent(2.5, "kill", "event")],
        "",
    )
    assert view.at_s == [0.0, 1.0, 2.0, 3.0], "a snapshot long after the run is left out"
    assert [(event.at_s, event.what, event.kind) for event in view.events] == [
        (1.0, "engine: replica b was lost", "death"),
        (2.0, "engine: target 2 to 1 replicas (autoscaling)", "scale"),
        (2.0, "engine: replica c is ready", "scale"),
        (2.5, "kill", "event"),
        (3.0, "engine: replica a was lost", "death"),
    ]


def test_two_applications_with_deployments_of_one_name_are_both_kept() -> None:
    body = {"applications": {app: {"deployments": {"engine": {"target_num_replicas": 2}}} for app in ("x", "y")}}
    snapshot = take_snapshot(msgspec.convert(body, ServeStatus), MetricValues({}))
    assert set(snapshot.deployments) == {"x/engine", "y/engine"}
    assert snapshot.target() == 4


def test_ratios_over_the_run_need_a_denominator() -> None:
    def snapshot(at_ns: int, **values: float) -> FleetSnapshot:
        return FleetSnapshot(at_ns, {}, MetricValues(values))

    run = RunRecords([], 0, 10**9, 0.0)
    first = {"drafts": 10.0, "draft_tokens": 30.0, "accepted": 20.0, "prefix_hits": 5.0, "prefix_queries": 10.0}
    last = {"drafts": 30.0, "draft_tokens": 90.0, "accepted": 50.0, "prefix_hits": 20.0, "prefix_queries": 40.0}
    view = build_view([snapshot(0, **first), snapshot(10**9, **last)], run, 0.0, [], "")
    assert view.spec_decode == SpecDecode(20, 60, 30)
    assert view.prefix_hit_ratio == 0.5
    assert view.acceptance == [None, 2.5]
    idle = build_view([snapshot(0, **first), snapshot(10**9, **first)], run, 0.0, [], "")
    assert (idle.spec_decode, idle.prefix_hit_ratio, idle.acceptance) == (None, None, [None, None])
