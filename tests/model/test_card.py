"""The card has the figures of the files beside the weights, and the commands print and write what they say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from models.training import card, checkpoint
from models.training.__main__ import main, make_parser
from models.training.encoding import Renderer, completion
from models.training.tasks import curriculum


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the shipped checkpoint."""
    return Path(shutil.copytree(checkpoint.HOME, tmp_path / "copy"))


def test_the_shipped_card_is_the_generated_one(folder: Path) -> None:
    (folder / "README.md").write_text("x" * len((checkpoint.HOME / "README.md").read_bytes()))
    main(["card", "--folder", str(folder)])
    assert (folder / "README.md").read_text() == (checkpoint.HOME / "README.md").read_text()


def test_the_card_has_the_figures_of_the_evaluation(folder: Path) -> None:
    figures = json.loads((folder / card.FIGURES).read_text())
    figures |= {"scores": {"copy": 0.123}, "acceptance": [0.5, 0.25], "tokens_per_draft": 1.75, "notes": ""}
    (folder / card.FIGURES).write_text(json.dumps(figures))
    text = card.results(folder)
    assert "| copy | 12.3% |" in text
    assert "0.50 / 0.25 accepted by position, 1.75 tokens a step" in text
    assert card.sizes(folder).startswith("## Shape\n3,624,472 parameters, 7.3 MB")


def test_before_an_evaluation_the_card_has_the_scores_of_the_training(folder: Path) -> None:
    (folder / card.FIGURES).unlink()
    report = {"steps": 77, "minutes": 12.6, "held_out": {"sum": 0.5}, "accepted": [0.9]}
    (folder / card.TRAINING).write_text(json.dumps(report))
    assert "| sum | 50.0% |" in card.results(folder)
    assert "Drafts accepted by position: 0.90." in card.results(folder)
    assert "train --steps 77`" in card.recipe(folder)
    assert "13 minutes" in card.recipe(folder)


def test_sample_prints_the_asked_samples(renderer: Renderer, capsys: pytest.CaptureFixture[str]) -> None:
    main(["sample", "json", "--count", "2", "--first", "5", "--held-out"])
    printed = capsys.readouterr().out
    for number in (5, 6):
        sample = curriculum.draw("json", number, held_out=True)
        assert f"--- json {number}\n{renderer.prompt(sample)}{completion(sample)}\n" in printed
    assert printed.count("--- json") == 2


def test_commands_that_the_card_names_exist(capsys: pytest.CaptureFixture[str]) -> None:
    options = make_parser().parse_args(["train", "--steps", "6000"])
    assert (options.steps, options.out, options.workers) == (6_000, checkpoint.HOME, 2)
    assert make_parser().parse_args(["evaluate", "--url", "http://x"]).each == 100
    with pytest.raises(SystemExit):
        main([])
    assert "COMMAND" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["sample", "poem"])
    assert "invalid choice" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["chat_template.jinja", "configuration_step3p7.py"])
def test_the_shipped_files_are_the_assets(name: str) -> None:
    assert (checkpoint.HOME / name).read_bytes() == (checkpoint.ASSETS / name).read_bytes()


def test_saving_the_shipped_model_writes_the_same_files(folder: Path, tmp_path: Path) -> None:
    model, tokenizer = checkpoint.load(folder, checkpoint.ModelDimensions())
    checkpoint.save(model, tokenizer, tmp_path / "saved")
    for path in (tmp_path / "saved").iterdir():
        assert path.read_bytes() == (checkpoint.HOME / path.name).read_bytes(), path.name
