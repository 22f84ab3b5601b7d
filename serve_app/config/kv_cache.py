"""vLLM's own arithmetic of a KV cache of full and sliding layers, without vLLM: it predicts this log line.

    GPU KV cache size: N tokens, Maximum concurrency for L tokens per request: C x

The layers are cut into groups of as many as there are full ones, each with its own table of blocks; all groups draw
blocks from one pool, and a block holds 16 tokens of one layer for each position in a group. So a request holds blocks
for its whole length in the full group, and in each sliding group for its window. What vLLM calls the size is the
longest request times how many of them fit; it counts each of them during its prefill, when the window is wider by the
tokens in flight (`vllm/v1/core/kv_cache_utils.py`; tests/unit/test_kv_cache.py compares both).
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, replace

BLOCK_TOKENS = 16
"""vLLM's block size; FlashAttention and FlashInfer both take it."""


@dataclass(frozen=True)
class CacheShape:
    """What one GPU's cache depends on. `page_bytes` is one layer's share of a block there."""

    full_layers: int
    sliding_layers: int
    window: int
    page_bytes: int
    batched_tokens: int
    """`max-num-batched-tokens`."""
    drafts: int
    """Draft tokens of MTP; 0 without."""
    stages: int = 1
    """Pipeline stages, which share the layers of each group."""

    def group_layers(self) -> int:
        """Layers of a group, padding included."""
        few, many = sorted((self.full_layers, self.sliding_layers))
        return many if not few or many < 1.5 * few else few

    def sliding_groups(self) -> int:
        """Groups of sliding layers."""
        return _ceil(self.sliding_layers, self.group_layers())

    def block_bytes(self) -> int:
        """Bytes of a block on one GPU."""
        return _ceil(self.group_layers(), self.stages) * self.page_bytes

    def request_blocks(self, tokens: int, in_flight: int = 0) -> int:
        """Blocks of a request of that length. `in_flight`: tokens of its prompt that are being computed."""
        full = _ceil(self.full_layers, self.group_layers()) * _ceil(tokens, BLOCK_TOKENS)
        kept = min(self.window - 1 + max(0, self.drafts - 1) + in_flight, tokens)
        return full + self.sliding_groups() * (_ceil(kept, BLOCK_TOKENS) + 1)

    def in_flight_tokens(self) -> int:
        """Tokens that are scheduled ahead: a batch for each pipeline stage, and one more."""
        return (self.stages + 1) * self.batched_tokens


@dataclass(frozen=True)
class CacheSize:
    """A pool of blocks, and vLLM's figures for it."""

    shape: CacheShape
    blocks: int
    longest: int
    """`max-model-len`."""

    def concurrency(self) -> float:
        """`Maximum concurrency for ... tokens per request`."""
        return self.blocks / self.shape.request_blocks(self.longest, self.shape.in_flight_tokens())

    def tokens(self) -> int:
        """`GPU KV cache size`."""
        return int(self.concurrency() * self.longest)

    def holds_longest(self) -> bool:
        """Whether vLLM starts with it: one request of the full length must fit beside the block that it never
        allocates."""
        return self.blocks > self.shape.request_blocks(self.longest, self.shape.in_flight_tokens())

    def shortened(self) -> CacheSize:
        """The size with the longest request that fits, as vLLM computes it for `max-model-len: auto`; length 0 where
        none does."""
        if self.holds_longest():
            return self
        fits = bisect.bisect_left(range(self.longest + 1), True, key=lambda tokens: not self._holds(tokens))
        return replace(self, longest=max(0, fits - 1))

    def _holds(self, tokens: int) -> bool:
        return replace(self, longest=tokens).holds_longest()

    def sessions(self, tokens: int) -> int:
        """How many requests of that length are held at a time, between their steps."""
        return self.blocks // self.shape.request_blocks(tokens)


def cache_size(shape: CacheShape, available_bytes: float, longest: int) -> CacheSize:
    """The pool that fits into what one GPU has left."""
    return CacheSize(shape, max(0, int(available_bytes)) // shape.block_bytes(), longest)


def _ceil(value: int, parts: int) -> int:
    return -(-value // parts)
