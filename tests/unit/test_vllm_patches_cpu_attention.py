"""PyTorch's flash kernel for long chunks gives what vLLM's kernel gives, whatever else is in the batch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from serve_app.vllm_patches.cpu_attention import KEPT, Chunk, attend_long_contexts, long_chunks

pytestmark = pytest.mark.slow  # torch and vLLM are imported: ten seconds

HEADS, KV_HEADS, HEAD_SIZE, BLOCK_SIZE = 4, 2, 64, 32


def test_long_chunks_are_found_by_what_they_have_to_look_back_on() -> None:
    starts = [0, 1, 301, 365, 2413]
    lens = [90_000, 300, 10_000, 2048]
    assert long_chunks(starts, lens) == (Chunk(2, 301, 365, 10_000), Chunk(3, 365, 2413, 2048))


def attention() -> Any:
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl

    impl = CPUAttentionBackendImpl.__new__(CPUAttentionBackendImpl)
    vars(impl).update(
        scale=HEAD_SIZE**-0.5, sliding_window=-1, attn_type="decoder", alibi_slopes=None, sinks=None,
        logits_soft_cap=0, is_fp8_kv_cache=False, kv_cache_dtype="auto", use_zentorch_sdpa=False,
    )  # fmt: skip
    return impl


def batch(counts: list[int], lens: list[int], dtype: Any) -> tuple[Any, Any, Any]:
    """Queries, a filled cache and vLLM's metadata of requests with `counts` new tokens of `lens` in all."""
    import torch
    from vllm import _custom_ops as ops
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionMetadata

    current_platform.import_kernels()
    torch.manual_seed(0)
    blocks = [-(-length // BLOCK_SIZE) for length in lens]
    order = torch.randperm(sum(blocks)).to(torch.int32)
    table = torch.zeros(len(lens), max(blocks), dtype=torch.int32)
    cache = torch.zeros(sum(blocks), KV_HEADS, BLOCK_SIZE, 2 * HEAD_SIZE, dtype=dtype)
    view = cache.view(len(cache), KV_HEADS, 2 * BLOCK_SIZE, -1)
    key_cache, value_cache = view.chunk(2, dim=2)
    for row, (length, count) in enumerate(zip(lens, blocks, strict=True)):
        own = order[sum(blocks[:row]) :][:count]
        table[row, :count] = own
        places = torch.arange(length)
        slots = own[places // BLOCK_SIZE].long() * BLOCK_SIZE + places % BLOCK_SIZE
        keys, values = (torch.randn(length, KV_HEADS, HEAD_SIZE).to(dtype) for _ in range(2))
        ops.cpu_attn_reshape_and_cache(
            keys, values, key_cache, value_cache, slots, "vec", k_scale=1.0, v_scale=1.0, kv_cache_dtype="auto"
        )
    starts = torch.tensor([0, *counts]).cumsum(0).to(torch.int32)
    seq_lens = torch.tensor(lens, dtype=torch.int32)
    scheduled = ops.cpu_attn_get_scheduler_metadata(
        num_reqs=len(lens), num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=HEAD_SIZE, seq_lens=seq_lens,
        dtype=dtype, query_start_loc=starts, causal=True, sliding_window_size=-1, isa="vec", enable_kv_split=True,
        dynamic_causal=None, kv_cache_dtype="auto",
    )  # fmt: skip
    metadata = CPUAttentionMetadata(
        num_actual_tokens=sum(counts), max_query_len=max(counts), query_start_loc=starts, max_seq_len=max(lens),
        seq_lens=seq_lens, block_table=table, slot_mapping=torch.zeros(0), scheduler_metadata=scheduled,
    )  # fmt: skip
    return torch.randn(sum(counts), HEADS, HEAD_SIZE).to(dtype), cache, metadata


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("counts", "lens"),
    [
        ([1024], [1024]),
        ([512], [5000]),
        ([1, 512, 1, 3], [40, 5003, 7000, 33]),
        ([300, 200, 512, 1], [3000, 200, 2048, 90]),
    ],
)
def test_the_flash_kernel_gives_what_vllms_gives(counts: list[int], lens: list[int], dtype: str) -> None:
    import torch
    from vllm.v1.attention.backends import cpu_attn

    kind = getattr(torch, dtype)
    query, cache, metadata = batch(counts, lens, kind)
    layer = SimpleNamespace(isa="vec", _k_scale_float=1.0, _v_scale_float=1.0)
    original = cpu_attn.CPUAttentionBackendImpl.forward
    original = getattr(original, "__wrapped__", original)
    rows_seen = []

    def watched(self: Any, layer: Any, query: Any, *more: Any) -> Any:
        rows_seen.append(len(query))
        return original(self, layer, query, *more)

    expected, found = torch.empty_like(query), torch.zeros_like(query)
    new = torch.zeros(len(query), KV_HEADS, HEAD_SIZE)  # in the cache already: a first chunk reads it from there
    original(attention(), layer, query, None, None, cache, metadata, expected)
    attend_long_contexts(watched, cpu_attn)(attention(), layer, query, new, new, cache, metadata, found)
    starts = metadata.query_start_loc.tolist()
    taken = sum(chunk.stop - chunk.start for chunk in long_chunks(starts, lens))
    assert taken, "no long chunk: nothing was compared"
    assert sum(rows_seen) == sum(counts) - taken
    rtol, atol = (2e-2, 1e-2) if dtype == "bfloat16" else (1e-4, 1e-5)
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("between", ["nothing", "a step without it"])
def test_a_chunk_goes_on_with_the_context_of_the_step_before(between: str) -> None:
    import torch
    from vllm.v1.attention.backends import cpu_attn

    layer = SimpleNamespace(isa="vec", _k_scale_float=1.0, _v_scale_float=1.0)
    original = cpu_attn.CPUAttentionBackendImpl.forward
    original = getattr(original, "__wrapped__", original)
    counts, lens = [1, 512, 100], [40, 5003, 9000]
    query, cache, metadata = batch(counts, lens, torch.float32)
    whole = cache.view(len(cache), KV_HEADS, 2 * BLOCK_SIZE, HEAD_SIZE)

    def stored(row: int, place: int) -> Any:
        block = whole[metadata.block_table[row, place // BLOCK_SIZE]]
        column = block[:, :BLOCK_SIZE].reshape(KV_HEADS, HEAD_SIZE, BLOCK_SIZE)[:, :, place % BLOCK_SIZE]
        return column, block[:, BLOCK_SIZE + place % BLOCK_SIZE]

    rows = [(row, length - count + at) for row, (count, length) in enumerate(zip(counts, lens, strict=True))
            for at in range(count)]  # fmt: skip
    keys, values = (torch.stack(part) for part in zip(*(stored(*row) for row in rows), strict=True))
    impl, expected, found = attention(), torch.empty_like(query), torch.zeros_like(query)
    forward = attend_long_contexts(original, cpu_attn)
    original(attention(), layer, query, keys, values, cache, metadata, expected)
    _, _, before = batch([1, 1000, 300], [39, 4491, 8900], torch.float32)
    before.block_table = metadata.block_table
    earlier = torch.randn(1301, HEADS, HEAD_SIZE)
    forward(impl, layer, earlier, earlier[:, :2], earlier[:, :2], cache, before, torch.empty_like(earlier))
    contexts = list(vars(impl)[KEPT])
    if between != "nothing":
        forward(impl, layer, earlier, earlier[:, :2], earlier[:, :2], cache, None, torch.empty_like(earlier))
    forward(impl, layer, query, keys, values, cache, metadata, found)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    went_on = [context in contexts for context in vars(impl)[KEPT]]
    assert went_on == [between == "nothing"] * 2
