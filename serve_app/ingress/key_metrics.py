"""What each API key used: requests by result, and tokens.

The label `key` is bounded (`protocol/key_labels.py`). Without a keys file there is nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from ray.serve import metrics

from serve_app.protocol.errors import Outcome
from serve_app.protocol.key_labels import MAX_KEYS, KeyLabels


class Result(StrEnum):
    """`Outcome`, for the owner of a key."""

    OK = "ok"
    REFUSED = "refused"
    """The client asked too much, or the wrong thing (4xx)."""
    FAILED = "failed"
    """The server could not answer (5xx)."""
    CANCELLED = "cancelled"


RESULTS = {
    Outcome.OK: Result.OK,
    Outcome.CANCELLED: Result.CANCELLED,
    Outcome.NO_REPLICA: Result.FAILED,
    Outcome.POISON: Result.FAILED,
    Outcome.SERVER_ERROR: Result.FAILED,
}
"""All others are refusals."""


class KeyMetrics:
    """Counts what keys use at one ingress."""

    def __init__(self, max_keys: int = MAX_KEYS) -> None:
        self._labels = KeyLabels(max_keys)
        self._requests = metrics.Counter(
            "step_key_requests",
            description="Requests of a key, by result: ok, refused (4xx), failed (5xx), cancelled.",
            tag_keys=("key", "result"),
        )
        self._tokens = metrics.Counter(
            "step_key_tokens",
            description="Tokens of a key: prompt, cached (of the prompt), output.",
            tag_keys=("key", "kind"),
        )

    def count(self, key_name: str | None, outcome: Outcome, tokens: Mapping[str, int]) -> None:
        """A request has ended. `key_name` is None where it had no valid key."""
        if key_name is None:
            return
        key = self._labels.label(key_name)
        self._requests.inc(tags={"key": key, "result": RESULTS.get(outcome, Result.REFUSED).value})
        for kind, count in tokens.items():
            if count:
                self._tokens.inc(count, tags={"key": key, "kind": kind})
