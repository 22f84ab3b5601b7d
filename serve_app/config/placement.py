"""What an engine replica takes of which nodes: pure, from the configuration to Serve's options.

A replica on one node is an actor that takes everything itself; vLLM's worker processes are its children. A replica over
several nodes (a *gang*) is a placement group: a bundle per GPU, the actor and vLLM's first worker in the first. That is
how vLLM's Ray executor wants it (at most one GPU per bundle, one of them beside the engine), and it finds the group by
itself. Where a node gives just one bundle, Ray guarantees that each is on a node of its own. Where it gives more, Ray
fills a node before it takes the next (PACK): the layout is right where a node has as many free GPUs as it is to give.
"""

from __future__ import annotations

from typing import Any

from serve_app.config.schema import ReplicasConfig
from serve_app.config.vllm_device import ENGINE_ENV

ACCELERATOR_SHARE = 0.001
"""Of the resource by which Ray names a node's GPUs: Ray itself asks for as much to bind work to such a node."""


def replica_options(replicas: ReplicasConfig, env: dict[str, str]) -> dict[str, Any]:
    """Serve's deployment options that say where a replica goes. `env` is the environment of its processes."""
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
    """One bundle per GPU, or per node where there are none: each with its share of the CPUs and of what its node
    gives."""
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
