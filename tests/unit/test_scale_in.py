"""Which engine replica is stopped when there are to be fewer, by Serve's own scheduler with our choice in it."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from ray import cloudpickle
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve._private.deployment_scheduler import DeploymentScheduler
from ray.serve.config import AutoscalingPolicy

from serve_app.config.profile import load_config
from serve_app.engine.autoscaling import UTILIZATION, UtilizationPolicy
from serve_app.engine.autoscaling_config import autoscaling_config
from serve_app.engine.scale_in import (
    LOSS_TOKENS,
    STEP_TOKENS,
    Candidate,
    LeastLossPolicy,
    explain,
    last_losses,
    least_loss,
    problem,
    replace_choice,
    taking_least_loss,
)

ENGINE = DeploymentID("engine", "step")


class Nodes:
    """What Serve's scheduler asks of the cluster."""

    def __init__(self, draining: Mapping[str, int]) -> None:
        self._draining = draining

    def get_node_labels(self, _node_id: str) -> dict[str, str]:
        return {}

    def get_draining_nodes(self) -> dict[str, int]:
        return dict(self._draining)


class Scheduler(DeploymentScheduler):  # type: ignore[misc]  # Ray is not read by mypy
    """Serve's, of this process, with replicas that run: the oldest first, each on a node."""

    def __init__(self, running: Mapping[str, str], draining: Mapping[str, int] | None = None) -> None:
        super().__init__(Nodes(draining or {}), "head", lambda _request: None)
        self._deployments[ENGINE] = SimpleNamespace(label_selector=None, bundle_label_selector=None)
        for name, node in running.items():
            self._running_replicas[ENGINE][replica(name)] = node

    def stops(self, count: int) -> list[str]:
        return sorted(one.unique_id for one in self._get_replicas_to_stop(ENGINE, count))


class OurScheduler(Scheduler):
    """The same class of Serve's, to be given our choice without changing Serve's for other tests."""


def replica(name: str) -> ReplicaID:
    return ReplicaID(name, ENGINE)


def candidate(name: str, loss_tokens: float = 0.0, *, runs: bool = True, node_leaves: bool = False) -> Candidate[str]:
    return Candidate(name, runs, node_leaves, loss_tokens)


@pytest.fixture
def contexts() -> dict[Any, Any]:
    known = replace_choice(OurScheduler)
    known.clear()  # of the test before
    return known


def reports(**loss_tokens: float) -> SimpleNamespace:
    """What Serve knows of the deployment, as far as it is read."""
    series = {replica(name): [SimpleNamespace(value=tokens)] for name, tokens in loss_tokens.items()}
    return SimpleNamespace(deployment_id=ENGINE, raw_metrics={LOSS_TOKENS: series})


def names(candidates: list[Candidate[str]]) -> list[str]:
    return [one.replica for one in candidates]


def test_the_replica_that_loses_least_goes_first() -> None:
    found = [candidate("newest", 90_000), candidate("middle", 5_000), candidate("oldest", 50_000)]
    assert names(least_loss(found, 1)) == ["middle"]
    assert names(least_loss(found, 2)) == ["middle", "oldest"]


def test_a_difference_that_costs_nothing_leaves_serves_order() -> None:
    found = [candidate("newest", STEP_TOKENS - 1), candidate("oldest", 0)]
    assert names(least_loss(found, 1)) == ["newest"]


def test_what_does_not_run_yet_and_what_leaves_anyway_goes_before_all_others() -> None:
    found = [candidate("starting", runs=False), candidate("idle"), candidate("leaving", 70_000, node_leaves=True)]
    assert names(least_loss(found, 1)) == ["starting"]
    assert names(least_loss(found, 2)) == ["starting", "leaving"]


def test_the_last_report_of_each_replica_counts() -> None:
    series = {"a": [SimpleNamespace(value=9.0), SimpleNamespace(value=4.0)], "b": []}
    assert last_losses({LOSS_TOKENS: series, UTILIZATION: {}}) == {"a": 4.0}
    assert last_losses(None) == {}


def test_the_installed_serve_is_one_that_we_know() -> None:
    assert problem(DeploymentScheduler) == ""


def test_another_serve_is_left_alone() -> None:
    class Renamed:
        pass

    class Changed:
        def _get_replicas_to_stop(self, _id: DeploymentID, _count: int) -> set[ReplicaID]:
            return set()

    assert "has no _get_replicas_to_stop" in problem(Renamed)
    assert "takes self, _id, _count" in problem(Changed)


def test_serve_stops_what_loses_least_and_without_reports_what_it_would_itself(
    contexts: dict[Any, Any],
) -> None:
    scheduler, serves = OurScheduler({"a": "n1", "b": "n2", "c": "n2"}), Scheduler({"a": "n1", "b": "n2", "c": "n2"})
    assert scheduler.stops(1) == serves.stops(1) == ["a"]  # its node gets empty
    contexts[ENGINE] = reports(a=80_000.0, b=20_000.0, c=60_000.0)
    assert scheduler.stops(1) == ["b"]
    assert scheduler.stops(2) == ["b", "c"]
    contexts[ENGINE] = reports()
    assert scheduler.stops(1) == ["a"]


def test_a_replica_on_a_draining_node_goes_first(contexts: dict[Any, Any]) -> None:
    scheduler = OurScheduler({"a": "n1", "b": "n2"}, draining={"n2": 1})
    contexts[ENGINE] = reports(b=80_000.0)
    assert scheduler.stops(1) == ["b"]


def test_a_scheduler_that_looks_different_at_run_time_keeps_its_own_choice(
    contexts: dict[Any, Any], caplog: pytest.LogCaptureFixture
) -> None:
    scheduler = OurScheduler({"a": "n1", "b": "n2", "c": "n2"})
    contexts[ENGINE] = reports(a=80_000.0)
    scheduler._cluster_node_info_cache = SimpleNamespace(get_node_labels=lambda _node_id: {})
    assert scheduler.stops(1) == ["a"]
    assert "Serve's own choice stands" in caplog.text


def test_gangs_of_serves_are_chosen_by_serve(contexts: dict[Any, Any]) -> None:
    scheduler = OurScheduler({"a": "n1", "b": "n2", "c": "n2"})
    contexts[ENGINE] = reports(a=80_000.0)
    gangs = {replica(name): name for name in "abc"}
    members = {name: {replica(name)} for name in "abc"}
    stopped = scheduler._get_replicas_to_stop(
        ENGINE, 1, gang_id_by_replica=gangs, replicas_by_gang_id=members, gang_size=1
    )
    assert stopped == {replica("a")}


def test_a_second_policy_replaces_the_choice_of_the_first() -> None:
    class Twice(Scheduler):
        pass

    replace_choice(Twice)[ENGINE] = reports(a=80_000.0)
    second = replace_choice(Twice)
    scheduler = Twice({"a": "n1", "b": "n2", "c": "n2"})
    assert scheduler.stops(1) == ["c"], "what the first one told is kept"
    second[ENGINE] = reports(b=80_000.0, c=80_000.0)
    assert scheduler.stops(1) == ["a"]


def test_the_decision_says_why() -> None:
    stopped = candidate("a", 12.0)
    assert explain([stopped], [stopped, candidate("b", 52_000)]) == (
        "scale-in: stops a (12 tokens to compute again); stays: b (52,000)"
    )
    leaves = candidate("c", 3.0, node_leaves=True)
    assert explain([leaves], [leaves]) == (
        "scale-in: stops c (3 tokens to compute again, its node leaves); stays: none"
    )


def test_the_policy_inside_decides_how_many_and_survives_the_way_to_the_controller() -> None:
    policy = taking_least_loss(AutoscalingPolicy(policy_function=UtilizationPolicy, policy_kwargs={"target_load": 0.7}))
    assert policy.policy_function == "serve_app.engine.autoscaling.UtilizationPolicy"
    context = SimpleNamespace(
        deployment_id=ENGINE,
        raw_metrics={LOSS_TOKENS: {replica("a"): [SimpleNamespace(value=5.0)]}},
        aggregated_metrics={UTILIZATION: {"a": 1.2, "b": 0.1}},
        target_num_replicas=1,
    )
    serves = DeploymentScheduler._get_replicas_to_stop
    try:
        assert cloudpickle.loads(policy.get_serialized_policy_def())(context) == (2, {})
        assert DeploymentScheduler._get_replicas_to_stop is not serves
        assert problem(DeploymentScheduler) == "", "a second one must find what it knows"
    finally:
        DeploymentScheduler._get_replicas_to_stop = serves


@pytest.mark.parametrize("slo", [{}, {"ttft_p95_s": 3.0}])
def test_both_policies_of_the_service_come_with_the_choice(slo: dict[str, float]) -> None:
    args: dict[str, object] = {"profile": "cpu-demo", "engine": {"kind": "fake"}, "replicas": {"max": 2}, "slo": slo}
    policy = autoscaling_config(load_config(args, [])).policy
    assert type(cloudpickle.loads(policy.get_serialized_policy_def())).__name__ == LeastLossPolicy.__name__
