"""Pools: from the configuration to the parts of one fleet, and what cannot be mixed."""

from __future__ import annotations

import pytest

from serve_app.config import fleet
from serve_app.config.fleet import FleetConfig
from serve_app.config.hardware import NodeGpus
from serve_app.config.schema import ConfigError
from serve_app.config.yaml_lines import parse

TEXT = """\
pools:
  - name: h100
    profile: h100-x8-fp8
    replicas: {min: 1, max: 3}
  - name: h200
    profile: h200-x8
    replicas: {min: 2, max: 2}
    engine:
      flags:
        max-model-len: %s
"""
NODES = [NodeGpus("a", "H100", 8, 64), NodeGpus("b", "H200", 8, 64)]


def load(text: str) -> FleetConfig:
    return fleet.load(parse(text, "deploy.yaml"), NODES)


def test_without_pools_there_is_one_part_of_the_usual_name() -> None:
    found = load("profile: cpu-demo\n")
    assert [part.deployment for part in found.parts] == ["engine"]
    assert found.ingress == found.parts[0].config


def test_each_pool_has_its_profile_and_its_bounds() -> None:
    found = load(TEXT % 131072)
    assert [part.deployment for part in found.parts] == ["engine-h100", "engine-h200"]
    assert [(one.config.replicas.min, one.config.replicas.max) for one in found.parts] == [(1, 3), (2, 2)]
    assert [one.config.replicas.accelerator_type for one in found.parts] == ["H100", "H200"]
    assert (found.ingress.replicas.min, found.ingress.replicas.max) == (3, 5)


def test_the_shortest_context_counts_at_the_ingress() -> None:
    found = load(TEXT % 131072)
    assert found.ingress.engine.flags["max-model-len"] == 131072
    assert found.parts[0].config.engine.flags["max-model-len"] == 262144


def test_what_stands_in_the_args_holds_for_every_pool() -> None:
    found = load(TEXT % 1000 + "engine:\n  flags: {max-num-seqs: 17}\n")
    assert [one.config.engine.flags["max-num-seqs"] for one in found.parts] == [17, 17]


def test_two_precisions_of_one_model_have_other_weights() -> None:
    ours, theirs = load(TEXT % 1000).parts
    assert ours.weights != theirs.weights
    same, again = load(TEXT.replace("h200-x8", "h100-x8-fp8") % 1000).parts
    assert same.weights == again.weights


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (TEXT % "auto", "deploy.yaml:10: pools: `max-model-len` is None in `h200`"),
        (TEXT.replace("name: h200", "name: h100") % 1, "deploy.yaml:5: pools: the name `h100` is here a second time"),
        (TEXT.replace("max: 2", "mux: 2") % 1, "deploy.yaml:7: unknown key `replicas.mux`; did you mean `max`?"),
        (TEXT.replace("name: h200", "nom: h200") % 1, "deploy.yaml:5: unknown key `pools.1.nom`; did you mean `name`?"),
        (TEXT.replace("name: h200", "name: H200") % 1, "deploy.yaml:5: pools.1.name: string should match"),
        (
            TEXT.replace("max-model-len", "reasoning-parser") % "deepseek_r1",
            "`reasoning-parser` is 'deepseek_r1' in `h200` and 'step3p5' in `h100`",
        ),
        (TEXT.replace("profile: h200-x8", "profile: h200-x9") % 1, "deploy.yaml:6: profile: no file h200-x9.yaml"),
    ],
)
def test_a_refusal_names_the_line_to_change(text: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert told in str(caught.value)
