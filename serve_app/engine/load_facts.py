"""What a replica measures of its engine's load from outside: prompts that wait, and how fast they are computed.

The rate is the tokens that were computed, divided by the time in which prompts could be: while one waits for its first
token and the engine has a slot for it. Time without one does not count. What is measured goes in once it is
`SAMPLE_TOKENS` long: a prompt of ten tokens takes a step all the same, and says nothing about one of 100,000.
"""

from __future__ import annotations

import math

SAMPLE_TOKENS = 1024
"""A step costs some 10 ms whatever it computes, and so many tokens 30 ms or more: the error stays bearable."""

MEMORY_TOKENS = 200_000
"""The memory of the rate: a few long prompts. Counted in tokens, not in time: what was measured before a quiet night is
still the best estimate in the morning."""

MOST_PROGRESS = 0.9
"""Of the oldest prompt, so much counts as computed at most while its first token is not there."""

RECENT_S = 60.0


class PrefillQueue:
    """Attempts without a first token, and the rate at which their prompts are computed.

    Call `enter`, perhaps `first_token`, and `leave` for each attempt. `slots` attempts run at a time. All times are
    stamps of one clock, in seconds.
    """

    def __init__(self, slots: int, now_s: float) -> None:
        self._slots = slots
        self._waiting: dict[str, int] = {}
        self._waiting_tokens = 0
        self._decoding = 0
        self._since_s = now_s
        self._progress_s = 0.0
        """Time of prefill since the last first token."""
        self._window = (0, 0.0)
        """Tokens, and seconds of prefill, that are not in the rate yet."""
        self._measured = (0.0, 0.0)
        self._guessed = (0.0, 0.0)
        """The same from prompts that are too short, for as long as there is nothing better."""

    def enter(self, attempt_id: str, tokens: int, now_s: float) -> None:
        """An attempt has arrived; so many of its tokens are not cached, as far as is known."""
        self._run_until(now_s)
        self._waiting[attempt_id] = tokens
        self._waiting_tokens += tokens

    def first_token(self, attempt_id: str, computed_tokens: int, now_s: float) -> None:
        """Its first token is here; so many tokens were computed before."""
        self._run_until(now_s)
        self._waiting_tokens -= self._waiting.pop(attempt_id)
        self._decoding += 1
        self._progress_s = 0.0
        tokens, seconds = self._window
        self._window = (tokens + computed_tokens, seconds)
        # Prompts that end in one step have shared its time.
        if tokens + computed_tokens >= SAMPLE_TOKENS or not seconds:
            self._measured = _decayed(self._measured, *self._window)
            self._window = (0, 0.0)
        elif not self._waiting:
            self._guessed = _decayed(self._guessed, *self._window)
            self._window = (0, 0.0)

    def leave(self, attempt_id: str, now_s: float) -> None:
        """An attempt has left. What was computed for one that had no first token is not known: it is not measured."""
        self._run_until(now_s)
        if attempt_id not in self._waiting:
            self._decoding -= 1
            return
        if attempt_id == next(iter(self._waiting)):
            self._progress_s = 0.0
            self._window = (0, 0.0)
        self._waiting_tokens -= self._waiting.pop(attempt_id)

    @property
    def oldest(self) -> str | None:
        """The attempt that has waited longest for its first token, if one does."""
        return next(iter(self._waiting), None)

    @property
    def prefilling(self) -> int:
        """How many attempts have no token yet."""
        return len(self._waiting)

    @property
    def decoding(self) -> int:
        """How many attempts have one."""
        return self._decoding

    @property
    def tokens_per_s(self) -> float | None:
        """The rate; None if nothing has been measured."""
        for tokens, seconds in (self._measured, self._guessed):
            if seconds > 0 and tokens > 0:
                return tokens / seconds
        return None

    def queued_tokens(self, now_s: float) -> int:
        """How many tokens are still to be computed, less what has been of the oldest prompt by the rate."""
        self._run_until(now_s)
        oldest = next(iter(self._waiting.values()), 0)
        done = min(self._progress_s * (self.tokens_per_s or 0.0), MOST_PROGRESS * oldest)
        return self._waiting_tokens - int(done)

    def _run_until(self, now_s: float) -> None:
        if self._waiting and self._decoding < self._slots:
            passed_s = now_s - self._since_s
            self._progress_s += passed_s
            self._window = (self._window[0], self._window[1] + passed_s)
        self._since_s = now_s


def _decayed(sums: tuple[float, float], tokens: int, seconds: float) -> tuple[float, float]:
    keep = math.exp(-tokens / MEMORY_TOKENS)
    return sums[0] * keep + tokens, sums[1] * keep + seconds


class RecentRatio:
    """The ratio of two sums, of which older parts count for less: after `memory` more of the denominator, a third."""

    def __init__(self, memory: float) -> None:
        self._memory = memory
        self._sums = (0.0, 0.0)

    def add(self, numerator: float, denominator: float) -> None:
        """More of both."""
        keep = math.exp(-denominator / self._memory)
        self._sums = (self._sums[0] * keep + numerator, self._sums[1] * keep + denominator)

    @property
    def value(self) -> float | None:
        """The ratio; None while there is no denominator."""
        return self._sums[0] / self._sums[1] if self._sums[1] else None


class RecentMean:
    """The mean of a count over the last `RECENT_S`, weighted by time; what is older fades exponentially."""

    def __init__(self, now_s: float) -> None:
        self._count = 0
        self._since_s = now_s
        self._mean = 0.0

    def set(self, count: int, now_s: float) -> None:
        """It is `count` from now on."""
        self._mean = self.mean(now_s)
        self._since_s = now_s
        self._count = count

    def mean(self, now_s: float) -> float:
        """The mean now."""
        return self._count + (self._mean - self._count) * math.exp((self._since_s - now_s) / RECENT_S)
