"""Whose requests an engine's time goes to: each step's duration, divided among the clients that it worked for.

A step that only decodes serves its sequences alike, so each gets the same part. What it takes longer because it
computes prompts (`stalls.py`) goes to those prompts: by their tokens to those that are complete with this step, else to
the oldest one, which an engine computes first. All of the time from the first request to the last one's end is given to
somebody, so the sum over clients is the whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping


class GpuTime:
    """Seconds of one engine by client. Times are stamps of one clock."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._since_s: float | None = None

    def begin(self, now_s: float) -> None:
        """The engine, which had nothing to do, got work."""
        if self._since_s is None:
            self._since_s = now_s

    def step(
        self,
        now_s: float,
        stall_s: float,
        decoding: Mapping[str, int],
        computed: Iterable[tuple[str, int]],
        oldest: str,
    ) -> None:
        """A step has ended. Of its time, `stall_s` came from prompts; `decoding` says how many sequences of each client
        had a token before it, `computed` those of the prompts that are complete with it, and how many tokens each was;
        `oldest` is the client of the oldest prompt that is not."""
        if self._since_s is None:
            return
        step_s, self._since_s = max(now_s - self._since_s, 0.0), now_s
        prompts = list(computed)
        if not decoding:
            stall_s = step_s
        elif not prompts and not oldest:
            stall_s = 0.0
        stall_s = min(stall_s, step_s)
        sequences = sum(decoding.values())
        for client, count in decoding.items():
            self._add(client, (step_s - stall_s) * count / sequences)
        if prompts:
            tokens = sum(max(count, 1) for _, count in prompts)
            for client, count in prompts:
                self._add(client, stall_s * max(count, 1) / tokens)
        else:
            self._add(oldest, stall_s)

    def end(self, now_s: float, last: str) -> None:
        """The engine has nothing to do any more; `last` is the client of what it worked for."""
        since_s, self._since_s = self._since_s, None
        if since_s is not None:
            self._add(last, max(now_s - since_s, 0.0))

    def totals(self) -> dict[str, float]:
        """The seconds by client so far."""
        return dict(self._seconds)

    def _add(self, client: str, seconds: float) -> None:
        if seconds > 0:
            self._seconds[client] = self._seconds.get(client, 0.0) + seconds
