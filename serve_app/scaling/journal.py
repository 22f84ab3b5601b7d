"""The last changes of a deployment's target with their reasons, in Ray's key-value store.

Serve 2.60 keeps no reasons, and its controller answers no questions about a policy. Serve's own checkpoint, which it
writes with every change of a target, is in the same store.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

KEPT = 50

NAMESPACE = b"step_serve"


@dataclass(frozen=True)
class ScaleChange:
    """A target was changed by a policy at `at_unix_s`."""

    at_unix_s: float
    before: int
    after: int
    reason: str


class ScaleJournal:
    """The journal of one deployment. A call takes as long as Ray's head takes to answer: some milliseconds."""

    def __init__(self, application: str, deployment: str) -> None:
        self._key = f"scale_journal:{application}:{deployment}".encode()

    def add(self, at_unix_s: float, before: int, after: int, reason: str) -> None:
        """A change, after those that are there. There is one writer: the controller."""
        change = {"at_unix_s": at_unix_s, "before": before, "after": after, "reason": reason}
        kept = [*self._read(), change][-KEPT:]
        _internal_kv_put(self._key, json.dumps(kept).encode(), overwrite=True, namespace=NAMESPACE)

    def changes(self) -> list[ScaleChange]:
        """Those that are there, the oldest first."""
        return [
            ScaleChange(float(one["at_unix_s"]), int(one["before"]), int(one["after"]), str(one["reason"]))
            for one in self._read()
        ]

    def _read(self) -> list[dict[str, Any]]:
        data = _internal_kv_get(self._key, namespace=NAMESPACE)
        found: list[dict[str, Any]] = json.loads(data) if data else []
        return found
