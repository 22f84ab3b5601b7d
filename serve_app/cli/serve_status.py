"""What Ray Serve says of the application, over the dashboard's REST API: read into a snapshot, and told as changes.

`serve run` submits the application and then sleeps, whatever becomes of it (ray#31168). Who wants to know must ask.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

GONE_WRONG = frozenset({"DEPLOY_FAILED", "UNHEALTHY"})
"""Application and deployment states that come with a message worth showing."""

_FAILED_TO_START = "failed to start"


class StatusUnknown(Exception):
    """The dashboard does not answer (yet), or not as expected."""


@dataclass(frozen=True)
class DeploymentStatus:
    """One deployment: its state in Serve's words, and how many replicas are in which state."""

    status: str
    message: str
    replicas: Mapping[str, int]

    def has_failed(self) -> bool:
        """Whether its message tells of a failure. Serve tries a replica three times before it calls that a state."""
        return self.status in GONE_WRONG or _FAILED_TO_START in self.message

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {state.lower()}" for state, count in sorted(self.replicas.items()))
        return f"{self.status.lower()} ({counts or 'no replica'})"


@dataclass(frozen=True)
class ApplicationStatus:
    """One application and its deployments, by name."""

    status: str
    message: str
    deployments: Mapping[str, DeploymentStatus]

    def error(self) -> str:
        """What went wrong, in the words of the replica where Serve passes them on; empty if nothing did."""
        texts = [part.message for part in self.deployments.values() if part.has_failed()]
        texts += [self.message] if self.status in GONE_WRONG else []
        return max(texts, key=len, default="").strip()


NOT_THERE = ApplicationStatus("NOT_STARTED", "", {})


def fetch(dashboard: str, application: str, timeout_s: float) -> ApplicationStatus:
    """The application's state now. Raises `StatusUnknown`."""
    try:
        details = json.loads(ask(dashboard, APPLICATIONS, timeout_s))
    except ValueError as error:
        raise StatusUnknown(str(error)) from error
    return parse(details, application)


APPLICATIONS = "/api/serve/applications/"


def ask(dashboard: str, path: str, timeout_s: float, put: bytes | None = None) -> bytes:
    """What the dashboard answers, with Ray's token where there is one. Raises `StatusUnknown`."""
    request = urllib.request.Request(f"{dashboard}{path}", data=put, method="GET" if put is None else "PUT")  # noqa: S310  # our own dashboard, over http
    if put is not None:
        request.add_header("Content-Type", "application/json")
    token = auth_token()
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:  # noqa: S310  # the same
            body: bytes = answer.read()
    except urllib.error.HTTPError as error:
        raise StatusUnknown(f"{error}: {error.read(2000).decode(errors='replace')}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise StatusUnknown(str(error)) from error
    return body


def auth_token() -> str | None:
    """The token that Ray guards its dashboard with, from where Ray itself looks for it."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return os.environ["RAY_AUTH_TOKEN"]
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))
    return file.read_text(encoding="utf-8").strip() if file.is_file() else None


def parse(details: object, application: str) -> ApplicationStatus:
    """One application out of `GET /api/serve/applications/`; `NOT_THERE` where Serve does not know it yet."""
    found = _mapping(_mapping(_mapping(details).get("applications")).get(application))
    if not found:
        return NOT_THERE
    deployments = {}
    for name, value in _mapping(found.get("deployments")).items():
        part = _mapping(value)
        replicas = part.get("replicas")
        states = [str(_mapping(replica).get("state")) for replica in replicas] if isinstance(replicas, list) else []
        deployments[str(name)] = DeploymentStatus(
            str(part.get("status", "")), plain(str(part.get("message") or "")), Counter(states)
        )
    return ApplicationStatus(str(found.get("status", "")), plain(str(found.get("message") or "")), deployments)


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def changes(before: ApplicationStatus, after: ApplicationStatus) -> list[str]:
    """A line for each thing that changed, in the words of `DeploymentStatus`."""
    lines = []
    for name, part in after.deployments.items():
        earlier = before.deployments.get(name)
        if earlier is None or str(earlier) != str(part):
            lines.append(f"{name:<8} {part}")
    if after.status != before.status:
        lines.append(f"{'all':<8} {after.status.lower()}")
    return lines


_REPLICA_LINE = re.compile(r"^\((?:\w+:)?(?:ServeReplica:)?[\w-]+:(?P<deployment>\w+) pid=\d+[^)]*\)\s+(?P<text>.*)$")
_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*: ")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_DASHBOARD = re.compile(r"View the dashboard at (https?://\S+)")


def plain(line: str) -> str:
    """The line without colours."""
    return _ANSI.sub("", line)


def essence(error: str) -> str:
    """The last exception of a traceback, without the way there; short enough to read first."""
    lines = error.strip().splitlines()
    starts = [number for number, line in enumerate(lines) if _EXCEPTION.match(line)]
    told = [line.strip() for line in lines[starts[-1] if starts else -1 :] if "errors.pydantic.dev" not in line]
    return "\n".join(told[:6])[:1500]


def dashboard_in(line: str) -> str | None:
    """The dashboard's address, if this line of Ray's names it."""
    match = _DASHBOARD.search(line)
    return match.group(1) if match else None


def progress_in(line: str) -> str | None:
    """What a replica's log line says of its start, if anything: `engine   loading weights (12 s)`."""
    match = _REPLICA_LINE.match(line)
    if match is None or '"phase"' not in match["text"]:
        return None
    try:
        fields = json.loads(match["text"][match["text"].index("{") : match["text"].rindex("}") + 1])
    except ValueError:
        return None
    phase = _mapping(fields).get("phase")
    return f"{match['deployment']:<8} {phase}" if phase else None
