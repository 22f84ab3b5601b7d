"""What each API key used: requests by result, and tokens.

The label `key` is a name of `ingress.keys_file`, which the operator writes, and only of so many of them: an ingress
gives the first `MAX_KEYS` that it sees a series of their own and adds up the rest as `other`. (A key of that name is
added to them.) Without a keys file there is nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from ray.serve import metrics

from serve_app.protocol.errors import Outcome

MAX_KEYS = 200
"""Seven series each, of each ingress."""

OTHER = "other"


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
        self._max_keys = max_keys
        self._known: set[str] = set()
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
        key = self._label(key_name)
        self._requests.inc(tags={"key": key, "result": RESULTS.get(outcome, Result.REFUSED).value})
        for kind, count in tokens.items():
            if count:
                self._tokens.inc(count, tags={"key": key, "kind": kind})

    def _label(self, key_name: str) -> str:
        if key_name not in self._known:
            if len(self._known) >= self._max_keys:
                return OTHER
            self._known.add(key_name)
        return key_name
