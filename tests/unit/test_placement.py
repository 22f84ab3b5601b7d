"""Where an engine replica goes, for a given configuration."""

from __future__ import annotations

import pytest

from serve_app.config.placement import gang_bundles, replica_options
from serve_app.config.replicas import ReplicasConfig

H100 = "accelerator_type:H100"


def test_a_replica_of_one_node_is_an_actor_that_takes_it_all() -> None:
    replicas = ReplicasConfig(
        gpus_per_replica=8,
        cpus_per_replica=16,
        accelerator_type="H100",
        resources={"slot": 1},
        label_selector={"market": "spot"},
    )
    assert replica_options(replicas, {"A": "b"}) == {
        "ray_actor_options": {
            "num_cpus": 16,
            "num_gpus": 8,
            "accelerator_type": "H100",
            "resources": {"slot": 1},
            "label_selector": {"market": "spot"},
            "runtime_env": {"env_vars": {"VLLM_TARGET_DEVICE": "cuda", "A": "b"}},
        }
    }


def test_a_gang_has_a_bundle_per_gpu_with_the_actor_in_the_first() -> None:
    replicas = ReplicasConfig(gpus_per_replica=16, nodes_per_replica=2, cpus_per_replica=32, accelerator_type="H100")
    options = replica_options(replicas, {})
    assert options["placement_group_bundles"] == [{"CPU": 2, "GPU": 1, H100: 0.001}] * 16
    assert options["placement_group_strategy"] == "PACK"
    actor = options["ray_actor_options"]
    assert actor["num_gpus"] == 0
    assert actor["num_cpus"] <= options["placement_group_bundles"][0]["CPU"]
    assert "accelerator_type" not in actor


@pytest.mark.parametrize("gpus", [0, 2])
def test_a_gang_with_one_bundle_per_node_is_spread_for_certain(gpus: int) -> None:
    replicas = ReplicasConfig(gpus_per_replica=gpus, nodes_per_replica=2, cpus_per_replica=1, resources={"slot": 1})
    options = replica_options(replicas, {})
    assert len(options["placement_group_bundles"]) == 2
    assert options["placement_group_strategy"] == "STRICT_SPREAD"


def test_each_node_of_a_gang_gives_its_resources_once() -> None:
    replicas = ReplicasConfig(gpus_per_replica=8, nodes_per_replica=2, cpus_per_replica=8, resources={"slot": 1})
    assert sum(bundle["slot"] for bundle in gang_bundles(replicas)) == 2
    assert sum(bundle["CPU"] for bundle in gang_bundles(replicas)) == 8


def test_labels_are_asked_of_every_node_of_a_gang() -> None:
    replicas = ReplicasConfig(gpus_per_replica=2, nodes_per_replica=2, label_selector={"market": "spot"})
    options = replica_options(replicas, {})
    assert options["placement_group_bundle_label_selector"] == [{"market": "spot"}] * 2
    assert "label_selector" not in options["ray_actor_options"]
