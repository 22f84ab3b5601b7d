"""What each key has used in the last hour, at one ingress: requests and tokens, by minute. Pure and bounded."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection, Iterable

import msgspec

MINUTES = 60

MAX_KEYS = 1000
"""The key that has been silent the longest goes first; a keys file of so many is rare."""


class KeyUsage(msgspec.Struct):
    """Requests that have ended, and their tokens. `key` is None where there are no keys."""

    key: str | None
    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0

    def add(self, other: KeyUsage) -> None:
        """Count the other's as well."""
        self.requests += other.requests
        self.prompt_tokens += other.prompt_tokens
        self.cached_tokens += other.cached_tokens
        self.output_tokens += other.output_tokens


class UsageLog:
    """The last hour by key. A request counts in the minute in which it ends."""

    def __init__(self) -> None:
        self._minutes: OrderedDict[str | None, deque[tuple[int, KeyUsage]]] = OrderedDict()

    def add(self, usage: KeyUsage, ended_unix_s: float) -> None:
        """A request has ended."""
        minute = int(ended_unix_s) // 60
        minutes = self._minutes.setdefault(usage.key, deque(maxlen=MINUTES))
        self._minutes.move_to_end(usage.key)
        if not minutes or minutes[-1][0] < minute:
            minutes.append((minute, KeyUsage(usage.key)))
        minutes[-1][1].add(usage)
        if len(self._minutes) > MAX_KEYS:
            self._minutes.popitem(last=False)

    def last_hour(self, now_unix_s: float, only: Collection[str | None] | None = None) -> list[KeyUsage]:
        """The sums of each key, or of each of `only`, that has used anything."""
        since = int(now_unix_s) // 60 - MINUTES
        keys = self._minutes if only is None else [key for key in only if key in self._minutes]
        return summed(usage for key in keys for minute, usage in self._minutes[key] if minute > since)


def summed(usages: Iterable[KeyUsage]) -> list[KeyUsage]:
    """One entry for each key, those with the most tokens first."""
    sums: dict[str | None, KeyUsage] = {}
    for usage in usages:
        sums.setdefault(usage.key, KeyUsage(usage.key)).add(usage)
    return sorted(sums.values(), key=lambda one: one.prompt_tokens + one.output_tokens, reverse=True)
