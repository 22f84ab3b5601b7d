"""Nodes that are drained under load: which is next, and when it is empty. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from chaos.fleet import ENGINE, Fleet, Replica


@dataclass(frozen=True)
class DrainedNode:
    """A node that was drained, and how long it took until it had no replica of the application."""

    node_ip: str
    deadline_s: float
    empty_s: float


def next_node(fleet: Fleet, drained: Collection[str]) -> Replica | None:
    """An engine replica on the node to drain: that with the most engines, and not one of `drained`. None if there is no
    such node, or it is the only one with engines."""
    running = fleet.running(ENGINE)
    count = {one.node_id: sum(one.node_id == other.node_id for other in running) for one in running}
    found = [one for one in running if one.node_id not in drained]
    if not found or len(count) < 2:
        return None
    return max(found, key=lambda one: count[one.node_id])


def is_empty(fleet: Fleet, node_id: str) -> bool:
    """Whether no replica of the application is on the node, in whatever state."""
    return not any(replica.node_id == node_id for replica in fleet.replicas)
