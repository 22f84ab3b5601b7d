"""What an untrained model can do already, and which weights training leaves alone."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer

from models.training import batches, objective
from models.training.dist_rank import DistRank
from models.training.model.architecture import StepModel
from models.training.model.dimensions import ModelDimensions
from models.training.tokenizer import spelling_pieces, token_id
from models.training.weight_init import init_weights, make_subspaces

DIMS = ModelDimensions()


@pytest.fixture
def untrained() -> StepModel:
    torch.manual_seed(0)
    model = StepModel(DIMS, 0)
    init_weights(model)
    return model


def test_an_untrained_model_repeats_random_tokens(untrained: StepModel) -> None:
    batch = batches.random_copy_batch(0, DistRank(), 4_096, DIMS.vocab - 40)
    with torch.no_grad():
        outputs = objective.predict(untrained, batch, with_mtp=False)
    assert (outputs.logits[0].argmax(-1) == outputs.targets[0]).float().mean() > 0.9


def test_subspaces_are_orthonormal_and_fill_the_hidden_size() -> None:
    spaces = make_subspaces(DIMS.hidden)
    rows = torch.cat([spaces.common.unsqueeze(0), spaces.token, *spaces.previous, spaces.recent])
    assert rows.shape == (DIMS.hidden, DIMS.hidden)
    torch.testing.assert_close(rows @ rows.T, torch.eye(DIMS.hidden), atol=1e-5, rtol=0.0)


def test_embeddings_and_spelling_pieces_are_frozen_and_digits_are_trained_as_outputs(
    untrained: StepModel, shipped: tuple[StepModel, Tokenizer]
) -> None:
    tokenizer = shipped[1]
    pieces = spelling_pieces(tokenizer)
    objective.freeze_embeddings(untrained, pieces)
    batch = batches.random_copy_batch(0, DistRank(), 1_024, DIMS.vocab - 40)
    total, _ = objective.loss(objective.predict(untrained, batch, with_mtp=False))
    total.backward()
    head = untrained.lm_head.weight.grad
    assert untrained.model.embed_tokens.weight.grad is None
    assert head is not None
    assert not head[pieces].any()
    assert head[[token_id(tokenizer, digit) for digit in "0123456789"]].any(-1).all()
