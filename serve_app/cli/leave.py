"""`python -m serve_app leave`: this node is about to go. Has Ray drain it, and returns when no replica is left on it.

For whoever ends nodes: the `preStop` of a Kubernetes pod, a watcher of a cloud's preemption notices, a person with a
machine to repair. Ray places nothing on a draining node any more, Serve starts successors elsewhere, and ingresses
leave its engines before the deadline (`router/departures.py`). Ray has no way back: a node that is to stay after all is
stopped and started (`ray stop`, `ray start`), and is a new one then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

POLL_S = 1.0
DEFAULT_DEADLINE_S = 300
CONTROLLER, NAMESPACE = "SERVE_CONTROLLER_ACTOR", "serve"

HEAD = "node:__internal_head__"
"""A resource that Ray gives to its head."""

PREEMPTION = "DRAIN_NODE_REASON_PREEMPTION"
"""Ray refuses its other reason, an idle node, while anything runs there."""


class NotDrained(Exception):
    """Ray does not drain the node. The message says why."""


@dataclass(frozen=True)
class Left:
    """A replica that is still on the node."""

    deployment: str
    replica_id: str
    state: str


def drain(node_id: str, deadline_s: float, reason: str) -> None:
    """Have the Ray that this process is connected to drain a node that goes in `deadline_s`. Raises `NotDrained`."""
    import ray
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled: mypy finds no names in it
    from ray.core.generated import autoscaler_pb2
    from ray.exceptions import RayError

    if any(HEAD in node["Resources"] for node in ray.nodes() if node["NodeID"] == node_id):
        raise NotDrained("it is the head, and the cluster ends with it")
    client = GcsClient(address=ray.get_runtime_context().gcs_address)
    kind = autoscaler_pb2.DrainNodeReason.Value(PREEMPTION)
    until_ms = round((time.time() + deadline_s) * 1000)
    try:
        accepted, why = client.drain_node(node_id, kind, reason, until_ms)
    except RayError as error:
        raise NotDrained(str(error)) from error
    if not accepted:
        raise NotDrained(str(why))


def replicas_on(node_id: str, details: Mapping[str, Any]) -> list[Left]:
    """The replicas of all applications that are on this node, in Serve's details (`ServeInstanceDetails`)."""
    applications: Iterable[Mapping[str, Any]] = details.get("applications", {}).values()
    return [
        Left(name, replica["replica_id"], replica["state"])
        for application in applications
        for name, deployment in application.get("deployments", {}).items()
        for replica in deployment.get("replicas", [])
        if replica.get("node_id") == node_id
    ]


def leave(address: str, node_id: str | None, deadline_s: float, say: Callable[[str], None]) -> int:
    """The command. Returns 0 when the node is empty, 1 when it is not by the deadline, or cannot be drained."""
    import ray
    from ray.exceptions import RayError

    try:
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RayError) as error:
        say(f"error: no Ray at {address!r}: {error}")
        return 1
    node_id = node_id or str(ray.get_runtime_context().get_node_id())
    try:
        drain(node_id, deadline_s, "python -m serve_app leave")
    except NotDrained as error:
        say(f"error: Ray does not drain node {node_id}: {error}")
        return 1
    say(f"node {node_id} leaves in {deadline_s:.0f} s at the latest")
    end_s = time.monotonic() + deadline_s
    try:
        return _until_empty(node_id, end_s, say)
    except RayError as error:  # a node without anything on it ends its Ray by itself
        say(f"Ray has ended here: {type(error).__name__}")
        return 0


def _until_empty(node_id: str, end_s: float, say: Callable[[str], None]) -> int:
    import ray

    try:
        controller = ray.get_actor(CONTROLLER, namespace=NAMESPACE)
    except ValueError:
        say("no Serve runs on this Ray")
        return 0
    before: list[Left] | None = None
    while True:
        left = replicas_on(node_id, ray.get(controller.get_serve_instance_details.remote(), timeout=30))
        if left != before:
            say(", ".join(f"{one.deployment} {one.replica_id} {one.state.lower()}" for one in left) or "empty")
        if not left or time.monotonic() >= end_s:
            return 1 if left else 0
        before = left
        time.sleep(POLL_S)
