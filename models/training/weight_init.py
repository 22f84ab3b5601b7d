"""Where training starts: random weights, but with a way to copy already wired into the first two layers.

Most skills rest on copying what stands in the prompt, and a network finds out how only after many millions of tokens,
which a CPU does not have. So three heads of layer 0 begin by looking one, two and three tokens back and a fourth at the
last few, and two heads of layer 1 by looking for the place where the last token, or the last few, stood before, and
repeating what came after. Untrained, it says 94 of 100 random tokens again as they stood. Where to look when nothing
stood before, the start of a quotation say, has to be learnt: for that the other heads are free.

The vision tower is made by `sight.py`. It stays as it starts, and so do the embeddings (`objective.hold_spelling`).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.training.model.architecture import Step
from models.training.model.attention import Attention
from models.training.model.dimensions import Shape

OWN, BACK, RECENT = 52, (26, 20, 14), 15
"""Channels for the token itself, for the one, two and three tokens before it, and for the last few in a heap. One more
is the same for all tokens: without it, a head could not look at a place whatever stands there."""
EMBEDDING_NORM, COMMON_NORM = 4.5, 4.0
HEAD_SCALE = 0.8
"""Rows of the heads to embeddings. With small ones only a state that is a token and nothing else is a sure answer, so
training makes the copies ten times as loud as all that later layers would have to see beside them."""
REPEATING = (1.5, 3.0)
"""How loud a found token is said, by the head that looks for one token and by the one that looks for several."""
SAYING = 0.5
"""How loud any other head of these layers says what it looks at."""
HINTING = 0.5
"""And how loud what stood behind a key: of many places that is right in a few only, and training has to find out."""
SHARPNESS = 1.0
"""Added to the one of query and key norms: at one, 300 tokens would blur any look."""
MATCH = (0.45, 0.25, 0.15, 0.15)
"""What counts when several tokens are looked for: the last one, the two before it, and the heap."""
MATCH_CHANNELS = (12, 8, 6, 6)
"""How many of a head's 32 channels that are not rotated each of these gets."""
NEAR = slice(0, 3)
"""Pairs of channels that turn fast enough to tell one place from the next."""
SLOW = slice(6, 11, 2)
"""And pairs that turn so slowly that a few tokens look alike."""
STILL = 20
"""A key channel that no query of the heap has: it takes loudness away from the slow ones."""
NEARNESS = 0.31
"""What is left of theirs, so that the heap reaches six tokens back or so."""
BLUR = 0.02
"""Random weights on top of what is wired, for training to begin with."""
QUIET = 0.1
"""How loud the rotated half of a wired key stays: at nothing, no head of its group could ever learn to use it."""


@dataclass(frozen=True)
class Rooms:
    """Orthonormal rows [channels, hidden]: parts of the residual stream, so that nothing is written over anything.

    `common` [hidden] is the one channel that all embeddings share.
    """

    common: Tensor
    own: Tensor
    back: tuple[Tensor, Tensor, Tensor]
    recent: Tensor


def rooms(hidden: int) -> Rooms:
    common, own, one, two, three, recent = _orthonormal(hidden, hidden).split([1, OWN, *BACK, RECENT])
    return Rooms(common[0], own, (one, two, three), recent)


def start(model: Step) -> None:
    """Fill every parameter. Uses torch's global generator."""
    for name, p in model.named_parameters():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            nn.init.constant_(p, SHARPNESS)
        elif p.dim() >= 2 and "vision_model" not in name:
            scale = 0.1 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
            nn.init.normal_(p, std=scale / math.sqrt(p.shape[-1]))
    with torch.no_grad():
        room = rooms(model.shape.hidden)
        own = torch.randn(model.shape.vocab, OWN) * (EMBEDDING_NORM / math.sqrt(OWN)) @ room.own
        model.model.embed_tokens.weight.copy_(own + COMMON_NORM * room.common)
        for head in model.heads():
            head.weight.copy_(own * HEAD_SCALE)
        layers = model.model.layers
        for layer in (layers[1], layers[3]):
            _say_what_is_seen(layer.self_attn, model.shape, room)
        _look_back(layers[0].self_attn, model.shape, room)
        _find_and_repeat(layers[1].self_attn, model.shape, room)
        _find_past_a_joint(layers[3].self_attn, model.shape, room)


def _orthonormal(rows: int, columns: int) -> Tensor:
    """A random matrix whose rows are orthonormal, or its columns if there are fewer of them."""
    tall = torch.linalg.qr(torch.randn(max(rows, columns), min(rows, columns)))[0]
    return tall if rows >= columns else tall.T


def _loudness(channels: int) -> float:
    """How loud a look back is written: the same whatever the room, although a small one holds less of the token."""
    return math.sqrt(OWN / channels)


def _look_back(attention: Attention, shape: Shape, room: Rooms) -> None:
    """Heads 0, 1 and 2 look 1, 2 and 3 tokens back, head 3 at the last few, and each writes elsewhere what it sees."""
    dim, half = shape.head_dim, shape.head_dim // 2
    speeds = shape.sliding_theta ** (-torch.arange(half, dtype=torch.float32) / half)
    keys = torch.zeros(2, dim)
    keys[0, NEAR] = 1.0
    keys[1, SLOW] = NEARNESS
    keys[1, STILL] = math.sqrt(3 * (1 - NEARNESS**2))
    for group, key in enumerate(keys):
        rows = slice(group * dim, (group + 1) * dim)
        attention.k_proj.weight[rows] = torch.outer(key, room.common) + BLUR * torch.randn(dim, shape.hidden)
        attention.v_proj.weight[rows] = 0.0
        attention.v_proj.weight[rows.start : rows.start + OWN] = room.own
    looks = [(back, NEAR, basis) for back, basis in enumerate(room.back, 1)] + [(0, SLOW, room.recent)]
    for head, (back, channels, basis) in enumerate(looks):
        query = torch.zeros(dim)
        query[:half][channels] = torch.cos(-back * speeds[channels])
        query[half:][channels] = torch.sin(-back * speeds[channels])
        rows = slice(head * dim, (head + 1) * dim)
        attention.g_proj.weight[head] = 0.0
        attention.q_proj.weight[rows] = torch.outer(query, room.common) + BLUR * torch.randn(dim, shape.hidden)
        attention.o_proj.weight[:, rows] = 0.0
        attention.o_proj.weight[:, rows.start : rows.start + len(basis)] = _loudness(len(basis)) * basis.T


def _say_what_is_seen(attention: Attention, shape: Shape, room: Rooms) -> None:
    """All heads write the token they look at: where to look can only be learnt if looking there already helps."""
    dim = shape.head_dim
    for group in range(shape.kv_groups):
        attention.v_proj.weight[group * dim : group * dim + OWN] = room.own
    for head in range(shape.full_heads):
        attention.o_proj.weight[:, head * dim : head * dim + OWN] = SAYING * room.own.T


def _find_and_repeat(attention: Attention, shape: Shape, room: Rooms) -> None:
    """Group 0 finds where the last token stood before, group 1 where the last few did; both say what came after."""
    one, two, _ = room.back
    mixed = _orthonormal(shape.head_dim // 2, len(one))
    _wire(attention, shape, 0, mixed @ one, mixed @ room.own[: len(one)], room.own, REPEATING[0])
    parts = [
        math.sqrt(weight / channels) * _orthonormal(channels, len(basis))
        for weight, channels, basis in zip(MATCH, MATCH_CHANNELS, (*room.back, room.recent), strict=True)
    ]
    key = [part @ basis for part, basis in zip(parts, (*room.back, room.recent), strict=True)]
    first, second, third = (_loudness(channels) for channels in BACK)
    query = [
        parts[0] @ room.own[: BACK[0]] * first,
        parts[1] @ one[: BACK[1]] * second / first,
        parts[2] @ two[: BACK[2]] * third / second,
        parts[3] @ room.recent,
    ]
    _wire(attention, shape, 1, torch.cat(key), torch.cat(query), room.own, REPEATING[1])


def _find_past_a_joint(attention: Attention, shape: Shape, room: Rooms) -> None:
    """From the token before a mark (`":`, `>`, `", "`) to what stood behind that token and another mark (`: `, ` = `).

    A key was written, its value comes; a value was written, the next key comes. Both marks take two tokens.
    """
    _, two, _ = room.back
    look = _orthonormal(shape.head_dim // 2, len(two)) @ two
    _wire(attention, shape, 0, look, look, room.own, HINTING)


def _wire(
    attention: Attention, shape: Shape, group: int, key: Tensor, query: Tensor, own: Tensor, loudness: float
) -> None:
    """The first head of a full layer's group matches a query with a key by the channels that are not rotated (distance
    must not matter), and repeats the token it finds. The group's other heads are free, and so are the rotated channels.

    The gate is wired too: a random one shuts the head for some tokens, or with some seeds for most.
    """
    dim, plain = shape.head_dim, shape.head_dim // 2
    attention.k_proj.weight[group * dim : group * dim + plain] *= QUIET
    attention.k_proj.weight[group * dim + plain : (group + 1) * dim] = key
    head = group * (shape.full_heads // shape.kv_groups)
    first = head * dim
    attention.g_proj.weight[head] = 0.0
    attention.q_proj.weight[first : first + plain] = 0.0
    attention.q_proj.weight[first + plain : first + dim] = query
    attention.o_proj.weight[:, first : first + OWN] = loudness * own.T
