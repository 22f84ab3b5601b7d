"""Constructs the vision encoder, so that every image token states the colour and the shape of the figure.

The encoder's first block computes edges and hues of each patch. Its second block averages them over the image and
derives colour and shape. The projector turns these into the embeddings of their words, so that the text model repeats
what it sees as it repeats a word of the prompt.

No gradient descent: the weights are set directly or fitted by ridge regression. Trained with the loss of the answers,
the encoder did not learn shapes from thousands of images.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.training.dist_rank import DistRank
from models.training.model.architecture import StepModel
from models.training.model.vision import PerceptionEncoder, VisionBlock
from models.training.tasks import curriculum
from models.training.tasks.image_tasks import COLOURS, JITTER, PIXEL_MEAN, PIXEL_STD, SHAPES, draw_image, to_pixels

# The encoder's channels, by content.
MEANS = [0, 3, 6]
"""Mean of red, green and blue in a patch. The next two channels hold the colour's slope to the right and downwards."""
DIRECTIONS = 12
EDGES = slice(9, 9 + DIRECTIONS)
ZERO = EDGES.stop
"""Always zero before a norm. A norm subtracts the mean over the channels; this channel then holds its negative, which
every reader subtracts again."""
CONSTANTS = (ZERO + 1, ZERO + 2)
"""A constant and its negative. Without them, norms would map all greys to the same values."""
HUES = slice(CONSTANTS[1] + 1, CONSTANTS[1] + 1 + len(COLOURS))
MEAN_EDGES = slice(HUES.stop, HUES.stop + DIRECTIONS)
"""Mean over the image, in every patch; so is the next."""
MEAN_HUES = slice(MEAN_EDGES.stop, MEAN_EDGES.stop + len(COLOURS))
SUMMARY = slice(MEAN_EDGES.start, MEAN_HUES.stop)
COMMON = SUMMARY.stop
"""One everywhere: gives image tokens what all word embeddings have in common."""
NAMES = slice(COMMON + 1, COMMON + 1 + len(COLOURS) + len(SHAPES))
"""One channel for each colour and each shape."""

CONSTANT = 1.5
SLOPE_GAIN = 5.0
"""Scale of the slopes. Summed over an outline, a direction's response grows with the square of the slope."""
EDGE_GAIN, HUE_GAIN = 60.0, 20.0
"""Amplify what an outline or a figure adds to a mean over the image."""
HUE_UNITS = 64
HUE_SPREAD, NAME_SPREAD = (1.5, 1.5), (4.0, 1.0)
"""Scales of the random weights and biases of the hidden units from which hues and names are fitted."""
HUE_PATCHES = 600
"""Patches of each colour that hues are fitted to."""
FITTED_IMAGES, TESTED_IMAGES, IMAGES_PER_BATCH = 2_048, 192, 16
RIDGE = 1e-4
"""Relative to the features' mean square."""
PATCH_STRIDE = 16
"""Names are fitted to every 16th patch: the features of an image's patches differ little."""

WordToken = Callable[[str], int]
"""Gives the token of a word with a blank before it."""


@dataclass(frozen=True)
class LabelledImages:
    pixels: Tensor
    """[images, 3, side, side]"""
    labels: Tensor
    """Indices [images, 2] into `COLOURS` and `SHAPES`."""

    @classmethod
    def draw(cls, numbers: range, *, held_out: bool) -> "LabelledImages":
        """The images of the curriculum's samples with these numbers."""
        tasks = (curriculum.draw("image", number, held_out=held_out).task for number in numbers)
        specs = [task.image for task in tasks if task.image is not None]
        labels = [[list(COLOURS).index(spec.colour), SHAPES.index(spec.shape)] for spec in specs]
        return cls(torch.stack([to_pixels(draw_image(spec)) for spec in specs]), torch.tensor(labels))


@torch.no_grad()
def init_vision(model: StepModel, word_token: WordToken, rank: DistRank, images: int = FITTED_IMAGES) -> None:
    """Construct the encoder and the projector, and freeze them. Names are fitted to `images`: about a minute."""
    encoder = model.vision_model
    local, overall = encoder.transformer.resblocks
    _clear(encoder)
    _init_edges(encoder, local)
    _fit_hues(encoder, local)
    _init_averages(overall)
    _init_projector(model, word_token, _fit_names(encoder, local, overall, rank, images))
    freeze_vision(model)


def freeze_vision(model: StepModel) -> None:
    """Exclude the encoder and the projector from training: gradient steps destroy the constructed solution."""
    for p in (*model.vision_model.parameters(), *model.vit_large_projector.parameters()):
        p.requires_grad_(False)


@torch.no_grad()
def vision_accuracy(model: StepModel, word_token: WordToken, images: int = TESTED_IMAGES) -> float:
    """Share of the tokens of held-out images whose nearest colour and shape words are both right.

    `images` is rounded up to whole batches of `IMAGES_PER_BATCH`.
    """
    is_right: list[Tensor] = []
    words = [torch.tensor([word_token(word) for word in names]) for names in (COLOURS, SHAPES)]
    for batch in _image_batches(range(0, images, IMAGES_PER_BATCH), held_out=True):
        scores = model.encode_images(batch.pixels) @ model.model.embed_tokens.weight.T
        both = [scores[..., w].argmax(-1) == batch.labels[:, i : i + 1] for i, w in enumerate(words)]
        is_right.append((both[0] & both[1]).float())
    return float(torch.cat(is_right).mean())


def _image_batches(firsts: range, *, held_out: bool) -> Iterator[LabelledImages]:
    for first in firsts:
        yield LabelledImages.draw(range(first, first + IMAGES_PER_BATCH), held_out=held_out)


def _clear(encoder: PerceptionEncoder) -> None:
    """Zero the encoder. Only the colour channels keep positional embeddings, which are too small to matter."""
    encoder.conv1.weight.zero_()
    encoder.positional_embedding[:, EDGES.start :] = 0.0
    encoder.positional_embedding[:, CONSTANTS] = torch.tensor([CONSTANT, -CONSTANT])
    for block in encoder.transformer.resblocks:
        for p in (block.attn.in_proj_weight, *block.attn.out_proj.parameters(), *block.mlp.parameters()):
            p.zero_()
        block.ls_1.gamma.fill_(1.0)
        block.ls_2.gamma.fill_(1.0)


def _init_edges(encoder: PerceptionEncoder, local: VisionBlock) -> None:
    """Patch embedding: mean and slopes of each colour. First MLP: strength of the edges in each direction."""
    patch = encoder.dims.patch_size
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
            local.mlp.c_fc.weight[unit, ZERO] = -slopes.sum()
            local.mlp.c_proj.weight[EDGES.start + direction, unit] = 0.5


def _fit_hues(encoder: PerceptionEncoder, local: VisionBlock) -> None:
    """Fit the channels that say which of `COLOURS` a patch has, to patches of one colour. Greys have none of them."""
    units = slice(len(MEANS) * DIRECTIONS, len(MEANS) * DIRECTIONS + HUE_UNITS)
    weights = nn.functional.normalize(torch.randn(HUE_UNITS, len(MEANS)), dim=1) * HUE_SPREAD[0]
    local.mlp.c_fc.weight[units, MEANS] = weights
    local.mlp.c_fc.weight[units, ZERO] = -weights.sum(1)
    local.mlp.c_fc.weight[units, CONSTANTS[0]] = torch.randn(HUE_UNITS) * HUE_SPREAD[0]
    local.mlp.c_fc.bias[units] = torch.randn(HUE_UNITS) * HUE_SPREAD[1]
    levels: list[Tensor] = []
    for variants in COLOURS.values():
        chosen = torch.tensor(variants, dtype=torch.float)[torch.arange(HUE_PATCHES) % len(variants)]
        levels.append((chosen + torch.randint(-JITTER, JITTER + 1, (HUE_PATCHES, 3))).clamp(0, 255))
    levels.append(torch.linspace(25, 230, 2 * HUE_PATCHES).unsqueeze(1).expand(-1, 3))
    normalised = (torch.cat(levels) / 255 - torch.tensor(PIXEL_MEAN)) / torch.tensor(PIXEL_STD)
    targets = nn.functional.one_hot(torch.arange(len(normalised)) // HUE_PATCHES)[:, : len(COLOURS)].float()
    x = torch.zeros(len(normalised), encoder.dims.width)
    x[:, MEANS] = normalised
    x = encoder.ln_pre(x + encoder.positional_embedding[torch.arange(len(x)) % encoder.grid**2])
    features = _with_bias(_hidden_units(local, x)[:, units])
    solution = _ridge(features.T @ features, features.T @ targets)
    local.mlp.c_proj.weight[HUES, units] = solution[:-1].T
    local.mlp.c_proj.bias[HUES] = solution[-1]


def _init_averages(overall: VisionBlock) -> None:
    """Let the second block's attention, which averages over the image, write the means of edges and hues."""
    value = overall.attn.in_proj_weight.shape[1] * 2
    for sources, means, gain in ((EDGES, MEAN_EDGES, EDGE_GAIN), (HUES, MEAN_HUES, HUE_GAIN)):
        for source, channel in zip(_range(sources), _range(means), strict=True):
            overall.attn.in_proj_weight[value + channel, source] = gain
            overall.attn.in_proj_weight[value + channel, ZERO] = -gain
            overall.attn.out_proj.weight[channel, channel] = 1.0
    overall.mlp.c_proj.bias[COMMON] = 1.0


def _fit_names(
    encoder: PerceptionEncoder, local: VisionBlock, overall: VisionBlock, rank: DistRank, images: int
) -> Tensor:
    """Fit the name channels to the images, which the ranks share.

    The weights from the hidden units and the bias are set here. Returned are those from the means [`SUMMARY`, names].
    """
    units, means = len(overall.mlp.c_fc.weight), SUMMARY.stop - SUMMARY.start
    weights = nn.functional.normalize(torch.randn(units, means), dim=1)
    overall.mlp.c_fc.weight[:, SUMMARY] = weights * NAME_SPREAD[0]
    overall.mlp.c_fc.bias.copy_(torch.randn(units) * NAME_SPREAD[1])
    count = means + units + 1
    square, product = torch.zeros(count, count), torch.zeros(count, NAMES.stop - NAMES.start)
    firsts = range(rank.rank * IMAGES_PER_BATCH, images, rank.world_size * IMAGES_PER_BATCH)
    for batch in _image_batches(firsts, held_out=False):
        x = encoder.patches(batch.pixels)
        table = encoder.table(encoder.grid)
        x = local(x, table)
        x = (x + overall.attn(overall.ln_1(x), table))[:, ::PATCH_STRIDE]
        features = _with_bias(torch.cat([x[..., SUMMARY], _hidden_units(overall, x)], dim=-1)).flatten(0, 1)
        sizes = (len(COLOURS), len(SHAPES))
        one_hot = [nn.functional.one_hot(batch.labels[:, i], n) for i, n in enumerate(sizes)]
        targets = torch.cat(one_hot, dim=1).float()
        square += features.T @ features / x.shape[1]
        product += features.T @ targets.repeat_interleave(x.shape[1], 0) / x.shape[1]
    rank.all_reduce_sum([square, product])
    solution = _ridge(square, product)
    overall.mlp.c_proj.weight[NAMES] = solution[means:-1].T
    overall.mlp.c_proj.bias[NAMES] = solution[-1]
    return solution[:means]


def _init_projector(model: StepModel, word_token: WordToken, weights_from_means: Tensor) -> None:
    """Downsamplers take the middle patch. The projector maps each name to the embedding of its word, orthogonally to
    the other names' words."""
    width = model.vision_model.dims.width
    for conv in (model.vision_model.vit_downsampler1, model.vision_model.vit_downsampler2):
        conv.weight.zero_()
        conv.bias.zero_()
        for channel in range(width):
            conv.weight[channel, channel, 1, 1] = 1.0
    embeddings = model.model.embed_tokens.weight
    common = embeddings.mean(0)
    words = torch.tensor([word_token(word) for word in (*COLOURS, *SHAPES)])
    model.vit_large_projector.weight.zero_()
    centred = embeddings[words] - common
    from_names = torch.linalg.pinv(centred) * centred.square().sum(1).mean()
    model.vit_large_projector.weight[:, NAMES] = from_names
    model.vit_large_projector.weight[:, SUMMARY] = from_names @ weights_from_means.T
    model.vit_large_projector.weight[:, COMMON] = common


def _hidden_units(block: VisionBlock, x: Tensor) -> Tensor:
    units: Tensor = block.mlp.hidden(block.ln_2(x))
    return units


def _with_bias(features: Tensor) -> Tensor:
    return torch.cat([features, torch.ones_like(features[..., :1])], dim=-1)


def _ridge(square: Tensor, product: Tensor) -> Tensor:
    """Solution of ridge regression from `features.T @ features` and `features.T @ targets`."""
    return torch.linalg.solve(square + RIDGE * square.diagonal().mean() * torch.eye(len(square)), product)


def _range(channels: slice) -> range:
    return range(channels.start, channels.stop)
