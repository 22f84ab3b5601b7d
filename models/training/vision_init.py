"""What the vision tower says, fixed before anything is learnt: pictures, in the text model's own words.

Its first block finds edges and hues in each patch, its second hands their means over the picture to every patch and
names colour and shape from them. The projector turns the names into the embeddings of their words, so every image token
says both, and the text model has only to repeat what it sees as it repeats what it reads.

Nothing of it is learnt by gradients: what is not wired is solved for, by ridge regression. Learning the tower from the
answers' loss taught no shapes in thousands of pictures.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.training.dist_rank import Share
from models.training.model.architecture import Step
from models.training.model.vision import PerceptionEncoder, VisionBlock
from models.training.tasks import curriculum
from models.training.tasks import images as pictures
from models.training.tasks.image_tasks import COLOURS, JITTER, SHAPES

# Channels of the tower, by what they hold.
MEANS = [0, 3, 6]
"""Of red, green and blue in a patch; each is followed by its slope across and its slope down."""
DIRECTIONS = 12
EDGES = slice(9, 9 + DIRECTIONS)
NOTHING = EDGES.stop
"""Norms subtract the mean over the channels. What this one shows is that mean, and every reading takes it off again."""
STEADY = (NOTHING + 1, NOTHING + 2)
"""The same everywhere, one the other's negative: they keep norms from making every grey alike."""
HUES = slice(STEADY[1] + 1, STEADY[1] + 1 + len(COLOURS))
ALL_EDGES = slice(HUES.stop, HUES.stop + DIRECTIONS)
"""Mean over the picture, in every patch."""
ALL_HUES = slice(ALL_EDGES.stop, ALL_EDGES.stop + len(COLOURS))
SUMMARY = slice(ALL_EDGES.start, ALL_HUES.stop)
COMMON = SUMMARY.stop
"""One everywhere: image tokens get the vector that all embeddings share."""
NAMES = slice(COMMON + 1, COMMON + 1 + len(COLOURS) + len(SHAPES))

STEADINESS = 1.5
SLOPE_GAIN = 5.0
"""How much a slope is made of: what a direction adds up to over an outline is its square."""
EDGE_GAIN, HUE_GAIN = 60.0, 20.0
"""What is left of an outline or a figure in a mean, against what a patch shows itself."""
HUE_UNITS = 64
HUE_SPREAD, NAME_SPREAD = (1.5, 1.5), (4.0, 1.0)
"""Of the weights and biases of the hidden units that are drawn, from which hues and names are solved for."""
PATCHES = 600
"""Patches of each colour that hues are solved from."""
FITTED, EXAMINED, GROUP = 2_048, 192, 16
"""Pictures that names are solved from, pictures that are asked for, and how many of them at once."""
RIDGE = 1e-4
"""Of the features' mean square."""
TOKEN_STEP = 16
"""Names are solved from every so manieth patch: they say nearly the same."""

WordToken = Callable[[str], int]
"""The one token of a word with a blank before it."""


@dataclass(frozen=True)
class Album:
    """Pictures as a server sees them, and what they show."""

    pixels: Tensor
    names: Tensor
    """Indices [pictures, 2] into `COLOURS` and `SHAPES`."""

    @classmethod
    def of(cls, numbers: range, *, held_out: bool) -> "Album":
        """The curriculum's pictures of these numbers."""
        lessons = (curriculum.draw("image", number, held_out=held_out).lesson for number in numbers)
        shown = [lesson.picture for lesson in lessons if lesson.picture is not None]
        names = [[list(COLOURS).index(picture.colour), SHAPES.index(picture.shape)] for picture in shown]
        return cls(torch.stack([pictures.pixels(pictures.draw(p)) for p in shown]), torch.tensor(names))


@torch.no_grad()
def make(model: Step, word_token: WordToken, share: Share) -> None:
    """Wire and solve the tower and the projector, and hold them from here on."""
    encoder = model.vision_model
    local, overall = encoder.transformer.resblocks
    _clear(encoder)
    _see_edges(encoder, local)
    _see_hues(encoder, local)
    _hand_to_all(overall)
    _speak(model, word_token, _name(encoder, local, overall, share))
    hold(model)


def hold(model: Step) -> None:
    """Nothing that comes later may move the tower, or its words would be lost on the trunk."""
    for p in (*model.vision_model.parameters(), *model.vit_large_projector.parameters()):
        p.requires_grad_(False)


@torch.no_grad()
def named(model: Step, word_token: WordToken, pictures_asked: int = EXAMINED) -> float:
    """Share of the image tokens of unseen pictures that are nearest to the right colour and the right shape.

    Pictures are drawn `GROUP` at a time.
    """
    is_right: list[Tensor] = []
    words = [torch.tensor([word_token(word) for word in kind]) for kind in (COLOURS, SHAPES)]
    for album in _albums(range(0, pictures_asked, GROUP), held_out=True):
        scores = model.see(album.pixels) @ model.model.embed_tokens.weight.T
        both = [scores[..., w].argmax(-1) == album.names[:, i : i + 1] for i, w in enumerate(words)]
        is_right.append((both[0] & both[1]).float())
    return float(torch.cat(is_right).mean())


def _albums(firsts: range, *, held_out: bool) -> Iterator[Album]:
    for first in firsts:
        yield Album.of(range(first, first + GROUP), held_out=held_out)


def _clear(encoder: PerceptionEncoder) -> None:
    """Only the colours keep a place of their own in the picture; it is too faint to be read."""
    encoder.conv1.weight.zero_()
    encoder.positional_embedding[:, EDGES.start :] = 0.0
    encoder.positional_embedding[:, STEADY] = torch.tensor([STEADINESS, -STEADINESS])
    for block in encoder.transformer.resblocks:
        for p in (block.attn.in_proj_weight, *block.attn.out_proj.parameters(), *block.mlp.parameters()):
            p.zero_()
        block.ls_1.gamma.fill_(1.0)
        block.ls_2.gamma.fill_(1.0)


def _see_edges(encoder: PerceptionEncoder, local: VisionBlock) -> None:
    """Mean, slope across and slope down of each colour, and from those how much of an edge runs each way."""
    patch = encoder.shape.patch_size
    ramp = torch.linspace(-1.0, 1.0, patch).expand(patch, patch) * 3 / patch**2
    for colour, mean in enumerate(MEANS):
        encoder.conv1.weight[mean, colour] = 1.0 / patch**2
        encoder.conv1.weight[mean + 1, colour] = ramp
        encoder.conv1.weight[mean + 2, colour] = ramp.T
    for direction in range(DIRECTIONS):
        angle = 2 * math.pi * direction / DIRECTIONS
        slopes = torch.tensor([math.cos(angle), math.sin(angle)]) * SLOPE_GAIN
        for colour, mean in enumerate(MEANS):
            unit = len(MEANS) * direction + colour
            local.mlp.c_fc.weight[unit, mean + 1 : mean + 3] = slopes
            local.mlp.c_fc.weight[unit, NOTHING] = -slopes.sum()
            local.mlp.c_proj.weight[EDGES.start + direction, unit] = 0.5


def _see_hues(encoder: PerceptionEncoder, local: VisionBlock) -> None:
    """Solve, from patches of one colour, for channels that say which of the named colours a patch has: grey is none."""
    units = slice(len(MEANS) * DIRECTIONS, len(MEANS) * DIRECTIONS + HUE_UNITS)
    weights = nn.functional.normalize(torch.randn(HUE_UNITS, len(MEANS)), dim=1) * HUE_SPREAD[0]
    local.mlp.c_fc.weight[units, MEANS] = weights
    local.mlp.c_fc.weight[units, NOTHING] = -weights.sum(1)
    local.mlp.c_fc.weight[units, STEADY[0]] = torch.randn(HUE_UNITS) * HUE_SPREAD[0]
    local.mlp.c_fc.bias[units] = torch.randn(HUE_UNITS) * HUE_SPREAD[1]
    shown: list[Tensor] = []
    for variants in COLOURS.values():
        chosen = torch.tensor(variants, dtype=torch.float)[torch.arange(PATCHES) % len(variants)]
        shown.append((chosen + torch.randint(-JITTER, JITTER + 1, (PATCHES, 3))).clamp(0, 255))
    shown.append(torch.linspace(25, 230, 2 * PATCHES).unsqueeze(1).expand(-1, 3))
    levels = (torch.cat(shown) / 255 - torch.tensor(pictures.MEAN)) / torch.tensor(pictures.SPREAD)
    wanted = nn.functional.one_hot(torch.arange(len(levels)) // PATCHES)[:, : len(COLOURS)].float()
    x = torch.zeros(len(levels), encoder.shape.width)
    x[:, MEANS] = levels
    x = encoder.ln_pre(x + encoder.positional_embedding[torch.arange(len(x)) % encoder.grid**2])
    features = _with_one(_hidden(local, x)[:, units])
    solved = _ridge(features.T @ features, features.T @ wanted)
    local.mlp.c_proj.weight[HUES, units] = solved[:-1].T
    local.mlp.c_proj.bias[HUES] = solved[-1]


def _hand_to_all(overall: VisionBlock) -> None:
    """The attention averages over the picture: its values are what each patch has found."""
    value = overall.attn.in_proj_weight.shape[1] * 2
    for found, everywhere, gain in ((EDGES, ALL_EDGES, EDGE_GAIN), (HUES, ALL_HUES, HUE_GAIN)):
        for source, channel in zip(_places(found), _places(everywhere), strict=True):
            overall.attn.in_proj_weight[value + channel, source] = gain
            overall.attn.in_proj_weight[value + channel, NOTHING] = -gain
            overall.attn.out_proj.weight[channel, channel] = 1.0
    overall.mlp.c_proj.bias[COMMON] = 1.0


def _name(encoder: PerceptionEncoder, local: VisionBlock, overall: VisionBlock, share: Share) -> Tensor:
    """Solve for the names, from pictures that are shared out to the workers.

    The part of the hidden units and the bias are filled in; the part [`SUMMARY`, names] of the means is returned.
    """
    units, means = len(overall.mlp.c_fc.weight), SUMMARY.stop - SUMMARY.start
    weights = nn.functional.normalize(torch.randn(units, means), dim=1)
    overall.mlp.c_fc.weight[:, SUMMARY] = weights * NAME_SPREAD[0]
    overall.mlp.c_fc.bias.copy_(torch.randn(units) * NAME_SPREAD[1])
    count = means + units + 1
    square, product = torch.zeros(count, count), torch.zeros(count, NAMES.stop - NAMES.start)
    for album in _albums(range(share.rank * GROUP, FITTED, share.workers * GROUP), held_out=False):
        x = encoder.patches(album.pixels)
        table = encoder.table(encoder.grid)
        x = local(x, table)
        x = (x + overall.attn(overall.ln_1(x), table))[:, ::TOKEN_STEP]
        features = _with_one(torch.cat([x[..., SUMMARY], _hidden(overall, x)], dim=-1)).flatten(0, 1)
        kinds = (len(COLOURS), len(SHAPES))
        wanted = torch.cat([nn.functional.one_hot(album.names[:, i], n) for i, n in enumerate(kinds)], dim=1).float()
        square += features.T @ features / x.shape[1]
        product += features.T @ wanted.repeat_interleave(x.shape[1], 0) / x.shape[1]
    share.add_up([square, product])
    solved = _ridge(square, product)
    overall.mlp.c_proj.weight[NAMES] = solved[means:-1].T
    overall.mlp.c_proj.bias[NAMES] = solved[-1]
    return solved[:means]


def _speak(model: Step, word_token: WordToken, from_means: Tensor) -> None:
    """Downsamplers take the patch in the middle; the projector gives each name the embedding of its word,
    less what it shares with the other names' words."""
    width = model.vision_model.shape.width
    for conv in (model.vision_model.vit_downsampler1, model.vision_model.vit_downsampler2):
        conv.weight.zero_()
        conv.bias.zero_()
        for channel in range(width):
            conv.weight[channel, channel, 1, 1] = 1.0
    embeddings = model.model.embed_tokens.weight
    common = embeddings.mean(0)
    words = torch.tensor([word_token(word) for word in (*COLOURS, *SHAPES)])
    model.vit_large_projector.weight.zero_()
    spoken = torch.linalg.pinv(embeddings[words] - common) * (embeddings[words] - common).square().sum(1).mean()
    model.vit_large_projector.weight[:, NAMES] = spoken
    model.vit_large_projector.weight[:, SUMMARY] = spoken @ from_means.T
    model.vit_large_projector.weight[:, COMMON] = common


def _hidden(block: VisionBlock, x: Tensor) -> Tensor:
    units: Tensor = block.mlp.hidden(block.ln_2(x))
    return units


def _with_one(features: Tensor) -> Tensor:
    return torch.cat([features, torch.ones_like(features[..., :1])], dim=-1)


def _ridge(square: Tensor, product: Tensor) -> Tensor:
    return torch.linalg.solve(square + RIDGE * square.diagonal().mean() * torch.eye(len(square)), product)


def _places(channels: slice) -> range:
    return range(channels.start, channels.stop)
