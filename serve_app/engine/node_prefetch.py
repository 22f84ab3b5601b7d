"""Has every node that may get a replica read the weights into its page cache: the next replica starts there sooner."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from serve_app.config.placement import gang_bundles
from serve_app.config.replicas import ReplicasConfig
from serve_app.engine.weights_prefetch import Checkpoint, prefetch

logger = logging.getLogger(__name__)


def begin(checkpoint: Checkpoint, replicas: ReplicasConfig) -> threading.Thread | None:
    """Ask the other nodes, in a thread: Ray may take a moment. None where no other replica can come."""
    if replicas.max == 1 and replicas.nodes_per_replica == 1:
        return None
    thread = threading.Thread(target=_ask, args=(checkpoint, replicas), name="node-prefetch", daemon=True)
    thread.start()
    return thread


def candidates(nodes: Sequence[Mapping[str, Any]], replicas: ReplicasConfig, own: str) -> list[str]:
    """The ids of the nodes that have what a replica needs of one, free or not; `own` is left out. `nodes` are as
    `ray.nodes` gives them."""
    needs = _needs(replicas)
    return [
        node["NodeID"]
        for node in nodes
        if node["Alive"]
        and node["NodeID"] != own
        and all(node["Resources"].get(name, 0.0) >= amount for name, amount in needs.items())
        and all(_may_match(node.get("Labels") or {}, *wish) for wish in replicas.label_selector.items())
    ]


def _needs(replicas: ReplicasConfig) -> dict[str, float]:
    """What a replica takes of one node."""
    needs: dict[str, float] = {}
    bundles = gang_bundles(replicas)
    for bundle in bundles[: max(len(bundles) // replicas.nodes_per_replica, 1)]:
        for name, amount in bundle.items():
            needs[name] = needs.get(name, 0.0) + amount
    return needs


def _may_match(labels: Mapping[str, str], name: str, wish: str) -> bool:
    """Whether a node's label may be as wished: an expression (`!x`, `in(...)`) is Ray's to read."""
    return labels.get(name) == wish or not wish.replace("-", "").replace("_", "").replace(".", "").isalnum()


def _ask(checkpoint: Checkpoint, replicas: ReplicasConfig) -> None:
    try:
        found = candidates(ray.nodes(), replicas, ray.get_runtime_context().get_node_id())
        read = ray.remote(num_cpus=0, max_retries=0)(_read_there)
        for node_id in found:
            read.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)).remote(checkpoint)
    except (RayError, RuntimeError, OSError) as error:
        logger.warning("other nodes are not asked to read the weights", extra={"error": str(error)})
        return
    if found:
        logger.info("other nodes read the weights ahead", extra={"nodes": len(found)})


def _read_there(checkpoint: Checkpoint) -> None:
    """Runs on the other node."""
    prefetch(checkpoint, unless_fresh=True)
