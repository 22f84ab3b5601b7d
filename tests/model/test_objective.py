"""What the heads predict and from where, and how held-out samples and drafts are counted."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tokenizers import Tokenizer

from models.training import objective
from models.training.batches import Batch, make_batch
from models.training.encoding import Encoder
from models.training.model.architecture import ModelInputs, StepModel
from models.training.model.dimensions import ModelDimensions
from models.training.tasks import curriculum

SMALL = ModelDimensions(vocab=64, hidden=32, head_dim=16, dense_width=48, expert_width=16, shared_width=32, window=4)


@pytest.fixture
def small() -> StepModel:
    torch.manual_seed(0)
    model = StepModel(SMALL, 63)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return model


@pytest.fixture
def batch() -> Batch:
    ids = torch.randint(0, 60, (2, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[0, 4:9] = mask[1, 3:6] = True
    return Batch(ModelInputs(ids, torch.arange(9).expand(2, -1)), mask, ())


def test_each_head_predicts_one_token_further_within_the_targets(small: StepModel, batch: Batch) -> None:
    outputs = objective.predict(small, batch, with_mtp=True)
    flat = batch.inputs.ids.flatten()
    for k, (targets, indices) in enumerate(zip(outputs.targets, outputs.indices, strict=True)):
        sources = [*range(3, 8 - k), *range(9 + 2, 9 + 5 - k)]
        assert indices.tolist() == sources
        assert targets.tolist() == flat[torch.tensor(sources, dtype=torch.long) + 1 + k].tolist()
        assert outputs.logits[k].shape == (len(sources), SMALL.vocab)


def test_the_trunk_s_logits_are_those_of_the_whole_pass_with_and_without_drafts(small: StepModel, batch: Batch) -> None:
    whole = small(batch.inputs).flatten(0, 1)[batch.source_indices]
    for with_mtp in (False, True):
        torch.testing.assert_close(objective.predict(small, batch, with_mtp=with_mtp).logits[0], whole)


def test_a_prediction_does_not_depend_on_later_tokens(small: StepModel, batch: Batch) -> None:
    """Nor does a draft, beyond the tokens that it is given."""
    before = objective.predict(small, batch, with_mtp=True)
    batch.inputs.ids[0, 8] = (batch.inputs.ids[0, 8] + 1) % 60
    after = objective.predict(small, batch, with_mtp=True)
    for k, (a, b) in enumerate(zip(before.logits, after.logits, strict=True)):
        known = before.indices[k] < 8 - k
        torch.testing.assert_close(a[known], b[known])


def test_the_mtp_losses_reach_the_trunk_with_a_small_part_of_their_gradient(small: StepModel, batch: Batch) -> None:
    weight = small.model.layers[0].self_attn.o_proj.weight

    def gradient(model_batch: Batch) -> torch.Tensor:
        _, *mtp = objective.predict(small, model_batch, with_mtp=True).logits
        found: torch.Tensor = torch.autograd.grad(mtp[0].square().mean(), weight)[0]
        return found

    with pytest.MonkeyPatch.context() as patch:
        scaled = gradient(batch)
        patch.setattr(objective, "MTP_GRADIENT_SCALE", 1.0)
        torch.testing.assert_close(scaled, gradient(batch) * 0.03, rtol=1e-3, atol=1e-9)


def test_the_loss_weighs_the_trunk_above_each_mtp_layer(small: StepModel, batch: Batch) -> None:
    outputs = objective.predict(small, batch, with_mtp=True)
    total, each = objective.loss(outputs)
    wanted = [
        torch.nn.functional.cross_entropy(x, y).item() for x, y in zip(outputs.logits, outputs.targets, strict=True)
    ]
    assert each == pytest.approx(wanted)
    assert total.item() == pytest.approx(wanted[0] + 0.3 * sum(wanted[1:]), rel=1e-5)
    trunk_only, each = objective.loss(objective.predict(small, batch, with_mtp=False))
    assert [trunk_only.item()] == pytest.approx(each)


def test_later_mtp_layers_lose_their_attention_for_good(small: StepModel, batch: Batch) -> None:
    objective.disable_later_mtp_attention(small)
    first, *later = small.mtp_layers()
    x = torch.randn(1, 5, SMALL.hidden)
    table = small.rotary_tables(batch.inputs)[0]
    table = (table[0][:, :5], table[1][:, :5])
    assert not torch.equal(first.attend(x, table), x)
    for layer in later:
        assert torch.equal(layer.attend(x, table), x)
        assert not any(p.requires_grad for p in layer.self_attn.parameters())


def test_a_sample_is_right_only_if_all_of_its_tokens_are(
    shipped: tuple[StepModel, Tokenizer], encoder: Encoder
) -> None:
    model = shipped[0]
    rows = [encoder.row(curriculum.draw("sum", number, held_out=True)) for number in (1_000, 1_001)]
    rows.append(encoder.row(curriculum.draw("copy", 1_000, held_out=True)))
    wrong = rows[1].ids.copy()
    wrong[rows[1].completion_start + 4] = encoder.word_token("circle")
    rows[1] = dataclasses.replace(rows[1], ids=wrong)
    scores = objective.score(model, [make_batch(rows, None)])
    model.eval()
    assert scores.total == {"sum": 2, "copy": 1}
    assert scores.right == {"sum": 1, "copy": 1}
    assert (scores.score("sum"), scores.score("copy"), scores.score("list")) == (0.5, 1.0, 0.0)


def test_a_draft_is_accepted_only_up_to_its_first_wrong_token() -> None:
    scores = objective.EvalScores({}, {}, [0, 0, 0], [0, 0, 0])
    hits = [torch.tensor([True, False, True]), torch.tensor([False, True, True]), torch.tensor([True, True])]
    indices = [torch.tensor([2, 3, 4]), torch.tensor([2, 3, 4]), torch.tensor([2, 4])]
    objective._count_accepted_drafts(scores, 9, hits, indices)
    assert scores.drafted == [3, 3, 2]
    assert scores.accepted == [2, 1, 1]
    assert scores.acceptance(1) == pytest.approx(1 / 3)
