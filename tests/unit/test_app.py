"""What `build` gives to Serve: a deployment for each part of the fleet."""

from __future__ import annotations

import pytest
from ray.serve._private.build_app import build_app

from serve_app.app import _engine_deployment, _ingress_deployment
from serve_app.config import fleet
from serve_app.config.hardware import NodeGpus
from serve_app.config.schema import ConfigError
from serve_app.config.yaml_lines import parse
from serve_app.ingress.canary import deployment
from serve_app.protocol.messages import ReplicaLabel

POOLS = """\
profile: cpu-demo
engine: {kind: fake}
pools:
  - {name: a}
  - {name: b, replicas: {max: 3}}
"""
HEAD = [NodeGpus("head", None, 0, 8)]


def test_each_pool_is_a_deployment_with_its_own_size() -> None:
    found = fleet.load(parse(POOLS, "deploy.yaml"), HEAD)
    engines = {
        part.name: _engine_deployment(part.config, part.deployment, ReplicaLabel(part.name), surge=part.name == "a")
        for part in found.parts
    }
    app = _ingress_deployment(found.ingress).bind(found.ingress, engines, None)
    built = {one.name: one for one in build_app(app, name="step").deployments}
    assert set(built) == {"ingress", "engine-a", "engine-b"}
    assert built["engine-a"].num_replicas == 1
    scaling = built["engine-b"]._deployment_config.autoscaling_config
    assert scaling is not None
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 3)
    surges = [built[name]._deployment_config.max_surge_percent for name in ("engine-a", "engine-b")]
    assert surges == [1, 0]


def test_a_canary_is_a_judge_over_its_engines() -> None:
    text = "profile: cpu-demo\nengine: {kind: fake}\ncanary: {share: 0.1}\n"
    config = fleet.load(parse(text, "deploy.yaml"), HEAD).ingress
    part = fleet.FleetPart(fleet.CANARY, config)
    app = deployment.judge(config, _engine_deployment(config, part.deployment, ReplicaLabel("canary", True)))
    built = build_app(app, name="step-canary")
    assert {one.name for one in built.deployments} == {deployment.NAME, "engine-canary"}
    assert built.ingress_deployment_name == deployment.NAME


def test_another_configuration_is_another_trial() -> None:
    text = "profile: cpu-demo\nengine: {kind: fake}\ncanary: {share: 0.1}\n"
    config = fleet.load(parse(text, "deploy.yaml"), HEAD).ingress
    other = fleet.load(parse(text.replace("0.1", "0.2"), "deploy.yaml"), HEAD).ingress
    assert deployment.trial_name(config) == deployment.trial_name(config.model_copy())
    assert deployment.trial_name(config) != deployment.trial_name(other)


def test_what_only_serve_refuses_is_a_refusal_of_the_configuration() -> None:
    text = "profile: cpu-demo\nengine: {kind: fake}\nreplicas: {cpus_per_replica: 0.00001}\n"
    config = fleet.load(parse(text, "deploy.yaml"), HEAD).ingress
    with pytest.raises(
        ConfigError, match=r"replicas: Serve refuses the options of the deployment `engine`: .*num_cpus"
    ):
        _engine_deployment(config)
