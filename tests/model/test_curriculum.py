"""The curriculum is the same everywhere, keeps its halves apart, and says what it wants in the model's format."""

import json
import re

import pytest

from models.training import checkpoint
from models.training.batches import TASK_WEIGHTS
from models.training.encoding import Renderer, call_text, completion
from models.training.tasks import curriculum
from models.training.tasks.sample import Sample
from models.training.tasks.vocab import CITIES, NAMES, NOUNS, Vocab, is_held_out


def every(count: int, *, held_out: bool = False) -> list[Sample]:
    return [curriculum.draw(kind, i, held_out=held_out) for kind in curriculum.TASK_GENERATORS for i in range(count)]


def test_a_number_always_gives_the_same_sample() -> None:
    once = [curriculum.draw("tool", i, held_out=False) for i in range(20)]
    again = [curriculum.draw("tool", i, held_out=False) for i in reversed(range(20))]
    assert once == again[::-1]


def test_the_seeded_curriculum_has_not_changed() -> None:
    """A change here makes another model: retrain, and publish the figures of the new one."""
    assert curriculum.draw("sum", 0, held_out=True, is_plain=True).task.answer == "40 + 4 = 44."


def test_training_and_held_out_share_no_listed_word() -> None:
    words = set(
        re.findall(r"\w+", " ".join(s.task.request for s in every(200, held_out=True) if s.task.kind == "copy"))
    )
    # Two or three letters may be made up by chance.
    seen = {w for w in words if len(w) > 3 and w in set(CITIES + NAMES + NOUNS)}
    assert seen
    assert all(is_held_out(w) for w in seen)


def test_a_confusable_vocabulary_uses_few_characters() -> None:
    vocab = Vocab(curriculum.task_rng("train", "alike", 0), held_out=False, is_confusable=True)
    plain = Vocab(curriculum.task_rng("train", "plain", 0), held_out=False)
    assert len(set("".join(vocab.code() for _ in range(100)))) <= 3 + 3 + len("-") < 20
    assert len(set("".join(plain.code() for _ in range(100)))) > 20
    numbers = [vocab.number(0, 999) for _ in range(200)]
    assert sum(vocab.has_allowed_digits(number) for number in numbers) > 100
    assert len({vocab.made_up()[:2] for _ in range(200)}) < len({plain.made_up()[:2] for _ in range(200)}) / 2


def test_every_task_has_a_weight() -> None:
    assert set(TASK_WEIGHTS) == set(curriculum.TASK_GENERATORS)


def test_more_effort_thinks_longer() -> None:
    for sample in every(20):
        short, middle, long = (
            len(Sample(sample.task, sample.messages, effort).thought) for effort in ("low", "medium", "high")
        )
        assert short < middle < long


@pytest.mark.parametrize("kind", ["tool", "result"])
def test_calls_fit_the_offered_tools(kind: str) -> None:
    for i in range(100):
        task = curriculum.draw(kind, i, held_out=True).task
        offered = {tool["function"]["name"]: tool["function"]["parameters"]["properties"] for tool in task.tools}  # type: ignore[index]
        for call in task.calls:
            assert set(call.arguments) == set(offered[call.name])


def test_json_answers_are_json() -> None:
    for i in range(100):
        assert isinstance(json.loads(curriculum.draw("json", i, held_out=True).task.answer), dict)


def test_argument_values_stand_in_the_request() -> None:
    for i in range(100):
        sample = curriculum.draw("tool", i, held_out=True)
        for call in sample.task.calls:
            assert all(value in sample.task.request for value in call.arguments.values())


def test_a_finished_turn_reads_back_as_the_template_writes_it() -> None:
    """A completion is what the template makes of the same turn in a later request."""
    renderer = Renderer(checkpoint.CHAT_TEMPLATE)
    sample = curriculum.draw("tool", 3, held_out=False)
    calls = [{"function": {"name": c.name, "arguments": c.arguments}} for c in sample.task.calls]
    turn = {"role": "assistant", "content": None, "reasoning_content": sample.thought, "tool_calls": calls}
    after = Sample(sample.task, (*sample.messages, turn), sample.effort, sample.tools)
    assert renderer.prompt(after).startswith(renderer.prompt(sample) + completion(sample))
    assert call_text(sample.task.calls[0]) in completion(sample)
