"""Counts the engine replicas of a running service by Serve's API, and how long each took to start."""

from __future__ import annotations

import contextlib
import threading
import time
from types import TracebackType
from typing import Self

from serve_app.cli import serve_api

POLL_S = 0.25


class ReplicaWatch:
    """Use as a context manager: it looks while the block runs."""

    def __init__(self, dashboard: str) -> None:
        self._dashboard = dashboard
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._counts: list[tuple[float, int]] = []
        self._first_seen: dict[str, float] = {}
        self._running_s: dict[str, float] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def replica_s(self, begin_s: float, end_s: float) -> float:
        """Replica-seconds between two unix times; those that start or stop count, too."""
        total_s = 0.0
        for (at_s, number), (next_s, _) in zip(self._counts, self._counts[1:], strict=False):
            total_s += number * max(min(next_s, end_s) - max(at_s, begin_s), 0.0)
        return total_s

    def starts_s(self) -> list[float]:
        """How long each replica took that was seen to start."""
        begun = self._counts[0][0] if self._counts else 0.0
        return [
            self._running_s[name] - seen_s
            for name, seen_s in self._first_seen.items()
            if name in self._running_s and seen_s > begun
        ]

    def changes(self) -> list[tuple[float, int]]:
        """When the number of replicas changed, in unix time, and to what."""
        found: list[tuple[float, int]] = []
        for at_s, number in self._counts:
            if not found or found[-1][1] != number:
                found.append((at_s, number))
        return found

    def _watch(self) -> None:
        while not self._stop.wait(POLL_S):
            with contextlib.suppress(serve_api.StatusUnknown):
                details = serve_api.fetch(self._dashboard, 5.0)
                self._note(details, time.time())

    def _note(self, details: serve_api.ServeDetails, now_s: float) -> None:
        replicas = [
            one
            for application in details.applications.values()
            if "engine" in application.deployments
            for one in application.deployments["engine"].replicas
        ]
        self._counts.append((now_s, len(replicas)))
        for one in replicas:
            self._first_seen.setdefault(one.replica_id, now_s)
            if one.state == "RUNNING":
                self._running_s.setdefault(one.replica_id, now_s)
