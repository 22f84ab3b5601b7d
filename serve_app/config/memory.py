"""The memory of a layout: weights, KV cache, and so how many sessions of which length fit. Arithmetic only.

Weights and the cache's layout are exact. What vLLM measures at its start (activations, CUDA graphs, the runtime) is
estimated here, to some 2 GB a GPU. Trust its `Available KV cache memory` where the two differ (docs/decisions/0016).

* weights: experts are split over all GPUs of a replica, the rest over each of its data-parallel ranks; what vLLM does
  not split (MTP's projections, the routers, which it keeps in FP32) is on every GPU.
* cache: what `gpu-memory-utilization` leaves, cut into blocks as vLLM does it (`config/kv_cache.py`). More GPUs than KV
  heads hold copies. Each data-parallel rank has a cache of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from serve_app.config.kv_cache import BLOCK_TOKENS, CacheShape, CacheSize, cache_size

GB = 1_000_000_000
MIB = 1024**2

RUNTIME_BYTES = 1_800_000_000
"""Per GPU, for the CUDA context, kernels, NCCL's and all-reduce's buffers. An estimate."""
ACTIVATION_BYTES_PER_TOKEN = 300_000
"""Per token of a step: workspaces of eight experts (86 KB), some sixteen hidden states of 8 KB, the vision tower's. An
estimate."""
GRAPH_BYTES = 20_000_000
"""Per captured size. An estimate."""
DRIVER_BYTES = 550 * MIB
"""Memory that the driver keeps of what `nvidia-smi` shows: CUDA sees 0.46 GiB less of an H100, 0.6 less of an H200."""

GPU_BYTES = {
    "A100": 81_920 * MIB,
    "A100-80G": 81_920 * MIB,
    "A100-40G": 40_960 * MIB,
    "L40S": 46_068 * MIB,
    "H100": 81_559 * MIB,
    "H200": 143_771 * MIB,
    "B200": 183_359 * MIB,
    "GB200": 189_471 * MIB,
    "B300": 275_040 * MIB,
    "GB300": 284_208 * MIB,
}
"""Memory by Ray's name of the GPU, as `nvidia-smi` shows it. Ray calls the 40 GB A100 `A100` too: for GPUs of this
machine, their own size is used."""

FP8_BLOCK = 128
"""Side of the weight blocks that share a scale in Step's FP8 checkpoint."""
SMALLEST_FP8_BLOCK = 32


@dataclass(frozen=True)
class ModelShape:
    """What memory and divisibility depend on."""

    weights_bytes: int
    full_layers: int
    sliding_layers: int
    """Including the MTP layers: they slide too."""
    window: int
    heads: tuple[int, ...]
    """Query heads of each kind of layer."""
    kv_heads: int
    head_dim: int
    experts: int
    expert_width: int
    fp8: bool = False
    expert_bytes: int = 0
    """Bytes of the routed experts."""
    whole_bytes: int = 0
    """Bytes of weights that every GPU holds completely."""
    whole_loaded_bytes: int = 0
    """The same as loaded: vLLM keeps routers in FP32."""
    context: int = 262_144


STEP_3P7_FLASH = ModelShape(
    weights_bytes=402_243_000_000,  # 201.1 B parameters: 197.0 B, 1.7 B of vision, 2.4 B in the MTP layers
    full_layers=12,
    sliding_layers=33 + 3,
    window=512,
    heads=(64, 96),
    kv_heads=8,
    head_dim=128,
    experts=288,
    expert_width=1280,
    expert_bytes=42 * 288 * 3 * 4096 * 1280 * 2,
    whole_bytes=3 * 4096 * 8192 * 2 + 42 * 288 * 4096 * 2,
    whole_loaded_bytes=3 * 4096 * 8192 * 2 + 42 * 288 * 4096 * 4,
)
KNOWN = {
    "stepfun-ai/Step-3.7-Flash": STEP_3P7_FLASH,
    # Only the routed experts are FP8: 42 layers x 288 experts x 3 x 4096 x 1280 bytes = 190 GB, and 22 GB in BF16.
    "stepfun-ai/Step-3.7-Flash-FP8": replace(
        STEP_3P7_FLASH, weights_bytes=212_000_000_000, expert_bytes=STEP_3P7_FLASH.expert_bytes // 2, fp8=True
    ),
}
"""Checkpoints whose shape is known without reading them, by their Hugging Face id."""


@dataclass(frozen=True)
class ReplicaLayout:
    """How one replica is split over GPUs, and what each of its GPUs has."""

    tensor_parallel: int
    pipeline_parallel: int
    expert_parallel: bool
    gpu_bytes: int
    memory_utilisation: float
    kv_element_bytes: int = 2
    data_parallel: int = 1
    batched_tokens: int = 8192
    drafts: int = 3
    captured_tokens: int = 512
    """Tokens of the largest CUDA graph; 0 without graphs."""
    longest: int | None = None
    """`max-model-len`; None: the model's own."""
    shortens: bool = False
    """`max-model-len: auto`: vLLM takes a shorter context where that one does not fit, instead of giving up."""


@dataclass(frozen=True)
class MemoryCapacity:
    """One GPU's memory, and the cache of one data-parallel rank. `cache_bytes` is negative where weights do not fit."""

    weights_bytes: float
    overhead_bytes: float
    cache_bytes: float
    cache: CacheSize
    ranks: int

    def fits(self) -> bool:
        """Whether weights and overhead leave anything for a cache."""
        return self.cache_bytes > 0

    def tokens(self) -> int:
        """`GPU KV cache size`, as each rank's engine core prints it."""
        return self.cache.tokens()

    def sessions(self, tokens: int) -> int:
        """How many sessions of that many tokens a replica holds at a time."""
        return self.cache.sessions(tokens) * self.ranks


def memory_capacity(shape: ModelShape, layout: ReplicaLayout) -> MemoryCapacity:
    """The arithmetic of the module's docstring."""
    rank_gpus = layout.tensor_parallel * layout.pipeline_parallel
    gpus = rank_gpus * layout.data_parallel
    shared = shape.weights_bytes - shape.expert_bytes - shape.whole_bytes
    whole = shape.whole_loaded_bytes / layout.pipeline_parallel
    weights = shape.expert_bytes / gpus + shared / rank_gpus + whole
    overhead = RUNTIME_BYTES + ACTIVATION_BYTES_PER_TOKEN * layout.batched_tokens
    overhead += GRAPH_BYTES * captured_sizes(layout.captured_tokens)
    available = (layout.gpu_bytes - DRIVER_BYTES) * layout.memory_utilisation - weights - overhead
    heads = max(1, shape.kv_heads // layout.tensor_parallel)
    cache = CacheShape(
        full_layers=shape.full_layers,
        sliding_layers=shape.sliding_layers,
        window=shape.window,
        page_bytes=2 * BLOCK_TOKENS * heads * shape.head_dim * layout.kv_element_bytes,
        batched_tokens=layout.batched_tokens,
        drafts=layout.drafts,
        stages=layout.pipeline_parallel,
    )
    size = cache_size(cache, available, layout.longest or shape.context)
    return MemoryCapacity(
        weights, overhead, available, size.shortened() if layout.shortens else size, layout.data_parallel
    )


def captured_sizes(largest: int) -> int:
    """How many sizes vLLM captures: 1, 2, 4, then by 8 to 256, then by 16."""
    return len([1, 2, 4, *range(8, 256, 8), *range(256, largest + 1, 16)]) if largest else 0


@dataclass(frozen=True)
class LayoutIssue:
    """A problem of a layout. A fatal one would end the engine's start, minutes later."""

    fatal: bool
    message: str


def layout_issues(shape: ModelShape, layout: ReplicaLayout) -> list[LayoutIssue]:
    """What does not divide: heads, experts, FP8 blocks."""
    found: list[LayoutIssue] = []
    tensor = layout.tensor_parallel
    counts = {f"{heads} attention heads": heads for heads in shape.heads}
    if layout.expert_parallel:
        counts[f"{shape.experts} experts"] = shape.experts
    whole = math.gcd(*counts.values())
    sizes = ", ".join(str(size) for size in range(1, 33) if whole % size == 0)
    for what, count in counts.items():
        if count % tensor:
            message = f"{what} cannot be split over {tensor} GPUs; tensor-parallel-size can be {sizes}"
            found.append(LayoutIssue(fatal=True, message=message))
    if tensor > shape.kv_heads:
        message = f"{tensor} GPUs share {shape.kv_heads} KV heads: copies of them shrink the cache"
        found.append(LayoutIssue(fatal=False, message=message))
    if shape.fp8 and not layout.expert_parallel:
        found += _fp8_blocks(shape.expert_width, tensor)
    return found


def _fp8_blocks(expert_width: int, tensor: int) -> list[LayoutIssue]:
    if expert_width % (tensor * FP8_BLOCK) == 0:
        return []
    # vLLM cuts the scale blocks smaller where that leaves 32 or more (oracle/fp8.py: refine_fp8_moe_block_shape), and
    # only Triton's kernels take such blocks.
    block = math.gcd(expert_width // tensor, FP8_BLOCK) if expert_width % tensor == 0 else 0
    advice = "set engine.flags.enable-expert-parallel: true"
    if block < SMALLEST_FP8_BLOCK:
        message = f"FP8 experts of width {expert_width} cannot be split over {tensor} GPUs; {advice}"
        return [LayoutIssue(fatal=True, message=message)]
    message = f"FP8 blocks shrink to {block}x{block}, which only slow kernels take; {advice}"
    return [LayoutIssue(fatal=False, message=message)]
