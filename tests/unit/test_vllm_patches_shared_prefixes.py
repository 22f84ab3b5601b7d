"""Sessions that begin alike find what they share in vLLM's own prefix cache, with MTP and sliding-window layers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest
import torch
from vllm import __version__
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec, SlidingWindowSpec
from vllm.v1.request import Request

from serve_app.vllm_patches.patching import Function, minor_version
from serve_app.vllm_patches.shared_prefixes import FIND, VERSIONS_WITH_THE_FAULT, put_junctions_a_block_lower

BLOCK, WINDOW, CHUNK = 16, 512, 8192
SHARED, OWN = 6_000, 700
ORIGINAL: Function = getattr(KVCacheManager.get_computed_blocks, "__wrapped__", KVCacheManager.get_computed_blocks)
"""As vLLM has it, whether or not the plugin ran in this process."""
HAS_THE_FAULT = minor_version(__version__) in VERSIONS_WITH_THE_FAULT
CHANGED = put_junctions_a_block_lower(ORIGINAL, ModuleType(FIND.module)) if HAS_THE_FAULT else ORIGINAL
"""As our engines run it."""


@dataclass
class Engine:
    """The scheduler's part of an engine: what it finds of each prompt, and the blocks that it computes."""

    find: Function
    mtp: bool = True
    blocks: int = 20_000
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        init_none_hash(sha256)
        self.hasher = get_request_block_hasher(BLOCK, sha256)
        shape: dict[str, Any] = {"block_size": BLOCK, "num_kv_heads": 8, "head_size": 128, "dtype": torch.bfloat16}
        window = SlidingWindowSpec(**shape, sliding_window=WINDOW)
        groups = [
            KVCacheGroupSpec(["full"], FullAttentionSpec(**shape)),
            *(KVCacheGroupSpec([f"window-{number}"], window) for number in range(2)),
            KVCacheGroupSpec(["window-2", "draft"], window, is_eagle_group=self.mtp),
        ]
        config = KVCacheConfig(
            num_blocks=self.blocks, kv_cache_tensors=[], kv_cache_groups=groups, prefix_cache_retention_interval=0
        )
        self.manager = KVCacheManager(
            config, max_model_len=1 << 18, scheduler_block_size=BLOCK, hash_block_size=BLOCK, use_eagle=self.mtp
        )

    def run(self, prompt: list[int]) -> int:
        """Compute a prompt and end. Returns how many tokens of it were found."""
        sampling = SamplingParams(max_tokens=1)
        request = Request(f"request-{next(self.numbers)}", prompt, sampling, None, block_hasher=self.hasher)
        blocks, found, request.shared_prefix_boundary = self.find(self.manager, request)
        done = found
        while done < len(prompt):
            chunk = min(CHUNK, len(prompt) - done)
            known = {"num_new_computed_tokens": found, "new_computed_blocks": blocks} if done == found else {}
            assert self.manager.allocate_slots(request, chunk, num_lookahead_tokens=4 if self.mtp else 0, **known)
            done += chunk
            request.num_computed_tokens = done
        self.manager.free(request)
        return int(found)


def tokens(seed: int, count: int) -> list[int]:
    """Different ones for each seed."""
    return [seed * 100_000 + number for number in range(count)]


def whole_blocks(count: int) -> int:
    return count // BLOCK * BLOCK


def sessions(engine: Engine, count: int = 4) -> list[int]:
    """The first turns of so many sessions, which share their beginning."""
    return [engine.run(tokens(0, SHARED) + tokens(session, OWN)) for session in range(1, count + 1)]


def test_the_third_session_finds_what_all_share() -> None:
    found = sessions(Engine(CHANGED))
    assert found[:2] == [0, 0], "the second one shows where they part"
    assert found[2:] == [whole_blocks(SHARED) - BLOCK] * 2


@pytest.mark.skipif(not HAS_THE_FAULT, reason="this vLLM is not changed")
def test_vllm_alone_never_finds_it_with_mtp() -> None:
    """Where this fails, vLLM has mended it, and the change can go."""
    assert sessions(Engine(ORIGINAL)) == [0, 0, 0, 0]


def test_without_mtp_nothing_changes() -> None:
    found = sessions(Engine(ORIGINAL, mtp=False))
    assert found[2:] == [whole_blocks(SHARED)] * 2
    assert sessions(Engine(CHANGED, mtp=False)) == found


@pytest.mark.parametrize("find", [ORIGINAL, CHANGED], ids=["vllm", "changed"])
def test_later_turns_find_all_but_the_last_blocks(find: Function) -> None:
    engine, history = Engine(find), tokens(0, SHARED)
    engine.run(history)
    for turn in range(1, 5):
        before = len(history)
        history = history + tokens(turn, OWN)
        assert engine.run(history) >= whole_blocks(before) - 2 * BLOCK


def test_a_history_that_is_cut_is_found_up_to_the_cut_the_second_time() -> None:
    engine, history = Engine(CHANGED), tokens(0, SHARED)
    engine.run(history)
    cut = whole_blocks(SHARED // 2)
    found = [engine.run(history[:cut] + tokens(turn, OWN)) for turn in range(1, 4)]
    assert found == [0, cut - BLOCK, cut - BLOCK]


def test_it_keeps_no_more_of_the_cache() -> None:
    def free_and_unnamed(engine: Engine) -> int:
        pool = engine.manager.block_pool
        return sum(block.block_hash is None for block in pool.blocks)

    one, other = Engine(ORIGINAL), Engine(CHANGED)
    sessions(one, 6)
    sessions(other, 6)
    assert free_and_unnamed(other) >= free_and_unnamed(one)
