"""Lets sessions that begin alike find what they share in the prefix cache, with MTP and sliding-window layers.

Of a prompt, vLLM keeps all of full attention's blocks, but of sliding-window layers only the windows before a few
positions: the prompt's end, and a *junction*, where a prompt leaves what another one before it has said (a system
prompt with its tools). A later prompt that begins so resumes there. With MTP a position is found only where the block
above it is the same, too, so vLLM keeps that block and for prompts' ends goes a block below. For junctions vLLM 0.32
does not: the block above is the first in which the prompts differ. So no session ever found the system prompt of
another one. vLLM 0.33 has mended it, and is left alone: tests/unit/test_vllm_patches_shared_prefixes.py runs the cache
of either.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, Final

from serve_app.vllm_patches.patching import Function, PatchTarget, minor_version, replace

FIND: Final = PatchTarget("vllm.v1.core.kv_cache_manager", "KVCacheManager", "get_computed_blocks", ("request",))
TARGETS: Final = (FIND,)

VERSIONS_WITH_THE_FAULT: Final = ((0, 32),)


def keep_junctions_findable() -> None:
    """Called in each of vLLM's processes, at times more than once."""
    from vllm import __version__

    if minor_version(__version__) in VERSIONS_WITH_THE_FAULT:
        replace(FIND, put_junctions_a_block_lower)


def put_junctions_a_block_lower(original: Function, _manager: ModuleType) -> Function:
    """`KVCacheManager.get_computed_blocks`, whose junction has a block above it that is shared."""

    def get_computed_blocks(self: Any, request: Any, *others: Any, **more: Any) -> Any:
        blocks, computed_tokens, junction = original(self, request, *others, **more)
        if junction and self.use_eagle:  # vLLM's name for all drafting that looks at hidden states, MTP among it
            junction = max(junction - self.coordinator.scheduler_block_size, 0)
        return blocks, computed_tokens, junction

    return get_computed_blocks
