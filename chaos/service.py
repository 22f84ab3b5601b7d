"""What Serve and Ray say of the service, over the dashboard: replicas, metrics, access log. And the one thing that they
are told: a changed configuration.

Blocking on purpose, and called in threads: the event loop belongs to the streams, whose timing is measured.
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

RESUMES = "ray_step_migrations_total"
ACCESS = "serve_app.access: request {"
TIMEOUT_S = 30.0


class Service:
    """The application, as the dashboard shows it. Every method may raise `StatusUnknown`."""

    def __init__(self, dashboard: str, application: str) -> None:
        self._dashboard = dashboard
        self._application = application
        self.ingresses: dict[str, Replica] = {}
        """Every ingress replica that was ever seen: their logs outlive them."""
        self._migrations: dict[str, float] = {}

    def fleet(self) -> Fleet:
        """The replicas now."""
        fleet = fleet_of(serve_api.fetch(self._dashboard, TIMEOUT_S), self._application)
        self.ingresses.update({one.actor_id: one for one in fleet.replicas if one.deployment == INGRESS})
        return fleet

    def change(self, change: Change, label: str) -> None:
        """Deploy the configuration again with this change; `label` is what makes a replacement differ."""
        config = changed_config(serve_api.fetch(self._dashboard, TIMEOUT_S), self._application, change, label)
        serve_api.request(self._dashboard, serve_api.APPLICATIONS, TIMEOUT_S, put=json.dumps(config).encode())

    def migrations(self) -> int:
        """`ray_step_migrations_total` of all ingress replicas that were ever seen. Ray publishes it every ten
        seconds."""
        groups = json.loads(serve_api.request(self._dashboard, "/api/prometheus/sd", TIMEOUT_S))
        for target in sorted({target for group in groups for target in group["targets"]}):
            # A replica that is gone takes its counter along: what it had last is kept.
            for labels, value in counters(_page(f"http://{target}/metrics"), RESUMES):
                self._migrations[labels] = max(value, self._migrations.get(labels, 0.0))
        return round(sum(self._migrations.values()))

    def access_lines(self, lines: int) -> tuple[dict[str, Access], list[str]]:
        """The access log's last lines of every ingress replica that was ever seen, by request id; and of whom there are
        none, and why: Ray loses sight of the log of one that is gone."""
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
    """One line of the access log, as far as chaos needs it."""

    id: str = ""
    migrations: int = 0
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
