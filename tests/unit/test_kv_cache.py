"""Our arithmetic of the KV cache is vLLM's, at the full model's shape."""

from __future__ import annotations

import importlib
import inspect
from types import SimpleNamespace
from typing import Any

import pytest

from serve_app.cli import plan
from serve_app.cli.check import CheckStatus
from serve_app.cli.config_checks import layout_checks, layout_of, shape_of
from serve_app.config import memory
from serve_app.config.kv_cache import CacheShape, cache_size
from serve_app.config.profile import load_config, profile_names

GIB = 1024**3
ON_GPUS = [name for name in profile_names() if load_config({"profile": name}, []).replicas.gpus_per_replica]
VLLMS_LINE = "%s KV cache size: %s tokens, Maximum concurrency for %s tokens per request: %.2fx"
KV_HEADS, HEAD_DIM, WINDOW, CONTEXT = 8, 128, 512, 262_144


def vllms(
    tensor: int, batched: int, drafts: int, available: int, length: int | None = CONTEXT
) -> tuple[int, int, float, int]:
    """Blocks, tokens and concurrency by vLLM's own functions, for Step-3.7-Flash's layers: no weights, no device.
    The last is the longest request: `length`, or what fits (None, for `auto`)."""
    import torch
    from vllm.config import VllmConfig
    from vllm.v1.core import kv_cache_utils
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheLayout, SlidingWindowSpec

    options = {
        "block_size": 16, "num_kv_heads": max(1, KV_HEADS // tensor), "head_size": HEAD_DIM, "dtype": torch.bfloat16,
    }  # fmt: skip
    layers: dict[str, Any] = {
        f"layers.{i}": FullAttentionSpec(**options)
        if i % 4 == 0
        else SlidingWindowSpec(**options, sliding_window=WINDOW)
        for i in range(45)
    }
    layers |= {f"layers.{i}": SlidingWindowSpec(**options, sliding_window=WINDOW) for i in range(45, 45 + drafts)}
    config = SimpleNamespace(
        model_config=SimpleNamespace(
            max_model_len=length or CONTEXT, original_max_model_len=length or -1, supports_kv_cache_grouping=False,
            hf_config=SimpleNamespace(model_type="step3p7"),
        ),
        scheduler_config=SimpleNamespace(
            disable_hybrid_kv_cache_manager=False, async_scheduling=True, max_num_batched_tokens=batched
        ),
        cache_config=SimpleNamespace(
            num_gpu_blocks_override=None, prefix_cache_retention_interval=None,
            get_resolved_kv_cache_layout=lambda: next(item for item in KVCacheLayout if not item.is_block_outermost),
        ),
        parallel_config=SimpleNamespace(
            tensor_parallel_size=tensor, decode_context_parallel_size=1, pipeline_parallel_size=1,
            prefill_context_parallel_size=1,
        ),
        attention_config=SimpleNamespace(hisparse_config=None),
        device_config=SimpleNamespace(device_type="cuda"),
        speculative_config=None,
        kv_transfer_config=None,
        use_v2_model_runner=True,
        num_prefill_lookahead_tokens=drafts,
    )  # fmt: skip
    config.max_concurrent_batches = VllmConfig.max_concurrent_batches.fget(config)
    config.max_in_flight_tokens = VllmConfig.max_in_flight_tokens.fget(config)
    workers = [layers] * tensor, [available] * tensor
    try:
        planning = importlib.import_module("vllm.v1.core.kv_cache_planning")  # 0.33
    except ImportError:
        found = kv_cache_utils.get_kv_cache_configs(config, *workers)
    else:
        groups = planning.get_global_kv_cache_groups(config, workers[0])
        found = planning.get_kv_cache_configs(config, *workers, groups)
    tokens, concurrency = kv_cache_utils.get_kv_cache_capacity(config, found[0])
    return found[0].num_blocks, tokens, concurrency, config.model_config.max_model_len


@pytest.mark.parametrize(
    ("tensor", "batched", "drafts", "gib"),
    [
        (8, 8192, 3, 18.7),
        (8, 2048, 3, 18.0),
        (4, 16384, 3, 55.5),
        (4, 8192, 3, 9.1),
        (8, 8192, 0, 70.0),
        (16, 8192, 3, 30),
    ],
)
def test_the_size_of_the_cache_is_what_vllm_will_print(tensor: int, batched: int, drafts: int, gib: float) -> None:
    available = int(gib * GIB)
    page = 2 * 16 * max(1, KV_HEADS // tensor) * HEAD_DIM * 2
    shape = CacheShape(12, 33 + drafts, WINDOW, page, batched, drafts)
    ours = cache_size(shape, available, CONTEXT)
    assert (ours.blocks, ours.tokens(), ours.concurrency(), CONTEXT) == vllms(tensor, batched, drafts, available)


@pytest.mark.parametrize("name", ON_GPUS)
def test_plan_quotes_the_line_that_vllm_prints_for_the_cache_that_it_reckons_with(name: str) -> None:
    config = load_config({"profile": name}, [])
    shape, layout = shape_of(config), layout_of(config)
    assert shape is not None
    assert layout is not None
    assert (shape.full_layers, shape.sliding_layers, shape.window, shape.context) == (12, 36, WINDOW, CONTEXT)
    available = int(memory.memory_capacity(shape, layout).cache_bytes)
    _, tokens, concurrency, _ = vllms(layout.tensor_parallel, layout.batched_tokens, layout.drafts, available)
    line = VLLMS_LINE % ("GPU", f"{tokens:,}", f"{CONTEXT:,}", concurrency)
    assert any(f'"{line}"' in quoted for quoted in plan.table([name]))


def test_the_line_is_worded_as_vllm_words_it() -> None:
    from vllm.v1.core import kv_cache_utils

    source = inspect.getsource(kv_cache_utils.update_kv_cache_capacity).replace('"\n        "', "")
    assert VLLMS_LINE in source


SHAPE = CacheShape(12, 36, WINDOW, 2 * 16 * HEAD_DIM * 2, 8192, 3)
"""Of one of eight GPUs."""


def test_a_context_that_just_does_not_fit_is_known_before_vllm_refuses_it() -> None:
    needed = SHAPE.request_blocks(CONTEXT, SHAPE.in_flight_tokens()) * SHAPE.block_bytes()
    assert not cache_size(SHAPE, needed, CONTEXT).holds_longest()
    with pytest.raises(ValueError, match="To serve at least one request"):
        vllms(8, 8192, 3, needed)
    enough = needed + SHAPE.block_bytes()
    assert cache_size(SHAPE, enough, CONTEXT).holds_longest()
    vllms(8, 8192, 3, enough)


@pytest.mark.parametrize("gib", [0.2, 0.9, 1.61, 3.0])
def test_the_length_that_auto_comes_to_is_vllms(gib: float) -> None:
    ours = cache_size(SHAPE, gib * GIB, CONTEXT).shortened()
    theirs = vllms(8, 8192, 3, int(gib * GIB), None)
    assert (ours.blocks, ours.tokens(), ours.concurrency(), ours.longest) == theirs


@pytest.mark.parametrize(("length", "says"), [("262144", "would end its start"), ("auto", "will be about")])
def test_a_layout_whose_cache_is_shorter_than_the_context_is_warned_of(length: str, says: str) -> None:
    flags = {"max-model-len": length if length == "auto" else int(length), "gpu-memory-utilization": 0.68}
    checks = list(layout_checks(load_config({"profile": "h100-x8", "engine": {"flags": flags}}, [])))
    assert [check.status for check in checks] == [CheckStatus.OK, CheckStatus.WARN]
    assert says in checks[-1].message


def test_a_session_holds_its_length_in_full_layers_and_its_window_in_sliding_ones() -> None:
    shape = CacheShape(12, 36, WINDOW, 2 * 16 * HEAD_DIM * 2, 8192, 3)
    assert (shape.group_layers(), shape.sliding_groups()) == (12, 3)
    assert shape.block_bytes() == 12 * 8192
    assert shape.request_blocks(32_768) == 2048 + 3 * (33 + 1)
    assert shape.request_blocks(10) == 1 + 3 * 2
