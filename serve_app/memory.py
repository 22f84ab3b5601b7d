"""What a layout's memory holds: weights, KV cache, and so how many sessions of which length. Arithmetic only.

An estimate to choose a layout by, good to some ten per cent. vLLM measures for itself at start, and prints
`GPU KV cache size`: believe that where the two differ.

* weights: all of the checkpoint, split evenly over the GPUs of a replica.
* a token of KV cache: key and value of every KV head in each *full* attention layer. More GPUs than KV heads hold
  copies.
* a session, besides: one window of the same in each *sliding* layer, the MTP layers among them.
* overhead: activations, CUDA graphs, NCCL's buffers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

GB = 1_000_000_000

OVERHEAD_BYTES = 6 * GB
"""Per GPU, for activations at 8k-16k batched tokens, CUDA graphs and NCCL."""

GPU_BYTES = {
    "A100": 80 * GB,
    "A100-80G": 80 * GB,
    "H100": 80 * GB,
    "H200": 141 * GB,
    "B200": 180 * GB,
    "GB200": 186 * GB,
    "B300": 270 * GB,
    "GB300": 279 * GB,
}
"""By Ray's name of the GPU, as the vendor counts. Ray calls the 40 GB A100 `A100` too: only vLLM's start finds out."""

FP8_BLOCK = 128
"""Side of the weight blocks that share a scale in Step's FP8 checkpoint."""
SMALLEST_FP8_BLOCK = 32


@dataclass(frozen=True)
class ModelShape:
    """What memory and divisibility depend on."""

    weights_bytes: int
    full_layers: int
    sliding_layers: int
    """The MTP layers included: they slide too."""
    window: int
    heads: tuple[int, ...]
    """Query heads of each kind of layer."""
    kv_heads: int
    head_dim: int
    experts: int
    expert_width: int
    fp8: bool = False


STEP_3P7_FLASH = ModelShape(
    weights_bytes=396 * GB,
    full_layers=12,
    sliding_layers=33 + 3,
    window=512,
    heads=(64, 96),
    kv_heads=8,
    head_dim=128,
    experts=288,
    expert_width=1280,
)
KNOWN = {
    "stepfun-ai/Step-3.7-Flash": STEP_3P7_FLASH,
    # Only the routed experts are FP8: 42 layers x 288 experts x 3 x 4096 x 1280 bytes = 190 GB, and 22 GB in BF16.
    "stepfun-ai/Step-3.7-Flash-FP8": replace(STEP_3P7_FLASH, weights_bytes=212_500_000_000, fp8=True),
}
"""Checkpoints whose shape is known without reading them, by their Hugging Face id."""


@dataclass(frozen=True)
class Layout:
    """How one replica is spread, and what each of its GPUs has."""

    tensor_parallel: int
    pipeline_parallel: int
    expert_parallel: bool
    gpu_bytes: int
    memory_utilisation: float
    kv_element_bytes: int = 2


@dataclass(frozen=True)
class Room:
    """Weights per GPU, and the whole replica's KV cache. `cache_bytes` is negative where the weights do not fit."""

    weights_bytes: float
    cache_bytes: float
    token_bytes: float
    session_bytes: float

    def fits(self) -> bool:
        """Whether weights and overhead leave anything for a cache."""
        return self.cache_bytes > 0

    def tokens(self) -> int:
        """Tokens of KV cache over all sessions, the sliding layers' share left out."""
        return max(0, int(self.cache_bytes / self.token_bytes))

    def sessions(self, tokens: int) -> int:
        """How many sessions of that many tokens are held at a time."""
        return max(0, int(self.cache_bytes / (tokens * self.token_bytes + self.session_bytes)))


def room(shape: ModelShape, layout: Layout) -> Room:
    """The arithmetic of the module's docstring."""
    gpus = layout.tensor_parallel * layout.pipeline_parallel
    weights = shape.weights_bytes / gpus
    copies = max(1.0, layout.tensor_parallel / shape.kv_heads)
    per_layer = 2 * shape.kv_heads * shape.head_dim * layout.kv_element_bytes * copies
    return Room(
        weights_bytes=weights,
        cache_bytes=(layout.gpu_bytes * layout.memory_utilisation - weights - OVERHEAD_BYTES) * gpus,
        token_bytes=per_layer * shape.full_layers,
        session_bytes=per_layer * shape.sliding_layers * shape.window,
    )


@dataclass(frozen=True)
class Finding:
    """Something about a layout that a person should know. A fatal one would end the engine's start, minutes later."""

    fatal: bool
    message: str


def findings(shape: ModelShape, layout: Layout) -> list[Finding]:
    """What of the layout does not divide: heads, experts, FP8 blocks."""
    found: list[Finding] = []
    tensor = layout.tensor_parallel
    counts = {f"{heads} attention heads": heads for heads in shape.heads}
    if layout.expert_parallel:
        counts[f"{shape.experts} experts"] = shape.experts
    whole = math.gcd(*counts.values())
    sizes = ", ".join(str(size) for size in range(1, 33) if whole % size == 0)
    for what, count in counts.items():
        if count % tensor:
            message = f"{what} cannot be split over {tensor} GPUs; tensor-parallel-size can be {sizes}"
            found.append(Finding(fatal=True, message=message))
    if tensor > shape.kv_heads:
        message = f"{tensor} GPUs share {shape.kv_heads} KV heads: copies of them shrink the cache"
        found.append(Finding(fatal=False, message=message))
    if shape.fp8 and not layout.expert_parallel:
        found += _fp8_blocks(shape.expert_width, tensor)
    return found


def _fp8_blocks(expert_width: int, tensor: int) -> list[Finding]:
    if expert_width % (tensor * FP8_BLOCK) == 0:
        return []
    # vLLM cuts the scale blocks smaller where that leaves 32 or more (oracle/fp8.py: refine_fp8_moe_block_shape), and
    # only Triton's kernels take such blocks.
    block = math.gcd(expert_width // tensor, FP8_BLOCK) if expert_width % tensor == 0 else 0
    advice = "set engine.flags.enable-expert-parallel: true"
    if block < SMALLEST_FP8_BLOCK:
        message = f"FP8 experts of width {expert_width} cannot be split over {tensor} GPUs; {advice}"
        return [Finding(fatal=True, message=message)]
    message = f"FP8 blocks shrink to {block}x{block}, which only slow kernels take; {advice}"
    return [Finding(fatal=False, message=message)]
