"""The vision tower of the shipped weights, by itself."""

from __future__ import annotations

import torch

from models.training import checkpoint
from models.training import vision_init as sight
from models.training.batches import Encoder
from models.training.encoding import Renderer
from models.training.model.dimensions import Shape


def test_every_image_token_says_the_colour_and_the_shape() -> None:
    model, tokenizer = checkpoint.load(checkpoint.HOME, Shape())
    encoder = Encoder(tokenizer, Renderer(checkpoint.ASSETS / "chat_template.jinja"))
    assert sight.named(model, encoder.word_token, 3 * sight.GROUP) > 0.95


def test_a_smaller_picture_has_the_same_names() -> None:
    """A crop of 504 pixels has patches of the same size, and positions that are resampled."""
    model, _ = checkpoint.load(checkpoint.HOME, Shape())
    album = sight.Album.of(range(4), held_out=True)
    with torch.no_grad():
        whole = model.see(album.pixels).mean(1)
        small = model.see(torch.nn.functional.interpolate(album.pixels, (504, 504), mode="bilinear")).mean(1)
    assert torch.nn.functional.cosine_similarity(whole, small).min() > 0.8
