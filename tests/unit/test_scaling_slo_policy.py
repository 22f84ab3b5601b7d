"""The scaling policy as Serve's controller gets it: by value, from the configuration, with what replicas report."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from ray.serve._private.common import DeploymentID, ReplicaID, TimeStampedValue
from ray.serve.autoscaling_policy import _apply_autoscaling_config
from ray.serve.config import AutoscalingContext

from serve_app.config.schema import AppConfig
from serve_app.engine.autoscaling import UtilizationPolicy
from serve_app.engine.autoscaling_config import autoscaling_config, policy_settings, slo_policy
from serve_app.scaling import Decision, Objective, ReplicaFacts, ReplicaReport
from serve_app.scaling.reports import ArrivalCount, read_report
from serve_app.scaling.slo_policy import SloPolicy

DEPLOYMENT = DeploymentID("engine", "step")
SCHEDULE = [{"from": "08:00", "to": "18:00", "min": 2, "days": "mon-fri", "timezone": "Europe/Berlin"}]
SUNDAY_S = 1_764_504_000.0
FULL = ReplicaFacts(slots=16, running=16, queued=40, queued_prefill_tokens=40_000.0, prefill_tokens_per_s=1000.0)


def config(**changes: Any) -> AppConfig:
    given = {"model": {"source": "x"}, "engine": {"kind": "fake"}, "slo": {"ttft_p95_s": 3.0}, "replicas": {"max": 3}}
    return AppConfig(**{**given, **changes})


class Recorder:
    """A journal and metrics that keep what they are given."""

    def __init__(self) -> None:
        self.changes: list[tuple[int, int, str]] = []
        self.decisions: list[Decision] = []

    def add(self, at_unix_s: float, before: int, after: int, reason: str) -> None:
        assert at_unix_s > 0
        self.changes.append((before, after, reason))

    def set(self, _before: int, decision: Decision, _objective: Objective) -> None:
        self.decisions.append(decision)


def policy(setup: AppConfig) -> tuple[SloPolicy, Recorder]:
    recorder = Recorder()
    made = SloPolicy(policy_settings(setup))
    made._journal = made._metrics = recorder  # type: ignore[assignment]  # it has the methods of both
    return made, recorder


def context(at_s: float, target: int, reports: list[ReplicaReport], most: int = 3) -> AutoscalingContext:
    """What Serve's controller passes."""
    ids = [ReplicaID(f"replica-{number}", DEPLOYMENT) for number in range(len(reports))]
    raw: dict[str, Any] = {}
    for replica_id, report in zip(ids, reports, strict=True):
        for name, value in report.numbers().items():
            series = [TimeStampedValue(at_s - 5, -1.0), TimeStampedValue(at_s, value)]
            raw.setdefault(name, {})[replica_id] = series
    return AutoscalingContext(
        deployment_id=DEPLOYMENT,
        deployment_name="engine",
        app_name="step",
        current_num_replicas=len(ids),
        target_num_replicas=target,
        running_replicas=ids,
        total_num_requests=0.0,
        total_queued_requests=0.0,
        aggregated_metrics=None,
        raw_metrics=raw,
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=most,
        policy_state={},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=at_s,
        config=None,
    )


def run(made: SloPolicy, seconds: int, most: int = 3) -> int:
    """One replica that gets 30 prompts of 1000 tokens in ten seconds and computes ten; the target in the end."""
    target = 1
    for passed_s in range(0, seconds, 5):
        report = ReplicaReport(FULL, passed_s * 3, passed_s * 3000, start_s=60.0)
        target, state = made(context(SUNDAY_S + passed_s, target, [report], most))
        assert state == {}
    return target


def test_the_numbers_of_a_replica_come_back_as_they_were() -> None:
    whole = ReplicaReport(ReplicaFacts(8, 3, 2, 100.0, 900.0, 0.5, 7.0, 0.02, 0.001), 12, 3000, 60.0)
    assert read_report(whole.numbers()) == whole
    fresh = ReplicaReport(ReplicaFacts(8), 0, 0)
    assert all(isinstance(value, float) for value in fresh.numbers().values()), "Serve takes nothing else"
    assert read_report(fresh.numbers()) == fresh
    assert read_report({"utilization": 0.5}) is None


def test_replicas_that_come_and_go_do_not_turn_the_count_back() -> None:
    def report(requests: float) -> ReplicaReport:
        return ReplicaReport(ReplicaFacts(8), requests, 10 * requests)

    count = ArrivalCount()
    for reports in ({"a": report(100)}, {"a": report(110), "b": report(3)}, {"b": report(5)}, {"b": report(1)}):
        count.add(reports)
    assert (count.requests, count.prefill_tokens) == (12, 120)


def test_serve_is_told_the_number_the_reason_and_the_forecast(caplog: pytest.LogCaptureFixture) -> None:
    made, recorder = policy(config())
    caplog.set_level("INFO", "ray.serve")
    assert run(made, 120) == 3
    ((before, after, reason),) = recorder.changes
    assert (before, after) == (1, 3)
    assert reason.startswith("scaled 1 -> 3: 40 s of prefill queued, TTFT p95 forecast ")
    assert recorder.decisions[-1].ttft_p95_forecast_s is not None


def test_a_policy_that_was_used_travels_to_replicas_without_the_controllers_metrics() -> None:
    """Serve pickles it with the deployment's configuration, and a replica cannot make metrics with these labels."""
    made, _ = policy(config())
    assert run(made, 120) == 3
    copy = pickle.loads(pickle.dumps(made))  # noqa: S301  # it is our own
    assert (copy._metrics, copy._journal) == (None, None)
    assert copy._state == made._state


def test_the_start_time_is_measured_with_everything_that_an_engine_does_not_see() -> None:
    made, recorder = policy(config())
    assert run(made, 120) == 3
    assert recorder.decisions[-1].horizon_s == 60
    begun_s = SUNDAY_S + 120
    for passed_s in range(0, 205, 5):  # a node had to come first
        reports = [ReplicaReport(FULL, 400, 400_000, start_s=60.0)] * (3 if passed_s >= 200 else 1)
        made(context(begun_s + passed_s, 3, reports))
    assert 200 < recorder.decisions[-1].horizon_s < 330


def test_serves_own_bounds_hold() -> None:
    made, recorder = policy(config())
    assert run(made, 120, most=2) == 2
    assert "would be needed, replicas.max allows 2" in recorder.changes[0][2]


def test_serve_adds_no_delay_and_no_bound_of_its_own() -> None:
    setup = config()
    made, recorder = policy(setup)
    wrapped, target, passed_s = _apply_autoscaling_config(made), 1, 0
    while not recorder.changes:
        passed_s += 5
        given = context(SUNDAY_S + passed_s, target, [ReplicaReport(FULL, passed_s * 3, passed_s * 3000, 60.0)])
        given.config = autoscaling_config(setup)
        target, _ = wrapped(given)
    assert target == 3
    assert passed_s <= 40


def test_a_decision_is_made_once_a_second() -> None:
    made, recorder = policy(config())
    for tenth in range(30):
        made(context(SUNDAY_S + tenth / 10, 1, []))
    assert len(recorder.decisions) == 3


def test_a_policy_that_fails_changes_nothing() -> None:
    made, _ = policy(config())
    broken = context(SUNDAY_S, 2, [])
    broken.raw_metrics = {"slots": 3}  # a Ray that passes something else
    assert made(broken) == (2, {})


def test_the_controller_runs_it_without_the_application(tmp_path: Path) -> None:
    setup = config(replicas={"max": 3, "schedule": SCHEDULE})
    serialized = slo_policy(setup)
    file = tmp_path / "policy"
    file.write_bytes(serialized.get_serialized_policy_def())
    code = f"""
import json, sys
sys.modules["serve_app"] = None
from ray import cloudpickle
made = cloudpickle.loads(open({str(file)!r}, "rb").read())(**json.loads({json.dumps(serialized.policy_kwargs)!r}))
class Context:
    current_time, target_num_replicas, raw_metrics = 1764579600.0, 1, dict()
    capacity_adjusted_min_replicas, capacity_adjusted_max_replicas = 1, 3
    last_scale_up_time = last_scale_down_time = None
print(made.decide(Context).reason)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("scaled 1 -> 2: the schedule asks for at least 2 from 08:00 to 18:00 on mon-fri")


def test_without_an_objective_utilization_is_followed() -> None:
    plain = autoscaling_config(config(slo={}))
    assert plain.policy.policy_function.endswith(UtilizationPolicy.__name__)
    assert (plain.upscale_delay_s, plain.downscale_delay_s) == (30.0, 600.0)
    assert autoscaling_config(config()).downscale_delay_s == 0.0


GPUS = {"gpus_per_replica": 8, "max": 4}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"slo": {}, "replicas": {"max": 3, "schedule": SCHEDULE}}, "replicas.schedule needs slo"),
        ({"replicas": {"max": 1, "schedule": SCHEDULE}}, r"schedule: min \(2\) is above max \(1\)"),
        ({"replicas": {**GPUS, "gpu_budget": 12, "schedule": SCHEDULE}}, r"above what gpu_budget \(12\) allows"),
        ({"replicas": {**GPUS, "gpu_budget": 4}}, r"min \(1\) is above what gpu_budget \(4\) allows"),
        ({"replicas": {"max": 3, "gpu_budget": 4}}, "gpus_per_replica is 0; use max"),
        ({"replicas": {"max": 3, "schedule": [{**SCHEDULE[0], "to": 1080}]}}, 'write the time in quotes: "18:00"'),
        ({"replicas": {"max": 3, "schedule": [{**SCHEDULE[0], "days": "workdays"}]}}, "'workdays' is not a day"),
        ({"slo": {"ttft_p95_s": 0}}, "greater than 0"),
    ],
)
def test_what_cannot_be_kept_is_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        config(**changes)


def test_the_budget_bounds_the_fleet() -> None:
    setup = config(replicas={**GPUS, "gpu_budget": 17})
    assert autoscaling_config(setup).max_replicas == 2
