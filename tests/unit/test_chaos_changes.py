"""Serve's report of the fleet, and the configurations that change it."""

from __future__ import annotations

import json

import pytest
import yaml

from chaos import changes
from chaos.changes import Change
from chaos.fleet import Fleet, fleet_of
from serve_app.cli import serve_api
from serve_app.cli.serve_api import ServeDetails, StatusUnknown
from serve_app.config.profile import ROOT


def details(**states: str) -> dict[str, object]:
    replicas = [
        {"replica_id": name, "state": state, "pid": 7, "node_id": "n", "node_ip": "10.0.0.1", "actor_id": f"act-{name}"}
        for name, state in states.items()
    ]
    app = {
        "deployments": {"engine": {"replicas": replicas}},
        "deployed_app_config": {"name": "step", "import_path": "x:y", "runtime_env": {"env_vars": {"A": "1"}}},
    }
    other = {"deployments": {}, "deployed_app_config": {"name": "other"}}
    return {"applications": {"step": app, "other": other}, "proxy_location": "EveryNode", "http_options": {"port": 1}}


def test_the_fleet_has_recovered_when_other_replicas_run_in_place_of_the_lost() -> None:
    expected_counts = {"engine": 2}
    assert not fleet(a="RUNNING", b="RUNNING").is_recovered(expected_counts, frozenset("a"))
    assert not fleet(a="STOPPING", b="RUNNING", c="STARTING").is_recovered(expected_counts, frozenset("a"))
    assert fleet(a="STOPPING", b="RUNNING", c="RUNNING").is_recovered(expected_counts, frozenset("a"))
    assert Fleet(fleet(b="RUNNING").replicas, {"engine": 1}).is_recovered(
        expected_counts, frozenset("a")
    )  # Serve scaled it in
    assert fleet(a="RUNNING", b="STARTING", c="STARTING").states("engine") == "1 running, 2 starting"


def decoded(details: object) -> ServeDetails:
    return serve_api.decode(json.dumps(details).encode())


def fleet(**states: str) -> Fleet:
    return fleet_of(decoded(details(**states)), "step")


@pytest.mark.parametrize("wrong", [{}, {"applications": {}}, {"applications": {"other": {}}}])
def test_an_unknown_application_is_reported(wrong: object) -> None:
    with pytest.raises(StatusUnknown, match="--application"):
        fleet_of(decoded(wrong), "step")


def test_an_upgrade_changes_one_variable_and_nothing_else() -> None:
    config = changes.changed_config(decoded(details(a="RUNNING")), "step", Change.UPGRADE, "v2")
    assert config == {
        "proxy_location": "EveryNode",
        "http_options": {"port": 1},
        "applications": [
            {
                "name": "step",
                "import_path": "x:y",
                "runtime_env": {"env_vars": {"A": "1", changes.UPGRADE_VARIABLE: "v2"}},
            },
            {"name": "other"},
        ],
    }


def test_serve_accepts_an_upgrade_of_what_it_runs() -> None:
    from ray.serve import schema

    document = yaml.safe_load((ROOT / "deploy.yaml").read_text(encoding="utf-8"))
    deployed = schema.ServeDeploySchema.model_validate(document)
    (application,) = deployed.applications
    # As `get_serve_instance_details` dumps them.
    running = {
        "proxy_location": "EveryNode",
        "http_options": deployed.http_options.model_dump(exclude_unset=True),
        "grpc_options": deployed.grpc_options.model_dump(exclude_unset=True),
        "applications": {"step": {"deployed_app_config": application.model_dump(exclude_unset=True)}},
    }
    upgraded = schema.ServeDeploySchema.model_validate(
        changes.changed_config(decoded(running), "step", Change.UPGRADE, "v2")
    )
    (changed_config,) = upgraded.applications
    assert changed_config.runtime_env["env_vars"].pop(changes.UPGRADE_VARIABLE) == "v2"
    assert changed_config == application
    assert upgraded.http_options == deployed.http_options


def scaled(deployed: dict[str, object], change: Change, deployment: dict[str, object]) -> dict[str, object]:
    """The application's configuration after a change, where Serve reports `deployment` of the changed deployment."""
    name = change.deployments[0]
    details = {"deployments": {name: {"deployment_config": deployment}}, "deployed_app_config": deployed}
    (config,) = changes.changed_config(decoded({"applications": {"step": details}}), "step", change, "v2")[
        "applications"
    ]  # type: ignore[misc]
    return config


def test_replacing_the_ingresses_keeps_their_other_options() -> None:
    deployed: dict[str, object] = {"name": "step", "deployments": [{"name": "ingress", "num_replicas": 3}]}
    actor = {"num_cpus": 0.5, "runtime_env": {"env_vars": {"A": "1"}}}
    config = scaled(deployed, Change.INGRESS, {"ray_actor_options": actor})
    env = {"A": "1", changes.UPGRADE_VARIABLE: "v2"}
    options = {"num_cpus": 0.5, "runtime_env": {"env_vars": env}}
    assert config["deployments"] == [{"name": "ingress", "num_replicas": 3, "ray_actor_options": options}]


@pytest.mark.parametrize(("change", "count"), [(Change.ENGINE_OUT, 3), (Change.ENGINE_IN, 1)])
def test_a_fixed_number_of_replicas_is_changed_by_one(change: Change, count: int) -> None:
    config = scaled({"name": "step"}, change, {"num_replicas": 2})
    assert config["deployments"] == [{"name": "engine", "num_replicas": count}]


def test_an_autoscaled_number_of_replicas_is_not_changed() -> None:
    with pytest.raises(StatusUnknown, match="leave it out of --changes"):
        scaled({"name": "step"}, Change.INGRESS_OUT, {"autoscaling_config": {"min_replicas": 1}})


def test_a_change_is_done_when_only_the_new_replicas_run() -> None:
    before = fleet(a="RUNNING", b="RUNNING")
    assert not changes.is_done(Change.ENGINE_OUT, before, fleet(a="RUNNING", b="RUNNING", c="STARTING"))
    assert changes.is_done(Change.ENGINE_OUT, before, fleet(a="RUNNING", b="RUNNING", c="RUNNING"))
    assert changes.is_done(Change.ENGINE_IN, before, fleet(a="RUNNING", b="STOPPING"))
    assert not changes.is_done(Change.UPGRADE, before, fleet(a="RUNNING", c="RUNNING"))
    assert changes.is_done(Change.UPGRADE, before, fleet(a="STOPPING", c="RUNNING", d="RUNNING"))


@pytest.mark.parametrize(("upgrades", "points"), [(0, []), (1, [5000]), (2, [3333, 6666])])
def test_changes_are_spread_evenly_over_the_requests(upgrades: int, points: list[int]) -> None:
    assert changes.change_points(10_000, upgrades) == points
