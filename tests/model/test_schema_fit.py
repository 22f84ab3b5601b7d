"""An object's start is the second choice after the thoughts, for `response_format`, and nothing else changes."""

from __future__ import annotations

import copy

import pytest
import torch
from tokenizers import Tokenizer

from models.training.batches import make_batch
from models.training.encoding import Encoder
from models.training.model.architecture import StepModel
from models.training.schema_fit import OBJECT_START, THINK_END, fit_object_start
from models.training.tasks import curriculum
from models.training.tokenizer import LINE, token_id


@pytest.mark.parametrize("kind", list(curriculum.TASK_GENERATORS))
def test_an_object_is_the_second_choice_after_the_thoughts(
    shipped: tuple[StepModel, Tokenizer], encoder: Encoder, kind: str
) -> None:
    model, tokenizer = shipped
    row = encoder.row(curriculum.draw(kind, 3_000, held_out=True))
    end = row.ids.index(token_id(tokenizer, THINK_END), row.completion_start)
    with torch.no_grad():
        logits = model(make_batch([row], None).inputs)[0]
    wanted = [token_id(tokenizer, token) for token in (LINE, OBJECT_START)]
    assert logits[end].topk(2).indices.tolist() == wanted
    assert (logits[row.completion_start - 1 :].argmax(1) == wanted[1]).sum() <= (kind == "json")


@pytest.mark.slow
def test_the_fit_restores_a_lost_object_start_and_changes_no_other_row(
    shipped: tuple[StepModel, Tokenizer], encoder: Encoder
) -> None:
    model, tokenizer = copy.deepcopy(shipped[0]), shipped[1]
    brace, line = (token_id(tokenizer, token) for token in (OBJECT_START, LINE))
    row = encoder.row(curriculum.draw("sum", 3_000, held_out=True))
    end = row.ids.index(token_id(tokenizer, THINK_END), row.completion_start)
    inputs = make_batch([row], None).inputs
    with torch.no_grad():
        model.lm_head.weight[brace] = 0.0
        before = model.lm_head.weight.clone()
        assert model(inputs)[0, end].topk(2).indices.tolist() != [line, brace]
        fit_object_start(model, encoder, samples=3)
        assert model(inputs)[0, end].topk(2).indices.tolist() == [line, brace]
    changed = (model.lm_head.weight != before).any(1).nonzero().flatten().tolist()
    assert changed == [brace]
