"""The label `key` of metrics: names of `ingress.keys_file`, which the operator writes, and only of so many of them."""

from __future__ import annotations

MAX_KEYS = 200
"""A process gives the first that it sees series of their own."""

OTHER = "other"
"""The label of those that come later. (A key of that name is added to them.)"""

NO_KEY = "none"
"""The label of requests without a key, where none are asked for."""


class KeyLabels:
    """The labels that one process has given out."""

    def __init__(self, max_keys: int = MAX_KEYS) -> None:
        self._max_keys = max_keys
        self._known: set[str] = set()

    def label(self, key_name: str) -> str:
        """The label of a key, by its name; `NO_KEY` for the empty name."""
        if not key_name:
            return NO_KEY
        if key_name not in self._known:
            if len(self._known) >= self._max_keys:
                return OTHER
            self._known.add(key_name)
        return key_name
