"""How a start goes, from Serve's API and from the lines of `serve run`: changes, progress, errors.

`serve run` submits the application and then sleeps, whatever becomes of it (ray#31168), so its state has to be polled.
"""

from __future__ import annotations

import json
import re
from collections import Counter

from serve_app.cli.serve_api import ApplicationDetails, DeploymentDetails

FAILED_STATES = frozenset({"DEPLOY_FAILED", "UNHEALTHY"})
"""Application and deployment states that come with a message worth showing."""

_FAILED_TO_START = "failed to start"
"""In the message of a deployment whose replica failed. Serve tries it three times before the state says so."""


def has_failed(deployment: DeploymentDetails) -> bool:
    """Whether its state or its message says that it failed."""
    return deployment.status in FAILED_STATES or _FAILED_TO_START in (deployment.message or "")


def is_settled(application: ApplicationDetails) -> bool:
    """Whether every deployment has all the replicas that it should."""
    return application.status == "RUNNING" and all(
        deployment.status == "HEALTHY" for deployment in application.deployments.values()
    )


def summary(deployment: DeploymentDetails) -> str:
    """`updating (1 running, 1 starting)`."""
    states = Counter(replica.state for replica in deployment.replicas)
    counts = ", ".join(f"{count} {state.lower()}" for state, count in sorted(states.items()))
    return f"{deployment.status.lower()} ({counts or 'no replica'})"


def error_of(application: ApplicationDetails) -> str:
    """What went wrong, in the words of the replica where Serve passes them on; empty if nothing did."""
    texts = [part.message or "" for part in application.deployments.values() if has_failed(part)]
    texts += [application.message or ""] if application.status in FAILED_STATES else []
    return plain(max(texts, key=len, default="")).strip()


def changes(before: ApplicationDetails, after: ApplicationDetails) -> list[str]:
    """A line for each deployment that changed, and for the application."""
    lines = []
    for name, deployment in after.deployments.items():
        earlier = before.deployments.get(name)
        if earlier is None or summary(earlier) != summary(deployment):
            lines.append(f"{name:<8} {summary(deployment)}")
    if after.status != before.status:
        lines.append(f"{'all':<8} {after.status.lower()}")
    return lines


_REPLICA_LINE = re.compile(r"^\((?:\w+:)?(?:ServeReplica:)?[\w-]+:(?P<deployment>\w+) pid=\d+[^)]*\)\s+(?P<text>.*)$")
_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*: ")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_DASHBOARD = re.compile(r"View the dashboard at (https?://\S+)")


def plain(text: str) -> str:
    """The text without colours."""
    return _ANSI.sub("", text)


def essence(error: str) -> str:
    """The last exception of a traceback, without its frames; short enough to read first."""
    lines = error.strip().splitlines()
    starts = [number for number, line in enumerate(lines) if _EXCEPTION.match(line)]
    shown = [line.strip() for line in lines[starts[-1] if starts else -1 :] if "errors.pydantic.dev" not in line]
    return "\n".join(shown[:6])[:1500]


def dashboard_in(line: str) -> str | None:
    """The dashboard's address, if this line of Ray's names it."""
    match = _DASHBOARD.search(line)
    return match.group(1) if match else None


def progress_in(line: str) -> str | None:
    """The phase of a replica's start, if its log line has one: `engine   loading weights (12 s)`."""
    match = _REPLICA_LINE.match(line)
    if match is None or '"phase"' not in match["text"]:
        return None
    try:
        fields = json.loads(match["text"][match["text"].index("{") : match["text"].rindex("}") + 1])
    except ValueError:
        return None
    phase = fields.get("phase") if isinstance(fields, dict) else None
    return f"{match['deployment']:<8} {phase}" if phase else None
