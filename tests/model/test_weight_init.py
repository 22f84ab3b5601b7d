"""What an untrained model can do already, and what stays as it was made."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer

from models.training import batches, checkpoint, objective, tokenizer
from models.training.dist_rank import Share
from models.training.model.architecture import Step
from models.training.model.dimensions import Shape
from models.training.weight_init import start


@pytest.fixture
def begun() -> Step:
    torch.manual_seed(0)
    model = Step(Shape(), 0)
    start(model)
    return model


def test_an_untrained_model_says_random_tokens_again(begun: Step) -> None:
    drill = batches.drill(0, Share(), 4_096, Shape().vocab - 40)
    with torch.no_grad():
        heads = objective.run(begun, drill, drafts=False)
    assert (heads.logits[0].argmax(-1) == heads.answers[0]).float().mean() > 0.9


def test_embeddings_and_pieces_of_words_are_held_and_digits_are_learnt_as_answers(begun: Step) -> None:
    shipped = Tokenizer.from_file(str(checkpoint.HOME / "tokenizer.json"))
    pieces = tokenizer.pieces(shipped)
    objective.hold_spelling(begun, pieces)
    total, _ = objective.loss(objective.run(begun, batches.drill(0, Share(), 4_096, Shape().vocab - 40), drafts=False))
    total.backward()
    head = begun.lm_head.weight.grad
    assert begun.model.embed_tokens.weight.grad is None
    assert head is not None
    assert not head[pieces].any()
    assert head[[tokenizer.token_id(shipped, digit) for digit in "0123456789"]].any(-1).all()
