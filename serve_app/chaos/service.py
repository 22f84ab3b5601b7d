"""What Serve and Ray say of the service, over the dashboard: replicas, metrics, access log. And the one thing that they
are told: a changed configuration.

Blocking on purpose, and called in threads: the event loop belongs to the streams, whose timing is measured.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from serve_app.start import serve_status
from serve_app.start.serve_status import APPLICATIONS, StatusUnknown

ENGINE, INGRESS = "engine", "ingress"
UPGRADE_VARIABLE = "STEP_SERVE_CHAOS_UPGRADE"
"""What an upgrade changes in the application's environment. Nothing reads it; Serve replaces every replica for it."""

RESUMES = "ray_step_resumes_total"
ACCESS = "serve_app.access: request {"
TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Replica:
    """One replica, as Serve knows it."""

    replica_id: str
    deployment: str
    state: str
    pid: int
    node_id: str
    node_ip: str
    actor_id: str

    @property
    def is_running(self) -> bool:
        """Whether Serve sends requests to it. It says so of a dead one too, until its next health check."""
        return self.state == "RUNNING"


@dataclass(frozen=True)
class Fleet:
    """All replicas of the application at one moment."""

    replicas: tuple[Replica, ...]
    targets: Mapping[str, int]
    """How many of each deployment Serve wants now, where it says so."""

    def running(self, deployment: str) -> list[Replica]:
        """Those that take requests."""
        return [one for one in self.replicas if one.deployment == deployment and one.is_running]

    def is_whole(self, like: Mapping[str, int], gone: frozenset[str]) -> bool:
        """Whether of each deployment in `like` as many run as Serve wants, or else as in `like`, and none of `gone`."""
        running = {name: self.running(name) for name in like}
        return all(
            len(found) >= self.targets.get(name, like[name]) and not any(one.replica_id in gone for one in found)
            for name, found in running.items()
        )

    def states(self, deployment: str) -> str:
        """`2 running, 1 starting`."""
        found = [one.state.lower() for one in self.replicas if one.deployment == deployment]
        return ", ".join(f"{found.count(state)} {state}" for state in sorted(set(found))) or "none"


class Service:
    """The application, as the dashboard shows it. Every method may raise `StatusUnknown`."""

    def __init__(self, dashboard: str, application: str) -> None:
        self._dashboard = dashboard
        self._application = application
        self.ingresses: dict[str, Replica] = {}
        """Every ingress replica that was ever seen: their logs outlive them."""
        self._resumes: dict[str, float] = {}

    def fleet(self) -> Fleet:
        """The replicas now."""
        fleet = fleet_of(self._details(), self._application)
        self.ingresses.update({one.actor_id: one for one in fleet.replicas if one.deployment == INGRESS})
        return fleet

    def _details(self) -> object:
        return json.loads(serve_status.ask(self._dashboard, APPLICATIONS, TIMEOUT_S))

    def upgrade(self, label: str) -> None:
        """Deploy the configuration again with one variable changed: every replica is replaced in turn."""
        config = upgraded(self._details(), self._application, label)
        serve_status.ask(self._dashboard, APPLICATIONS, TIMEOUT_S, put=json.dumps(config).encode())

    def resumes(self) -> int:
        """`ray_step_resumes_total` of all ingress replicas that were ever seen. Ray publishes it every ten seconds."""
        groups = json.loads(serve_status.ask(self._dashboard, "/api/prometheus/sd", TIMEOUT_S))
        for target in sorted({target for group in groups for target in group["targets"]}):
            # A replica that is gone takes its counter along: what it had last is kept.
            for labels, value in counters(_page(f"http://{target}/metrics"), RESUMES):
                self._resumes[labels] = max(value, self._resumes.get(labels, 0.0))
        return round(sum(self._resumes.values()))

    def access_lines(self, lines: int) -> tuple[dict[str, Access], list[str]]:
        """The access log's last lines of every ingress replica that was ever seen, by request id; and of whom there are
        none, and why: Ray loses sight of the log of one that is gone."""
        found: dict[str, Access] = {}
        unread = []
        for actor_id, replica in self.ingresses.items():
            path = f"/api/v0/logs/file?node_id={replica.node_id}&actor_id={actor_id}&suffix=err&lines={lines}"
            try:
                text = serve_status.ask(self._dashboard, path, TIMEOUT_S).decode(errors="replace")
            except StatusUnknown as error:
                unread.append(f"{replica.replica_id} ({' '.join(str(error).split())[:80]})")
            else:
                found.update(access_of(text.splitlines()))
        return found, unread


class Access(msgspec.Struct):
    """One line of the access log, as far as chaos needs it."""

    id: str = ""
    resumes: int = 0
    replica: list[str] = []
    outcome: str = ""


def access_of(lines: Iterable[str]) -> dict[str, Access]:
    """The access log's lines among these, by request id."""
    found = {}
    for line in lines:
        at = line.find(ACCESS)
        if at >= 0:
            try:
                access = msgspec.json.decode(line[at + len(ACCESS) - 1 :], type=Access)
            except msgspec.DecodeError:  # the first line of a tail may be half a line
                continue
            found[access.id] = access
    return found


def fleet_of(details: object, application: str) -> Fleet:
    """The replicas in `GET /api/serve/applications/`. Raises `StatusUnknown` where the application is not there."""
    try:
        found = details["applications"][application]["deployments"]  # type: ignore[index]  # checked by what it raises
    except (LookupError, TypeError) as error:
        raise StatusUnknown(f"Serve has no application {application!r}: give its name with --application") from error
    targets = {name: deployment.get("target_num_replicas") for name, deployment in found.items()}
    return Fleet(
        tuple(_replica(str(name), one) for name, deployment in found.items() for one in deployment["replicas"]),
        {name: count for name, count in targets.items() if count is not None},
    )


def _replica(deployment: str, told: Mapping[str, Any]) -> Replica:
    return Replica(
        replica_id=str(told["replica_id"]),
        deployment=deployment,
        state=str(told["state"]),
        pid=int(told.get("pid") or 0),
        node_id=str(told.get("node_id") or ""),
        node_ip=str(told.get("node_ip") or ""),
        actor_id=str(told.get("actor_id") or ""),
    )


KEPT_OPTIONS = ("proxy_location", "http_options", "grpc_options", "target_capacity")


def upgraded(details: object, application: str, label: str) -> dict[str, object]:
    """What `serve deploy` would send for what runs now, with one variable of the application's environment changed.

    All applications are in it: Serve ends those that a configuration leaves out.
    """
    assert isinstance(details, dict)  # noqa: S101  # `fleet_of` has read it
    configs = []
    for name, found in details["applications"].items():
        config = json.loads(json.dumps(found["deployed_app_config"]))
        if config is None:
            raise StatusUnknown(
                f"application {name!r} was not deployed from a configuration: there is nothing to upgrade"
            )
        if name == application:
            config.setdefault("runtime_env", {}).setdefault("env_vars", {})[UPGRADE_VARIABLE] = label
        configs.append(config)
    kept = {name: details[name] for name in KEPT_OPTIONS if details.get(name) is not None}
    return {**kept, "applications": configs}


def counters(page: str, metric: str) -> list[tuple[str, float]]:
    """(labels, value) of every line of a Prometheus page with this metric."""
    found = []
    for line in page.splitlines():
        if line.startswith((metric + "{", metric + " ")):
            labels, _, value = line[len(metric) :].rpartition(" ")
            found.append((labels, float(value)))
    return found


def _page(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:  # noqa: S310  # a node's metrics, over http
            text: str = answer.read().decode(errors="replace")
    except (OSError, urllib.error.URLError):  # a node that died must not blind us to the others
        return ""
    return text


def describe(replicas: Sequence[Replica]) -> str:
    """`abc123 (pid 7 on 10.0.0.1), ...`."""
    return ", ".join(f"{one.replica_id} (pid {one.pid} on {one.node_ip})" for one in replicas)
