"""Changes of the deployment under load: an upgrade, new ingress replicas, more or fewer replicas.

Pure: from Serve's own report to the configuration that makes the change, and to when it is made.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from enum import Enum
from typing import Any

from chaos.fleet import ENGINE, INGRESS, Fleet
from serve_app.cli.serve_api import DeploymentDetails, ServeDetails, StatusUnknown

UPGRADE_VARIABLE = "STEP_SERVE_CHAOS_UPGRADE"
"""The environment variable that an upgrade changes. Nothing reads it; Serve replaces the replicas because of it."""

KEPT_OPTIONS = ("proxy_location", "http_options", "grpc_options", "target_capacity")


class Change(Enum):
    """One change, by its name in `--changes`."""

    UPGRADE = "upgrade"
    """Every replica is replaced."""
    INGRESS = "ingress"
    """Every ingress replica is replaced, no engine replica."""
    INGRESS_OUT = "ingress-out"
    INGRESS_IN = "ingress-in"
    ENGINE_OUT = "engine-out"
    ENGINE_IN = "engine-in"
    DRAIN_NODE = "drain-node"
    """A node with an engine is drained, and left by all replicas. The configuration stays as it is."""

    @property
    def deployments(self) -> tuple[str, ...]:
        """The deployments whose replicas change."""
        if self is Change.UPGRADE:
            return (ENGINE, INGRESS)
        return (ENGINE,) if self.value.startswith(ENGINE) else (INGRESS,)

    @property
    def step(self) -> int:
        """By how many the number of replicas changes."""
        return {"out": 1, "in": -1}.get(self.value.rpartition("-")[2], 0)


ROLLING = (
    Change.INGRESS,
    Change.ENGINE_OUT,
    Change.INGRESS_OUT,
    Change.INGRESS,
    Change.INGRESS_IN,
    Change.ENGINE_IN,
    Change.INGRESS,
)
"""What `--fault rolling` does by default: three replacements of the ingresses, each deployment scaled out and in."""


@dataclass(frozen=True)
class AppliedChange:
    """A change that Serve has accepted."""

    change: Change
    at_s: float
    """Since the run began."""
    clock_s: float
    """On the event loop's clock, as the recordings' times."""


def changed_config(details: ServeDetails, application: str, change: Change, label: str) -> dict[str, object]:
    """The configuration to deploy: the running one with this change. Raises `StatusUnknown`.

    It has all applications, because Serve ends those that a configuration leaves out.
    """
    configs = []
    for name, found in details.applications.items():
        config = copy.deepcopy(found.deployed_app_config)
        if config is None:
            raise StatusUnknown(f"application {name!r} was not deployed from a configuration, so it cannot be changed")
        if name == application and change is Change.UPGRADE:
            config.setdefault("runtime_env", {}).setdefault("env_vars", {})[UPGRADE_VARIABLE] = label
        elif name == application:
            (deployment,) = change.deployments
            _override(config, _options(deployment, found.deployments[deployment], change, label))
        configs.append(config)
    kept = {name: value for name in KEPT_OPTIONS if (value := getattr(details, name)) is not None}
    return {**kept, "applications": configs}


def _options(deployment: str, details: DeploymentDetails, change: Change, label: str) -> dict[str, Any]:
    """The deployment's options that the change sets."""
    now = details.deployment_config or {}
    if change.step:
        count = now.get("num_replicas")
        if not isinstance(count, int):
            raise StatusUnknown(
                f"{change.value}: the number of {deployment} replicas is autoscaled; "
                f"leave it out of --changes, or configure a fixed number"
            )
        return {"name": deployment, "num_replicas": count + change.step}
    actor = copy.deepcopy(now.get("ray_actor_options") or {})
    actor.setdefault("runtime_env", {}).setdefault("env_vars", {})[UPGRADE_VARIABLE] = label
    return {"name": deployment, "ray_actor_options": actor}


def _override(config: dict[str, Any], options: dict[str, Any]) -> None:
    """Set the deployment's options in the application's configuration, and keep its other options."""
    for entry in config.setdefault("deployments", []):
        if entry["name"] == options["name"]:
            entry.update(options)
            return
    config["deployments"].append(options)


def is_done(change: Change, before: Fleet, now: Fleet) -> bool:
    """Whether Serve has made the change. Replicas that are still draining do not count."""
    for name in change.deployments:
        running = before.running(name)
        if change.step:
            if len(now.running(name)) != before.targets.get(name, len(running)) + change.step:
                return False
        elif not now.is_recovered({name: len(running)}, frozenset(replica.replica_id for replica in running)):
            return False
    return True


def change_points(requests: int, changes: int) -> list[int]:
    """The requests at which changes begin, evenly spaced: two changes begin at a third and two thirds."""
    return [requests * (number + 1) // (changes + 1) for number in range(changes)]
