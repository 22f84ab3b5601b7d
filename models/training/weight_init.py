"""Initial weights: random, except for heads of layers 0, 1 and 3 that copy from the prompt.

Most tasks need copying, and training from random weights needs many million tokens to learn it. So three heads of
layer 0 start by attending one, two and three tokens back, and a fourth to the last few. Two heads of layer 1 start as
induction heads: they find the place where the last token, or the last few, occurred before, and predict what followed
there. Untrained, the model repeats 94 % of random token sequences. The other heads are random, and learn where to start
copying when nothing was copied yet.

`vision_init.py` makes the vision encoder. The embeddings stay as they are made here (`objective.freeze_embeddings`).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.training.model.architecture import StepModel
from models.training.model.attention import Attention
from models.training.model.dimensions import ModelDimensions

TOKEN_CHANNELS, PREVIOUS_CHANNELS, RECENT_CHANNELS = 52, (26, 20, 14), 15
"""Channels of the residual stream for the token itself, for the one, two and three tokens before it, and for the sum of
the last few. One more channel is the same for all tokens, for attention to a position whatever token it has."""
TOKEN_NORM, COMMON_NORM = 4.5, 4.0
"""Norms of an embedding in the token's channels and in the common one."""
HEAD_SCALE = 0.8
"""Output rows relative to embeddings. With smaller ones, training makes the copied tokens' states ten times as large as
everything that later layers add."""
COPY_GAINS = (1.5, 3.0)
"""Output gain of the induction heads that match one token and several."""
FREE_HEAD_GAIN = 0.5
"""Output gain of the other heads of these layers."""
SEPARATOR_GAIN = 0.5
"""Output gain of the head that attends past a separator. Several places match, and training has to choose."""
QK_NORM_OFFSET = 1.0
"""Initial weight of query and key norms, a scale of two: with one, attention is too flat over 300 tokens."""
MATCH_WEIGHTS = (0.45, 0.25, 0.15, 0.15)
"""Weights of the last token, the two before it, and the sum of the last few, in the match of several tokens."""
MATCH_CHANNELS = (12, 8, 6, 6)
"""How many of a head's 32 unrotated channels each of these gets."""
FAST_PAIRS = slice(0, 3)
"""Rotary pairs with a frequency that tells one position from the next."""
SLOW_PAIRS = slice(6, 11, 2)
"""Rotary pairs with a frequency so low that a few positions are alike."""
CONSTANT_CHANNEL = 20
"""Key channel that the slow query does not have. It takes norm away from the slow pairs."""
SLOW_KEY_SCALE = 0.31
"""What is left of the slow pairs, so that the head attends to about the last six tokens."""
NOISE_STD = 0.02
"""Random weights added to constructed queries and keys, so that training can start from them."""
ROTATED_KEY_SCALE = 0.1
"""Scale of the rotated half of an induction head's key. With zero, no head of its group could learn to use it."""


@dataclass(frozen=True)
class Subspaces:
    """Orthonormal rows [channels, hidden]: separate parts of the residual stream."""

    common: Tensor
    """The channel that is equal for all tokens [hidden]."""
    token: Tensor
    previous: tuple[Tensor, Tensor, Tensor]
    recent: Tensor


def make_subspaces(hidden: int) -> Subspaces:
    """Random subspaces that together fill `hidden` channels."""
    sizes = [1, TOKEN_CHANNELS, *PREVIOUS_CHANNELS, RECENT_CHANNELS]
    common, token, one, two, three, recent = _orthonormal(hidden, hidden).split(sizes)
    return Subspaces(common[0], token, (one, two, three), recent)


def init_weights(model: StepModel) -> None:
    """Fill all parameters but the vision encoder's, with torch's global generator."""
    for name, p in model.named_parameters():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            nn.init.constant_(p, QK_NORM_OFFSET)
        elif p.dim() >= 2 and "vision_model" not in name:
            scale = 0.1 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
            nn.init.normal_(p, std=scale / math.sqrt(p.shape[-1]))
    with torch.no_grad():
        spaces = make_subspaces(model.dims.hidden)
        token_scale = TOKEN_NORM / math.sqrt(TOKEN_CHANNELS)
        tokens = torch.randn(model.dims.vocab, TOKEN_CHANNELS) * token_scale @ spaces.token
        model.model.embed_tokens.weight.copy_(tokens + COMMON_NORM * spaces.common)
        for head in model.output_heads():
            head.weight.copy_(tokens * HEAD_SCALE)
        layers = model.model.layers
        for layer in (layers[1], layers[3]):
            _output_attended_tokens(layer.self_attn, model.dims, spaces)
        _init_previous_token_heads(layers[0].self_attn, model.dims, spaces)
        _init_induction_heads(layers[1].self_attn, model.dims, spaces)
        _init_separator_head(layers[3].self_attn, model.dims, spaces)


def _orthonormal(rows: int, columns: int) -> Tensor:
    """A random matrix with orthonormal rows, or with orthonormal columns if there are fewer columns."""
    tall = torch.linalg.qr(torch.randn(max(rows, columns), min(rows, columns)))[0]
    return tall if rows >= columns else tall.T


def _gain(channels: int) -> float:
    """Makes a token's projection to fewer channels as large as the token itself."""
    return math.sqrt(TOKEN_CHANNELS / channels)


def _init_previous_token_heads(attention: Attention, dims: ModelDimensions, spaces: Subspaces) -> None:
    """Heads 0, 1 and 2 attend 1, 2 and 3 tokens back, head 3 to the last few. Each writes to its own subspace."""
    dim, half = dims.head_dim, dims.head_dim // 2
    frequencies = dims.sliding_theta ** (-torch.arange(half, dtype=torch.float32) / half)
    keys = torch.zeros(2, dim)
    keys[0, FAST_PAIRS] = 1.0
    keys[1, SLOW_PAIRS] = SLOW_KEY_SCALE
    keys[1, CONSTANT_CHANNEL] = math.sqrt(3 * (1 - SLOW_KEY_SCALE**2))
    for group, key in enumerate(keys):
        rows = slice(group * dim, (group + 1) * dim)
        attention.k_proj.weight[rows] = torch.outer(key, spaces.common) + NOISE_STD * torch.randn(dim, dims.hidden)
        attention.v_proj.weight[rows] = 0.0
        attention.v_proj.weight[rows.start : rows.start + TOKEN_CHANNELS] = spaces.token
    heads = [(back, FAST_PAIRS, basis) for back, basis in enumerate(spaces.previous, 1)]
    heads.append((0, SLOW_PAIRS, spaces.recent))
    for head, (back, pairs, basis) in enumerate(heads):
        query = torch.zeros(dim)
        query[:half][pairs] = torch.cos(-back * frequencies[pairs])
        query[half:][pairs] = torch.sin(-back * frequencies[pairs])
        rows = slice(head * dim, (head + 1) * dim)
        attention.g_proj.weight[head] = 0.0
        attention.q_proj.weight[rows] = torch.outer(query, spaces.common) + NOISE_STD * torch.randn(dim, dims.hidden)
        attention.o_proj.weight[:, rows] = 0.0
        attention.o_proj.weight[:, rows.start : rows.start + len(basis)] = _gain(len(basis)) * basis.T


def _output_attended_tokens(attention: Attention, dims: ModelDimensions, spaces: Subspaces) -> None:
    """Every head writes the token that it attends to: otherwise it gets no gradient for where it attends."""
    dim = dims.head_dim
    for group in range(dims.kv_groups):
        attention.v_proj.weight[group * dim : group * dim + TOKEN_CHANNELS] = spaces.token
    for head in range(dims.full_heads):
        attention.o_proj.weight[:, head * dim : head * dim + TOKEN_CHANNELS] = FREE_HEAD_GAIN * spaces.token.T


def _init_induction_heads(attention: Attention, dims: ModelDimensions, spaces: Subspaces) -> None:
    """Group 0 finds an earlier occurrence of the last token, group 1 of the last few. Both write what followed it."""
    one, two, _ = spaces.previous
    mix = _orthonormal(dims.head_dim // 2, len(one))
    _init_matching_head(attention, dims, 0, mix @ one, mix @ spaces.token[: len(one)], spaces.token, COPY_GAINS[0])
    bases = (*spaces.previous, spaces.recent)
    mixes = [
        math.sqrt(weight / channels) * _orthonormal(channels, len(basis))
        for weight, channels, basis in zip(MATCH_WEIGHTS, MATCH_CHANNELS, bases, strict=True)
    ]
    key = [mix @ basis for mix, basis in zip(mixes, bases, strict=True)]
    first, second, third = (_gain(channels) for channels in PREVIOUS_CHANNELS)
    query = [
        mixes[0] @ spaces.token[: PREVIOUS_CHANNELS[0]] * first,
        mixes[1] @ one[: PREVIOUS_CHANNELS[1]] * second / first,
        mixes[2] @ two[: PREVIOUS_CHANNELS[2]] * third / second,
        mixes[3] @ spaces.recent,
    ]
    _init_matching_head(attention, dims, 1, torch.cat(key), torch.cat(query), spaces.token, COPY_GAINS[1])


def _init_separator_head(attention: Attention, dims: ModelDimensions, spaces: Subspaces) -> None:
    """Matches the token before a separator (`":`, `>`, `", "`) with the same one before another (`: `, ` = `).

    After a key was written, its value is found, and after a value the next key. Both separators have two tokens.
    """
    _, two, _ = spaces.previous
    projection = _orthonormal(dims.head_dim // 2, len(two)) @ two
    _init_matching_head(attention, dims, 0, projection, projection, spaces.token, SEPARATOR_GAIN)


def _init_matching_head(
    attention: Attention, dims: ModelDimensions, group: int, key: Tensor, query: Tensor, token: Tensor, gain: float
) -> None:
    """Let the first head of a full layer's group attend where `key` matches `query` [head_dim / 2, hidden] each.

    Only the unrotated channels are used, so distance does not matter. The head's gate is set to a constant: a random
    one closes it for some tokens, or with some seeds for most.
    """
    dim, half = dims.head_dim, dims.head_dim // 2
    attention.k_proj.weight[group * dim : group * dim + half] *= ROTATED_KEY_SCALE
    attention.k_proj.weight[group * dim + half : (group + 1) * dim] = key
    head = group * (dims.full_heads // dims.kv_groups)
    first = head * dim
    attention.g_proj.weight[head] = 0.0
    attention.q_proj.weight[first : first + half] = 0.0
    attention.q_proj.weight[first + half : first + dim] = query
    attention.o_proj.weight[:, first : first + TOKEN_CHANNELS] = gain * token.T
