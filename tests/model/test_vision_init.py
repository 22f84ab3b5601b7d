"""The vision encoder of the shipped weights, and the weights that `vision_init` sets without fitting."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer

from models.training import vision_init
from models.training.dist_rank import DistRank
from models.training.encoding import Encoder
from models.training.model.architecture import StepModel
from models.training.model.dimensions import ModelDimensions
from models.training.vision_init import IMAGES_PER_BATCH, LabelledImages
from models.training.weight_init import init_weights


@pytest.mark.slow
def test_image_tokens_state_the_colour_and_the_shape(shipped: tuple[StepModel, Tokenizer], encoder: Encoder) -> None:
    assert vision_init.vision_accuracy(shipped[0], encoder.word_token, IMAGES_PER_BATCH) > 0.95


def test_a_smaller_image_has_the_same_names(shipped: tuple[StepModel, Tokenizer]) -> None:
    """A crop of 504 pixels has patches of the same size, and resampled positions."""
    images = LabelledImages.draw(range(4), held_out=True)
    crops = torch.nn.functional.interpolate(images.pixels, (504, 504), mode="bilinear")
    with torch.no_grad():
        large, small = (shipped[0].encode_images(pixels).mean(1) for pixels in (images.pixels, crops))
    assert torch.nn.functional.cosine_similarity(large, small).min() > 0.8


def test_training_mode_averages_as_full_attention_does(shipped: tuple[StepModel, Tokenizer]) -> None:
    attention = shipped[0].vision_model.transformer.resblocks[1].attn
    x = torch.randn(2, 36, ModelDimensions().vision.width, generator=torch.Generator().manual_seed(0))
    table = shipped[0].vision_model.table(6)
    with torch.no_grad():
        full = attention(x, table)
        try:
            averaged = attention.train()(x, table)
        finally:
            attention.eval()
    torch.testing.assert_close(averaged.expand_as(full), full, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_a_fit_on_few_images_already_beats_chance(encoder: Encoder) -> None:
    """The whole construction on 48 images instead of 2,048. Chance is 1 in 24."""
    torch.manual_seed(0)
    model = StepModel(ModelDimensions(), encoder.image)
    init_weights(model)
    vision_init.init_vision(model, encoder.word_token, DistRank(), images=48)
    assert vision_init.vision_accuracy(model, encoder.word_token, IMAGES_PER_BATCH) > 0.6
    frozen = [*model.vision_model.parameters(), *model.vit_large_projector.parameters()]
    assert not any(p.requires_grad for p in frozen)
