"""Attention over long contexts on a CPU without matrix extensions, with PyTorch's flash kernel.

vLLM's kernel for AVX2 reaches 27 GFLOPS on a core (Zen 3, measured), PyTorch's flash attention in single precision 65.
Where a chunk of a prompt attends to a long context, nearly all of a step is that. So such a chunk is taken out of the
batch: its keys and values are gathered from the cache, its attention to earlier tokens and to itself are computed
separately (the flash kernel's causal mask starts at the first key) and combined by their log-sum-exp. All other
requests of the step go to vLLM's kernel as before.

The gathered context is kept from one step to the next, where the following chunk extends it: to gather 80,000 tokens
takes longer than to attend to them with 64. Between two steps in which a request has a chunk each, its blocks cannot
become another request's, so it is enough to check that the chunk follows what is kept. A context that a step does not
continue is dropped.

It runs on all cores that the process may use, whatever the number of OpenMP threads is otherwise: a decode step is too
small for more than one, and such a chunk has nothing that waits for another thread.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

from serve_app.vllm_patches.patching import Function, PatchTarget

FORWARD: Final = PatchTarget(
    "vllm.v1.attention.backends.cpu_attn",
    "CPUAttentionBackendImpl",
    "forward",
    ("layer", "query", "key", "value", "kv_cache", "attn_metadata", "output"),
)

KERNEL_LAYOUT: Final = "vec"
"""vLLM's kernel whose cache is read here: keys of a block as (head size, tokens), values as (tokens, head size)."""

MIN_PRODUCTS: Final = 1 << 19
"""Query times key tokens from which gathering costs less than it saves: 256 tokens that attend to 2,048."""

LEAST_QUERY_TOKENS: Final = 16

KEPT: Final = "_step_serve_contexts"
"""Where an attention layer keeps the contexts of its last step."""


@dataclass(frozen=True)
class Chunk:
    """A request's share of a step: rows `start` to `stop`, the last of the `seq_len` tokens of its context."""

    index: int
    start: int
    stop: int
    seq_len: int


@dataclass(frozen=True)
class Split:
    """A step's batch, split: chunks for the flash kernel, and the rows and vLLM's metadata of all others."""

    chunks: tuple[Chunk, ...]
    other_rows: Any
    others: Any


@dataclass(eq=False)
class Context:
    """Keys and values of the first `length` tokens in these blocks, in single precision: (1, KV heads, room, size)."""

    blocks: Any
    length: int
    keys: Any
    values: Any

    def append(self, keys: Any, values: Any) -> None:
        """Add new tokens, each (1, KV heads, tokens, size)."""
        stop = self.length + keys.shape[2]
        self.keys[:, :, self.length : stop] = keys
        self.values[:, :, self.length : stop] = values
        self.length = stop


def long_chunks(query_start_loc: Sequence[int], seq_lens: Sequence[int]) -> tuple[Chunk, ...]:
    """The chunks of a step that are worth the flash kernel."""
    found = []
    for index, seq_len in enumerate(seq_lens):
        start, stop = query_start_loc[index], query_start_loc[index + 1]
        count = stop - start
        if count >= LEAST_QUERY_TOKENS and count * seq_len >= MIN_PRODUCTS:
            found.append(Chunk(index, start, stop, seq_len))
    return tuple(found)


def attend_long_contexts(original: Function, cpu_attn: ModuleType) -> Function:
    """`CPUAttentionBackendImpl.forward`, with long chunks of plain causal attention taken out of the batch."""

    def forward(
        self: Any,
        layer: Any,
        query: Any,
        key: Any,
        value: Any,
        kv_cache: Any,
        attn_metadata: Any,
        output: Any,
        *more: Any,
        **others: Any,
    ) -> Any:
        def as_before(rows: Any = query, metadata: Any = attn_metadata, into: Any = output) -> Any:
            return original(self, layer, rows, key, value, kv_cache, metadata, into, *more, **others)

        earlier = self.__dict__.pop(KEPT, ())
        if attn_metadata is None or attn_metadata.max_query_len < LEAST_QUERY_TOKENS or not _is_plain(self, layer):
            return as_before()
        split = _split(self, layer, query, kv_cache, attn_metadata, cpu_attn)
        if not split.chunks:
            return as_before()
        with _threads(len(os.sched_getaffinity(0))):
            contexts = []
            for chunk in split.chunks:
                context = _context(earlier, key, value, kv_cache, attn_metadata.block_table[chunk.index], chunk)
                _attend(self.scale, query, context, output, chunk)
                contexts.append(context)
        setattr(self, KEPT, contexts)
        if split.others is not None:
            rows = query[split.other_rows]
            output[split.other_rows] = as_before(rows, split.others, rows.new_empty(rows.shape))
        return output

    return forward


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Run with this many PyTorch threads, and restore the previous number."""
    import torch

    before = torch.get_num_threads()
    # Not `torch.set_num_threads`, which vLLM's CPU worker has replaced by a warning.
    set_num_threads = torch._C.set_num_threads  # noqa: SLF001  # see above
    set_num_threads(count)
    try:
        yield
    finally:
        set_num_threads(before)


def _is_plain(attention: Any, layer: Any) -> bool:
    return bool(
        attention.sliding_window == -1
        and attention.attn_type == "decoder"
        and attention.alibi_slopes is None
        and attention.sinks is None
        and not attention.logits_soft_cap
        and not attention.is_fp8_kv_cache
        and layer.isa == KERNEL_LAYOUT
    )


def _split(attention: Any, layer: Any, query: Any, kv_cache: Any, metadata: Any, cpu_attn: ModuleType) -> Split:
    """How this step's batch is split. The layers of a group share their metadata, so it is cached there."""
    kept: Split | None = getattr(metadata, "_step_serve_split", None)
    if kept is not None:
        return kept
    plain = metadata.causal is True and metadata.dynamic_causal is None
    chunks = long_chunks(metadata.query_start_loc.tolist(), metadata.seq_lens.tolist()) if plain else ()
    rows = rest = None
    if chunks and len(chunks) < len(metadata.seq_lens):
        rows, rest = _others(attention, layer, query, kv_cache, metadata, chunks, cpu_attn)
    split = Split(chunks, rows, rest)
    metadata._step_serve_split = split  # noqa: SLF001  # a field of ours on vLLM's object
    return split


def _others(
    attention: Any, layer: Any, query: Any, kv_cache: Any, metadata: Any, chunks: Sequence[Chunk], cpu_attn: ModuleType
) -> tuple[Any, Any]:
    import copy

    import torch

    taken = {chunk.index for chunk in chunks}
    index = torch.tensor([one for one in range(len(metadata.seq_lens)) if one not in taken])
    starts = metadata.query_start_loc
    counts = (starts[1:] - starts[:-1])[index]
    rows = torch.cat([torch.arange(int(starts[one]), int(starts[one + 1])) for one in index])
    rest = copy.copy(metadata)
    rest.num_actual_tokens = len(rows)
    rest.max_query_len = int(counts.max())
    rest.query_start_loc = torch.cat([starts.new_zeros(1), counts.cumsum(0)]).to(starts.dtype)
    rest.seq_lens = metadata.seq_lens[index]
    rest.max_seq_len = int(rest.seq_lens.max())
    rest.block_table = metadata.block_table[index]
    rest.scheduler_metadata = cpu_attn.ops.cpu_attn_get_scheduler_metadata(
        num_reqs=len(index),
        num_heads=query.shape[1],
        num_kv_heads=kv_cache.shape[1],
        head_dim=query.shape[2],
        seq_lens=rest.seq_lens,
        dtype=query.dtype,
        query_start_loc=rest.query_start_loc,
        causal=True,
        sliding_window_size=-1,
        isa=layer.isa,
        enable_kv_split=cpu_attn.envs.VLLM_CPU_ATTN_SPLIT_KV,
        dynamic_causal=None,
        kv_cache_dtype=attention.kv_cache_dtype,
    )
    return rows, rest


def _attend(scale: float, query: Any, context: Context, output: Any, chunk: Chunk) -> None:
    """One chunk over its context: (earlier tokens, all seen) and (itself, causal), joined."""
    import torch

    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # noqa: SLF001  # the one that gives log-sum-exp
    keys, values = (part[:, :, : chunk.seq_len] for part in (context.keys, context.values))
    count = chunk.stop - chunk.start
    kv_heads, heads, size = keys.shape[1], query.shape[1], query.shape[2]
    rows = query[chunk.start : chunk.stop].float().transpose(0, 1).unsqueeze(0)
    before = chunk.seq_len - count
    shape = (1, kv_heads, heads // kv_heads, count, size)
    own_keys, own_values = (
        part[:, :, None, before:].expand(*shape).reshape(1, heads, count, size) for part in (keys, values)
    )
    own, own_lse = flash(rows, own_keys, own_values, 0.0, is_causal=True, scale=scale)
    if before:
        # The query heads of a group as further rows over the group's keys: these need not be repeated.
        folded = rows.reshape(1, kv_heads, -1, size)
        seen, seen_lse = flash(folded, keys[:, :, :before], values[:, :, :before], 0.0, is_causal=False, scale=scale)
        seen, seen_lse = seen.reshape(1, heads, count, size), seen_lse.reshape(1, heads, count)
        share = torch.sigmoid(own_lse - seen_lse).unsqueeze(-1)
        own = torch.lerp(seen, own, share)
    output[chunk.start : chunk.stop] = own[0].transpose(0, 1).to(output.dtype)


def _context(
    earlier: Sequence[Context], key: Any, value: Any, kv_cache: Any, block_table: Any, chunk: Chunk
) -> Context:
    """All that a chunk attends to, itself included: the context kept from the step before plus the chunk, or a new
    one."""
    import torch

    before = chunk.seq_len - (chunk.stop - chunk.start)
    block_size = kv_cache.shape[2]
    for context in earlier:
        if context.length == before and torch.equal(context.blocks, block_table[: len(context.blocks)]):
            new = (part[chunk.start : chunk.stop].transpose(0, 1).unsqueeze(0) for part in (key, value))
            context.append(*new)
            break
    else:
        keys, values = _gathered(kv_cache, block_table, chunk.seq_len)
        # Room for the longest prompt: pages that are not written to take no memory.
        shape = (1, keys.shape[1], block_table.shape[0] * block_size, keys.shape[3])
        context = Context(block_table[:0], 0, torch.empty(shape), torch.empty(shape))
        context.append(keys, values)
    # The block table is one buffer that the next step writes to.
    context.blocks = block_table[: -(-chunk.seq_len // block_size)].clone()
    return context


def _gathered(kv_cache: Any, block_table: Any, seq_len: int) -> tuple[Any, Any]:
    """A request's keys and values, each (1, KV heads, tokens, head size) in single precision."""
    _, kv_heads, block_size, both = kv_cache.shape
    size = both // 2
    count = -(-seq_len // block_size)
    # (blocks, heads, tokens of keys and of values, head size), as vLLM's kernel sees it.
    blocks = kv_cache.view(-1, kv_heads, 2 * block_size, size)[block_table[:count].long()]
    keys = blocks[:, :, :block_size].reshape(count, kv_heads, size, block_size).permute(1, 0, 3, 2)
    values = blocks[:, :, block_size:].permute(1, 0, 2, 3)
    keys, values = (part.reshape(1, kv_heads, count * block_size, size)[:, :, :seq_len] for part in (keys, values))
    return keys.float(), values.float()
