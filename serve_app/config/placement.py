"""The resources of an engine replica and the nodes that they come from: pure, from the configuration to Serve's
options.

A replica on one node is an actor that takes all resources; vLLM's worker processes are its children. A replica over
several nodes (a *gang*) is a placement group: a bundle per GPU, with the actor and vLLM's first worker in the first
bundle. vLLM's Ray executor requires that (at most one GPU per bundle, one of them beside the engine), and finds the
group by itself. Where each node gives one bundle, Ray guarantees that each is on a node of its own. Where it gives
more, Ray fills a node before it takes the next (PACK): the layout is right if a node has exactly as many free GPUs as
it should give.
"""

from __future__ import annotations

from typing import Any

from serve_app.config.replicas import ReplicasConfig
from serve_app.config.vllm_device import ENGINE_ENV

ACCELERATOR_SHARE = 0.001
"""Amount of the resource that names a node's GPUs: Ray itself requests as much to place work on such a node."""


def replica_options(replicas: ReplicasConfig, env: dict[str, str]) -> dict[str, Any]:
    """Serve's deployment options for the placement of a replica. `env` is the environment of its processes."""
    if replicas.nodes_per_replica == 1:
        return {"ray_actor_options": _actor_alone(replicas, env)}
    bundles = gang_bundles(replicas)
    one_each = len(bundles) == replicas.nodes_per_replica
    options: dict[str, Any] = {
        "ray_actor_options": {
            "num_cpus": bundles[0]["CPU"],
            "num_gpus": 0,  # the first worker takes the first bundle's
            "runtime_env": {"env_vars": {**ENGINE_ENV, **env}},
        },
        "placement_group_bundles": bundles,
        "placement_group_strategy": "STRICT_SPREAD" if one_each else "PACK",
    }
    if replicas.label_selector:
        options["placement_group_bundle_label_selector"] = [dict(replicas.label_selector) for _ in bundles]
    return options


def gang_bundles(replicas: ReplicasConfig) -> list[dict[str, float]]:
    """One bundle per GPU, or per node without GPUs: each with its share of the CPUs and of its node's resources."""
    per_node = max(replicas.gpus_per_replica // replicas.nodes_per_replica, 1)
    count = per_node * replicas.nodes_per_replica
    bundle = {"CPU": replicas.cpus_per_replica / count}
    if replicas.gpus_per_replica:
        bundle["GPU"] = 1.0
    if replicas.accelerator_type is not None:
        bundle[f"accelerator_type:{replicas.accelerator_type}"] = ACCELERATOR_SHARE
    bundle |= {name: amount / per_node for name, amount in replicas.resources.items()}
    return [dict(bundle) for _ in range(count)]


def _actor_alone(replicas: ReplicasConfig, env: dict[str, str]) -> dict[str, Any]:
    options: dict[str, Any] = {
        "num_cpus": replicas.cpus_per_replica,
        "num_gpus": replicas.gpus_per_replica,
        "resources": dict(replicas.resources),
        "label_selector": dict(replicas.label_selector),
        "runtime_env": {"env_vars": {**ENGINE_ENV, **env}},
    }
    if replicas.accelerator_type is not None:
        options["accelerator_type"] = replicas.accelerator_type
    return options
