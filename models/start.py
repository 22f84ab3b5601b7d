"""Where training starts: random weights, but with a way to copy already wired into the first two layers.

Most skills rest on copying what stands in the prompt, and a network finds out how only after many millions of tokens,
which a CPU does not have. So three heads of layer 0 begin by looking one, two and three tokens back, and the heads of
layer 1 by looking for the place where the last token, or the last three, stood before, and repeating what came after.
Untrained, it says three in four random tokens again as they stood.

The vision tower is made by `sight.py`. It stays as it starts, and so do the embeddings (`objective.hold_spelling`).
"""

import math

import torch
from torch import Tensor, nn

from models.architecture import Step
from models.attention import Attention
from models.shape import Shape

EMBEDDING_STD = 0.5
COMMON_STD = 0.35
"""A vector shared by all embeddings: without one, a head could not look at a place whatever stands there."""
HEAD_SCALE = 0.3
REPEATING = 4.0
"""How loud a found token is said."""
LOUDNESS = 1.5
"""How much louder a looked-back token is written than it is read; half of it is lost in the heads' gates."""
SHARPNESS = 1.0
"""Added to the one of query and key norms: at one, 300 tokens would blur any look."""


def start(model: Step) -> None:
    """Fill every parameter. Uses torch's global generator."""
    for name, p in model.named_parameters():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            nn.init.constant_(p, SHARPNESS)
        elif p.dim() >= 2 and "vision_model" not in name:
            scale = 0.1 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
            nn.init.normal_(p, std=scale / math.sqrt(p.shape[-1]))
    with torch.no_grad():
        common = torch.randn(model.shape.hidden) * COMMON_STD
        own = _without(torch.randn_like(model.model.embed_tokens.weight) * EMBEDDING_STD, common)
        model.model.embed_tokens.weight.copy_(own + common)
        for head in model.heads():
            head.weight.copy_(own * HEAD_SCALE)
        blocks = _blocks(4, common)
        _look_back(model.model.layers[0].self_attn, model.shape, common, blocks)
        _find_and_repeat(model.model.layers[1].self_attn, model.shape, common, blocks)


def _orthonormal(rows: int, columns: int) -> Tensor:
    return (
        torch.linalg.qr(torch.randn(max(rows, columns), min(rows, columns)))[0].reshape(max(rows, columns), -1).T[:rows]
    )


def _without(rows: Tensor, direction: Tensor) -> Tensor:
    """The rows, less what points along the direction."""
    unit = direction / direction.norm()
    return rows - torch.outer(rows @ unit, unit)


def _blocks(count: int, common: Tensor) -> Tensor:
    """Orthonormal rows in so many blocks [count, rows, hidden], all of them blind to the common vector."""
    width = len(common) // count - 1
    rows = _without(torch.randn(count * width, len(common)), common)
    return torch.linalg.qr(rows.T)[0].T.reshape(count, width, -1)


def _look_back(attention: Attention, shape: Shape, common: Tensor, blocks: Tensor) -> None:
    """Heads 0, 1 and 2 (one key-value group) look 1, 2 and 3 tokens back, and each writes elsewhere what it sees."""
    dim, half = shape.head_dim, shape.head_dim // 2
    unit = common / (common @ common)
    turns = shape.sliding_theta ** (-torch.arange(3, dtype=torch.float32) / half)
    key = torch.zeros(dim)
    key[:3] = 1.0
    attention.k_proj.weight[:dim] = torch.outer(key, unit) + 0.02 * torch.randn(dim, shape.hidden)
    width = blocks.shape[1]
    for back in (1, 2, 3):
        query = torch.zeros(dim)
        query[:3], query[half : half + 3] = torch.cos(-back * turns), torch.sin(-back * turns)
        rows = slice((back - 1) * dim, back * dim)
        attention.q_proj.weight[rows] = torch.outer(query, unit) + 0.02 * torch.randn(dim, shape.hidden)
        attention.o_proj.weight[:, rows.start : rows.start + width] = LOUDNESS * blocks[back].T
    attention.v_proj.weight[:width] = blocks[0]


def _find_and_repeat(attention: Attention, shape: Shape, common: Tensor, blocks: Tensor) -> None:
    """Group 0 matches one token, group 1 three, by the channels that are not rotated: distance must not matter."""
    dim, plain = shape.head_dim, shape.head_dim // 2
    per_group = shape.full_heads // shape.kv_groups
    width = blocks.shape[1]
    mixed = [torch.linalg.qr(torch.randn(plain, plain))[0][:, :width] for _ in range(3)]
    own = blocks[0] * LOUDNESS
    third = plain // 3
    parts = (plain - 2 * third, third, third)
    groups = (
        (mixed[0] @ own, mixed[0] @ blocks[1]),
        (
            torch.cat([m[:n] @ b for m, n, b in zip(mixed, parts, (own, blocks[1], blocks[2]), strict=True)]),
            torch.cat([m[:n] @ b for m, n, b in zip(mixed, parts, blocks[1:4], strict=True)]),
        ),
    )
    values = _without(_orthonormal(shape.kv_groups * dim, shape.hidden), common)
    attention.v_proj.weight.copy_(values)
    for group, (query, key) in enumerate(groups):
        attention.k_proj.weight[group * dim : group * dim + plain] = 0.0
        attention.k_proj.weight[group * dim + plain : (group + 1) * dim] = key
        for head in range(group * per_group, (group + 1) * per_group):
            rows = slice(head * dim, (head + 1) * dim)
            attention.q_proj.weight[rows] = 0.0
            attention.q_proj.weight[head * dim + plain : (head + 1) * dim] = query
            attention.o_proj.weight[:, rows] = REPEATING * values[group * dim : (group + 1) * dim].T
