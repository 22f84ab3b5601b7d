"""The REST API of Ray's dashboard: requests to it, and one typed reader of `GET /api/serve/applications/`.

Only fields that somebody reads are declared, by the names of Ray's own schema (`ray/serve/schema.py`). Unknown fields
are skipped, missing ones have defaults. This module imports the standard library and msgspec only, so that tools beside
the service may use it without Ray or vLLM.
"""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import msgspec

APPLICATIONS = "/api/serve/applications/"

NOT_STARTED = "NOT_STARTED"
"""Serve's status of an application before its controller knows it."""


class StatusUnknown(Exception):
    """The dashboard does not answer (yet), or not as expected."""


class ReplicaDetails(msgspec.Struct, frozen=True):
    """One replica. Without `pid`, `node_id`, `node_ip` and `actor_id` until its actor runs."""

    replica_id: str = ""
    state: str = ""
    pid: int | None = None
    node_id: str | None = None
    node_ip: str | None = None
    actor_id: str | None = None


class DeploymentDetails(msgspec.Struct, frozen=True):
    """One deployment: its status in Serve's words, its replicas, and its configuration as Serve holds it."""

    status: str = ""
    message: str | None = None
    replicas: tuple[ReplicaDetails, ...] = ()
    target_num_replicas: int | None = None
    deployment_config: dict[str, Any] | None = None


class ApplicationDetails(msgspec.Struct, frozen=True):
    """One application. `deployed_app_config` is None where it was not deployed from a configuration."""

    status: str = NOT_STARTED
    message: str | None = None
    deployments: dict[str, DeploymentDetails] = {}
    deployed_app_config: dict[str, Any] | None = None


class ServeDetails(msgspec.Struct, frozen=True):
    """All applications, and the options of the Serve instance that a redeployment must repeat."""

    applications: dict[str, ApplicationDetails] = {}
    proxy_location: str | None = None
    http_options: dict[str, Any] | None = None
    grpc_options: dict[str, Any] | None = None
    target_capacity: float | None = None


_DECODER = msgspec.json.Decoder(ServeDetails)


def decode(body: bytes) -> ServeDetails:
    """The answer of `GET /api/serve/applications/`. Raises `StatusUnknown`."""
    try:
        return _DECODER.decode(body)
    except msgspec.DecodeError as error:
        raise StatusUnknown(f"unexpected answer of Serve's API: {error}") from error


def fetch(dashboard: str, timeout_s: float) -> ServeDetails:
    """All applications now. Raises `StatusUnknown`."""
    return decode(request(dashboard, APPLICATIONS, timeout_s))


def request(dashboard: str, path: str, timeout_s: float, put: bytes | None = None) -> bytes:
    """The dashboard's answer, asked with Ray's token where there is one. Raises `StatusUnknown`."""
    asked = urllib.request.Request(f"{dashboard}{path}", data=put, method="GET" if put is None else "PUT")  # noqa: S310  # our own dashboard, over http
    if put is not None:
        asked.add_header("Content-Type", "application/json")
    token = auth_token()
    if token:
        asked.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(asked, timeout=timeout_s) as answer:  # noqa: S310  # the same
            body: bytes = answer.read()
    except urllib.error.HTTPError as error:
        raise StatusUnknown(f"{error}: {error.read(2000).decode(errors='replace')}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise StatusUnknown(str(error)) from error
    return body


def auth_token() -> str | None:
    """The token that guards Ray's dashboard, from where Ray itself looks for it."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return os.environ["RAY_AUTH_TOKEN"]
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))
    return file.read_text(encoding="utf-8").strip() if file.is_file() else None
