"""The application's replicas at one moment, as Serve reports them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from serve_app.cli.serve_api import ReplicaDetails, ServeDetails, StatusUnknown

ENGINE, INGRESS = "engine", "ingress"


@dataclass(frozen=True)
class Replica:
    """One replica, as Serve reports it."""

    replica_id: str
    deployment: str
    state: str
    pid: int
    node_id: str
    node_ip: str
    actor_id: str

    @property
    def is_running(self) -> bool:
        """Whether Serve sends requests to it. True of a dead replica too, until its next health check."""
        return self.state == "RUNNING"


@dataclass(frozen=True)
class Fleet:
    """All replicas of the application at one moment."""

    replicas: tuple[Replica, ...]
    targets: Mapping[str, int]
    """Serve's target number of replicas by deployment, where it reports one."""

    def running(self, deployment: str) -> list[Replica]:
        """The deployment's replicas that take requests."""
        return [replica for replica in self.replicas if replica.deployment == deployment and replica.is_running]

    def is_recovered(self, expected_counts: Mapping[str, int], gone: frozenset[str]) -> bool:
        """Whether each deployment runs Serve's target (else the expected number) of replicas, and none of `gone`."""
        running = {name: self.running(name) for name in expected_counts}
        return all(
            len(found) >= self.targets.get(name, expected_counts[name])
            and not any(replica.replica_id in gone for replica in found)
            for name, found in running.items()
        )

    def states(self, deployment: str) -> str:
        """`2 running, 1 starting`."""
        found = [replica.state.lower() for replica in self.replicas if replica.deployment == deployment]
        return ", ".join(f"{found.count(state)} {state}" for state in sorted(set(found))) or "none"


def fleet_of(details: ServeDetails, application: str) -> Fleet:
    """The replicas of one application. Raises `StatusUnknown` where Serve does not know it."""
    found = details.applications.get(application)
    if found is None or not found.deployments:
        raise StatusUnknown(f"Serve has no application {application!r}: give its name with --application")
    targets = {name: deployment.target_num_replicas for name, deployment in found.deployments.items()}
    return Fleet(
        tuple(_replica(name, one) for name, deployment in found.deployments.items() for one in deployment.replicas),
        {name: count for name, count in targets.items() if count is not None},
    )


def _replica(deployment: str, details: ReplicaDetails) -> Replica:
    return Replica(
        replica_id=details.replica_id,
        deployment=deployment,
        state=details.state,
        pid=details.pid or 0,
        node_id=details.node_id or "",
        node_ip=details.node_ip or "",
        actor_id=details.actor_id or "",
    )


def describe(replicas: Sequence[Replica]) -> str:
    """`abc123 (pid 7 on 10.0.0.1), ...`."""
    return ", ".join(f"{replica.replica_id} (pid {replica.pid} on {replica.node_ip})" for replica in replicas)
