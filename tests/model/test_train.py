"""A training run: what a step changes, when the MTP layers join, and that a resumed run repeats an unbroken one."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from models.training import batches, card, checkpoint
from models.training.dist_rank import DistRank
from models.training.model.architecture import StepModel
from models.training.model.dimensions import ModelDimensions
from models.training.optimizers import ADAM_RATE, MTP_FROM, make_optimizers
from models.training.train import COPY_STEPS, TrainingOptions, TrainingRun

STEPS = 50


@pytest.fixture
def run(shipped: tuple[StepModel, Tokenizer], tmp_path: Path) -> TrainingRun:
    """A run just before its first batch of tasks, from the shipped weights, which need no vision initialisation."""
    return TrainingRun(STEPS, saved_state(shipped[0], tmp_path, COPY_STEPS), DistRank(), shipped[1])


def saved_state(model: StepModel, folder: Path, step: int) -> Path:
    state = folder / "state.pt"
    fresh, _ = checkpoint.load(checkpoint.HOME, ModelDimensions())
    fresh.model.embed_tokens.weight.requires_grad_(False)
    for p in (*fresh.vision_model.parameters(), *fresh.vit_large_projector.parameters()):
        p.requires_grad_(False)
    for layer in fresh.mtp_layers()[1:]:
        for p in (*layer.self_attn.parameters(), *layer.input_layernorm.parameters()):
            p.requires_grad_(False)
    optimizers = [o.state_dict() for o in make_optimizers(fresh, DistRank())]
    progress = {"step": step, "chunk": 0, "seconds": 60.0, "history": []}
    torch.save({"model": model.state_dict(), "optimizers": optimizers, "progress": progress}, state)
    return state


def weights(run: TrainingRun) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in run.model.state_dict().items()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


@pytest.mark.slow
def test_a_resumed_run_repeats_an_unbroken_one(run: TrainingRun, tmp_path: Path) -> None:
    first, second = islice(batches.training_chunk(0, run.encoder, 1_024, DistRank(), size=20), 2)
    run.train_step(first)
    run.save_state()
    assert not list(tmp_path.glob("*.part"))
    resumed = TrainingRun(STEPS, run.state, DistRank(), run.tokenizer)
    assert resumed.progress == run.progress
    for each in (run, resumed):
        each.train_step(second)
    assert not changed(weights(run), weights(resumed))
    assert run.progress.step == resumed.progress.step == COPY_STEPS + 2
    assert [o.state_dict()["param_groups"] for o in run.optimizers] == [
        o.state_dict()["param_groups"] for o in resumed.optimizers
    ]


@pytest.mark.slow
def test_a_step_trains_what_is_not_frozen_and_mtp_layers_only_late(run: TrainingRun) -> None:
    copy = batches.random_copy_batch(0, DistRank(), 512, 900)
    before = weights(run)
    run.progress.step = int(STEPS * MTP_FROM) - 1
    run.train_step(copy)
    early = weights(run)
    trained = changed(before, early)
    assert {"model.layers.0.self_attn.q_proj.weight", "lm_head.weight", "model.norm.weight"} <= trained
    assert "model.layers.1.moe.router_bias" in trained
    assert not any("vision" in name or "projector" in name or "embed_tokens" in name for name in trained)
    assert not any(name.startswith(f"model.layers.{i}.") for name in trained for i in (4, 5, 6))
    assert run.losses[0] > 0.0 == run.losses[1]
    assert run.train_step(copy) == copy.inputs.ids.numel()
    late = changed(early, weights(run))
    assert {f"model.layers.{i}.mlp.up_proj.weight" for i in (4, 5, 6)} <= late
    assert not any("layers.5.self_attn" in name or "layers.6.self_attn" in name for name in late)
    assert all(run.losses)


def test_rates_follow_the_schedule_and_batches_its_order(run: TrainingRun) -> None:
    run.progress.step = COPY_STEPS
    run.set_rates()
    rates = {group["is_draft"]: group["lr"] for group in run.optimizers[1].param_groups}
    assert rates == {False: pytest.approx(ADAM_RATE * 10 / 42.5), True: pytest.approx(ADAM_RATE)}
    kinds = [len(batch.samples) > 0 for batch in islice(run.batches(), 13)]
    assert kinds == [True] * 11 + [False, True]
    run.progress.step = COPY_STEPS - 1
    assert not next(run.batches()).samples
    run.progress.step = STEPS
    assert not list(run.batches())


@pytest.mark.slow
def test_a_run_logs_scores_saves_and_ends_with_a_checkpoint(
    run: TrainingRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.training.train.EVAL_SAMPLES", 1)
    monkeypatch.setattr("models.training.train.TOKENS_PER_STEP", 512)
    run.progress.step = STEPS - 1
    run.run(eval_every=STEPS)
    assert run.progress.step == STEPS
    assert run.progress.seconds > 60.0
    printed = capsys.readouterr().out
    assert "held-out: copy " in printed
    assert torch.load(run.state, weights_only=True)["progress"]["history"] == run.progress.history
    assert run.progress.history[0].keys() == {"step", *batches.TASK_WEIGHTS}
    out = tmp_path / "out"
    run.finish(out, fit_samples=1, eval_samples=1)
    report = json.loads((out / card.TRAINING).read_text())
    assert report["steps"] == STEPS
    assert report["held_out"].keys() == batches.TASK_WEIGHTS.keys()
    assert len(report["accepted"]) == 3
    assert {path.name for path in out.iterdir()} == {p.name for p in checkpoint.HOME.iterdir()} - {card.FIGURES}
    loaded, tokenizer = checkpoint.load(out, ModelDimensions())
    assert tokenizer.to_str() == run.tokenizer.to_str()
    torch.testing.assert_close(loaded.lm_head.weight, run.model.lm_head.weight, atol=0.02, rtol=0.01)
    run.log_progress(1_234.5)
    assert f"step {STEPS}/{STEPS}" in capsys.readouterr().out


def test_ranks_meet_at_a_file_beside_the_state(tmp_path: Path) -> None:
    options = TrainingOptions(1, tmp_path, tmp_path / "a.pt", 2, 1)
    assert options.rendezvous == tmp_path / "a.rendezvous"
