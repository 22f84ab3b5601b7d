"""The partial outputs of broken streams, kept for a while by the replica that produced them.

A stream may lose its client's connection or its whole ingress. Its attempt is aborted, so that it holds no slot; its
tokens are small, and are kept. A client that sends the same request again, with the same key and the broken request's
id (`x-resume-request-id`), gets them at once, and the answer continues from there
(`docs/decisions/0004-when-an-ingress-dies.md`).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

KEEP_S = 600.0
"""A client that comes back later than this has most likely given up."""

MAX_TOKENS = 4_000_000
"""16 MB in one replica: all output of ten minutes at the published rates."""


class PartialOutputs:
    """Token ids by resume key, for `keep_s`, `max_tokens` in all; the oldest go first. `now_s` is the caller's
    clock."""

    def __init__(self, keep_s: float = KEEP_S, max_tokens: int = MAX_TOKENS) -> None:
        self._keep_s = keep_s
        self._max_tokens = max_tokens
        self._kept: dict[str, tuple[float, array[int]]] = {}
        self._tokens = 0

    def keep(self, resume_key: str, token_ids: Sequence[int], now_s: float) -> None:
        """Keep these tokens, in place of what the key had."""
        self._drop(resume_key)
        self._kept[resume_key] = (now_s + self._keep_s, array("i", token_ids))
        self._tokens += len(token_ids)
        self._forget_old(now_s)

    def find(self, resume_key: str, now_s: float) -> list[int]:
        """The tokens of the key; empty if there are none. They stay: the stream that continues them may break, too."""
        self._forget_old(now_s)
        kept = self._kept.get(resume_key)
        return list(kept[1]) if kept is not None else []

    def _forget_old(self, now_s: float) -> None:
        while self._kept:
            oldest = next(iter(self._kept))
            if self._kept[oldest][0] > now_s and self._tokens <= self._max_tokens:
                return
            self._drop(oldest)

    def _drop(self, resume_key: str) -> None:
        kept = self._kept.pop(resume_key, None)
        if kept is not None:
            self._tokens -= len(kept[1])
