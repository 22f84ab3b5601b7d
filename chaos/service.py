"""Reads the service's replicas, metrics and access log from Ray's dashboard, and deploys changed configurations.

All calls block and run in threads: the event loop is for the streams, whose timing is measured.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterable

import msgspec

from chaos.changes import Change, changed_config
from chaos.fleet import INGRESS, Fleet, Replica, fleet_of
from serve_app.cli import serve_api
from serve_app.cli.serve_api import StatusUnknown

MIGRATIONS = "ray_step_migrations_total"
ACCESS_LINE = "serve_app.access: request {"
TIMEOUT_S = 30.0


class Service:
    """One Serve application. Every method may raise `StatusUnknown`."""

    def __init__(self, dashboard: str, application: str) -> None:
        self._dashboard = dashboard
        self._application = application
        self.ingresses: dict[str, Replica] = {}
        """Every ingress replica seen so far, by actor id: their logs may outlive them."""
        self._migrations: dict[str, float] = {}

    def fleet(self) -> Fleet:
        """The replicas now."""
        fleet = fleet_of(serve_api.fetch(self._dashboard, TIMEOUT_S), self._application)
        self.ingresses.update(
            {replica.actor_id: replica for replica in fleet.replicas if replica.deployment == INGRESS}
        )
        return fleet

    def change(self, change: Change, label: str) -> None:
        """Deploy the running configuration with this change. `label` makes each replacement differ from the last."""
        config = changed_config(serve_api.fetch(self._dashboard, TIMEOUT_S), self._application, change, label)
        serve_api.request(self._dashboard, serve_api.APPLICATIONS, TIMEOUT_S, put=json.dumps(config).encode())

    def migrations(self) -> int:
        """`ray_step_migrations_total` of all ingress replicas seen so far. Ray publishes it every ten seconds."""
        groups = json.loads(serve_api.request(self._dashboard, "/api/prometheus/sd", TIMEOUT_S))
        for target in sorted({target for group in groups for target in group["targets"]}):
            # Counters of ended replicas disappear: their last value is kept.
            for labels, value in counters(_page(f"http://{target}/metrics"), MIGRATIONS):
                self._migrations[labels] = max(value, self._migrations.get(labels, 0.0))
        return round(sum(self._migrations.values()))

    def access_lines(self, lines: int) -> tuple[dict[str, Access], list[str]]:
        """The last access log lines of every ingress replica seen so far, by request id, and the replicas without one.

        Ray may not serve the log of a replica that has ended.
        """
        found: dict[str, Access] = {}
        unread = []
        for actor_id, replica in self.ingresses.items():
            path = f"/api/v0/logs/file?node_id={replica.node_id}&actor_id={actor_id}&suffix=err&lines={lines}"
            try:
                text = serve_api.request(self._dashboard, path, TIMEOUT_S).decode(errors="replace")
            except StatusUnknown as error:
                unread.append(f"{replica.replica_id} ({' '.join(str(error).split())[:80]})")
            else:
                found.update(access_of(text.splitlines()))
        return found, unread


class Access(msgspec.Struct):
    """The fields of an access log line that chaos reads."""

    id: str = ""
    migrations: int = 0
    replica: list[str] = []
    outcome: str = ""


def access_of(lines: Iterable[str]) -> dict[str, Access]:
    """The access log lines among these, by request id."""
    found = {}
    for line in lines:
        at = line.find(ACCESS_LINE)
        if at >= 0:
            try:
                access = msgspec.json.decode(line[at + len(ACCESS_LINE) - 1 :], type=Access)
            except msgspec.DecodeError:  # the first line of a tail may be half a line
                continue
            found[access.id] = access
    return found


def counters(page: str, metric: str) -> list[tuple[str, float]]:
    """(labels, value) of each series of this metric on a Prometheus page."""
    found = []
    for line in page.splitlines():
        if line.startswith((metric + "{", metric + " ")):
            labels, _, value = line[len(metric) :].rpartition(" ")
            found.append((labels, float(value)))
    return found


def _page(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:  # noqa: S310  # a node's metrics, over http
            text: str = response.read().decode(errors="replace")
    except (OSError, urllib.error.URLError):  # the other nodes can still be read
        return ""
    return text
