"""What would have to be computed again elsewhere if this replica were stopped: pure, by its requests and sessions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable

SESSION_MEMORY_S = 600.0
"""An agent calls again within minutes: its tools and its user take that long. Later, its prompt counts as lost."""


ACTIVE_S = 180.0
"""Of a session that has not asked for so long the cache may go to others: those that ask more often keep theirs, for
what was used longest ago goes first."""


class SessionTokens:
    """Tokens of requests that run, and of sessions whose last request ended a short while ago.

    Those that ended count while they fit the cache, of `cache_tokens` (0: it is not known how many fit). `now_s` is the
    caller's clock.
    """

    def __init__(self, cache_tokens: int) -> None:
        self._cache_tokens = cache_tokens
        self._running: Counter[Hashable] = Counter()
        self._ended: dict[Hashable, tuple[float, int]] = {}

    def enter(self, session: Hashable) -> None:
        """A request of this session runs."""
        self._running[session] += 1

    def leave(self, session: Hashable, tokens: int, now_s: float) -> None:
        """It has ended with so many tokens, prompt and answer. One without a session (None) is nobody's to continue."""
        self._running[session] -= 1
        if not self._running[session]:
            del self._running[session]
        if session is None or not tokens:
            return
        _, before = self._ended.pop(session, (0.0, 0))
        # A child agent's prompt is shorter than its session's, and does not drop it from the cache.
        self._ended[session] = (now_s, max(before, tokens))
        self._forget(now_s)

    def lost(self, running_tokens: int, now_s: float) -> int:
        """All tokens, with those of the requests that run."""
        self._forget(now_s)
        cached = sum(tokens for session, (_, tokens) in self._ended.items() if session not in self._running)
        return running_tokens + (min(cached, self._cache_tokens) if self._cache_tokens else cached)

    def active(self, running_tokens: int, now_s: float) -> int:
        """What a cache should hold: of requests that run, and of sessions that asked lately, whether there is room or
        not."""
        since_s = now_s - ACTIVE_S
        ended = self._ended.items()
        return running_tokens + sum(
            tokens for session, (at_s, tokens) in ended if at_s > since_s and session not in self._running
        )

    def _forget(self, now_s: float) -> None:
        """What is too old. What was last used is at the end."""
        while self._ended:
            oldest = next(iter(self._ended))
            if self._ended[oldest][0] + SESSION_MEMORY_S > now_s:
                return
            del self._ended[oldest]
