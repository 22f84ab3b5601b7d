"""What the configuration refuses, and that each refusal names the line at fault."""

from __future__ import annotations

import pytest

from serve_app.config import fleet
from serve_app.config.hardware import NodeGpus
from serve_app.config.schema import ConfigError
from serve_app.config.yaml_lines import parse

H100 = [NodeGpus("a", "H100", 8, 64)]


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        fleet.load(parse(text, "deploy.yaml"), H100)
    return str(caught.value)


@pytest.mark.parametrize(("budget", "most"), [(16, 2), (8, 1)])
def test_engines_at_the_start_are_within_the_budget(budget: int, most: int) -> None:
    told = refusal(f"profile: h100-x8\nreplicas:\n  min: 1\n  max: 6\n  gpu_budget: {budget}\n  initial: 5\n")
    assert f"initial (5) is above what gpu_budget ({budget}) allows: {most} engine(s) of 8 GPUs" in told


@pytest.mark.parametrize(
    ("resource", "key"),
    [
        ("GPU", "gpus_per_replica"),
        ("CPU", "cpus_per_replica"),
        ("memory", "it is not reserved here"),
        ("object_store_memory", "it is not reserved here"),
    ],
)
def test_rays_own_resources_are_no_custom_ones(resource: str, key: str) -> None:
    told = refusal(f"profile: cpu-demo\nreplicas:\n  resources: {{{resource}: 8}}\n")
    assert told.startswith(f"deploy.yaml:3: replicas.resources: `{resource}` is no custom resource")
    assert key in told


def test_a_label_selector_is_one_for_ray_too() -> None:
    told = refusal('profile: cpu-demo\nreplicas:\n  label_selector: {a: "x,y z"}\n')
    assert told.startswith("deploy.yaml:3: replicas.label_selector: invalid label selector value `x,y z`")
    fleet.load(parse('profile: cpu-demo\nreplicas: {label_selector: {a: "in(x,y)"}}\n', "deploy.yaml"), H100)
