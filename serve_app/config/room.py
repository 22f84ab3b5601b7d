"""Room for engines: whether the parts of a fleet fit together, and whether a replacement may start before the old
engine stops. Pure but for `free_nodes`, which asks Ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from serve_app.config import hardware
from serve_app.config.fleet import FleetConfig
from serve_app.config.hardware import NodeGpus, NoProfileFits, describe
from serve_app.config.replicas import ReplicasConfig


def check_fit(fleet: FleetConfig, nodes: Sequence[NodeGpus]) -> None:
    """Raise `NoProfileFits` if the nodes cannot hold the least number of engines of all parts at a time, and one more
    where `surge: 1` asks for it."""
    for part in fleet.parts:
        hardware.check_fit(part.config, nodes)
    left = list(nodes)
    for part in fleet.parts:
        replicas = part.config.replicas
        if replicas.cluster_grows:
            continue
        rest = taken(replicas, replicas.min, left)
        if rest is None:
            raise NoProfileFits(
                f"pool {part.name} has no room for {replicas.min} engine(s) beside the pools before it; the cluster "
                f"has {describe(nodes)}. Lower `min` of a pool, or add nodes"
            )
        left = rest
    for part in fleet.parts:
        replicas = part.config.replicas
        if replicas.surge == 1 and not replicas.cluster_grows and taken(replicas, 1, left) is None:
            raise NoProfileFits(
                f"`replicas.surge: 1` needs room for one engine more than `replicas.min`; the cluster has "
                f"{describe(nodes)}: a replacement would wait for it for ever. Set `replicas.surge` to auto or 0"
            )


def taken(replicas: ReplicasConfig, count: int, nodes: Sequence[NodeGpus]) -> list[NodeGpus] | None:
    """What the nodes have left with `count` more engines on them; None if there is no room."""
    left, parts = list(nodes), count * replicas.nodes_per_replica
    share = 1 / replicas.nodes_per_replica
    for number, node in enumerate(left):
        here = min(hardware.room(replicas.model_copy(update=_one_node(replicas, share)), [node]), parts)
        parts -= here
        left[number] = replace(
            node,
            gpus=node.gpus - round(here * replicas.gpus_per_replica * share),
            cpus=node.cpus - here * replicas.cpus_per_replica * share,
            resources={name: have - here * replicas.resources.get(name, 0.0) for name, have in node.resources.items()},
        )
    return None if parts else left


def _one_node(replicas: ReplicasConfig, share: float) -> dict[str, object]:
    """What an engine takes of each of its nodes, as an engine of one node."""
    return {
        "nodes_per_replica": 1,
        "gpus_per_replica": round(replicas.gpus_per_replica * share),
        "cpus_per_replica": replicas.cpus_per_replica * share,
    }


def surges(replicas: ReplicasConfig, free: Sequence[NodeGpus]) -> bool:
    """Whether a replacement's engine starts before an old one stops. `free` are the nodes with what nobody uses now: an
    engine that waits for room which never comes would hold the replacement up for ever."""
    if replicas.surge == "auto":
        budget = replicas.gpu_budget
        passes_it = budget is not None and (replicas.most + 1) * replicas.gpus_per_replica > budget
        return not passes_it and hardware.room(replicas, free) >= 1
    return replicas.surge == 1


def free_nodes() -> list[NodeGpus]:
    """The live nodes of the connected Ray cluster, with what nobody has reserved there."""
    from ray._private.state import available_resources_per_node  # the public call has the sum over all nodes only

    free = available_resources_per_node()
    return [
        replace(node, gpus=int(have.get("GPU", 0)), cpus=have.get("CPU", 0.0), resources=have)
        for node in hardware.cluster_nodes()
        if (have := free.get(node.node_id)) is not None
    ]
