"""The curriculum is the same everywhere, keeps its halves apart, and says what it wants in the model's format."""

import json
import re

import pytest

from models.training import checkpoint
from models.training.batches import WEIGHTS
from models.training.encoding import Renderer, call_text, completion
from models.training.tasks import curriculum
from models.training.tasks.sample import Sample
from models.training.tasks.vocab import CITIES, NAMES, NOUNS, Words, is_held_out


def every(count: int, *, held_out: bool = False) -> list[Sample]:
    return [curriculum.draw(skill, i, held_out=held_out) for skill in curriculum.MAKERS for i in range(count)]


def test_a_number_always_gives_the_same_lesson() -> None:
    once = [curriculum.draw("tool", i, held_out=False) for i in range(20)]
    again = [curriculum.draw("tool", i, held_out=False) for i in reversed(range(20))]
    assert once == again[::-1]


def test_the_seeded_curriculum_has_not_moved() -> None:
    """A change here makes another model: retrain, and publish the figures of the new one."""
    assert curriculum.draw("sum", 0, held_out=True, is_plain=True).lesson.answer == "40 + 4 = 44."


def test_training_and_held_out_share_no_listed_word() -> None:
    words = set(
        re.findall(r"\w+", " ".join(s.lesson.ask for s in every(200, held_out=True) if s.lesson.skill == "copy"))
    )
    # Two or three letters may be made up by chance.
    seen = {w for w in words if len(w) > 3 and w in set(CITIES + NAMES + NOUNS)}
    assert seen
    assert all(is_held_out(w) for w in seen)


def test_where_words_are_alike_few_characters_are_used() -> None:
    words = Words(curriculum.lesson_rng("train", "alike", 0), held_out=False, are_alike=True)
    plain = Words(curriculum.lesson_rng("train", "plain", 0), held_out=False)
    assert len(set("".join(words.code() for _ in range(100)))) <= 3 + 3 + len("-") < 20
    assert len(set("".join(plain.code() for _ in range(100)))) > 20
    numbers = [words.number(0, 999) for _ in range(200)]
    assert sum(words.fits(number) for number in numbers) > 100
    assert len({words.made_up()[:2] for _ in range(200)}) < len({plain.made_up()[:2] for _ in range(200)}) / 2


def test_every_skill_is_taught_and_examined() -> None:
    assert set(WEIGHTS) == set(curriculum.MAKERS)


def test_more_effort_thinks_longer() -> None:
    for sample in every(20):
        short, middle, long = (
            len(Sample(sample.lesson, sample.messages, effort).thought) for effort in ("low", "medium", "high")
        )
        assert short < middle < long


@pytest.mark.parametrize("skill", ["tool", "result"])
def test_calls_fit_the_offered_tools(skill: str) -> None:
    for i in range(100):
        lesson = curriculum.draw(skill, i, held_out=True).lesson
        offered = {tool["function"]["name"]: tool["function"]["parameters"]["properties"] for tool in lesson.tools}  # type: ignore[index]
        for call in lesson.calls:
            assert set(call.arguments) == set(offered[call.name])


def test_json_answers_are_json() -> None:
    for i in range(100):
        assert isinstance(json.loads(curriculum.draw("json", i, held_out=True).lesson.answer), dict)


def test_argument_values_stand_in_the_request() -> None:
    for i in range(100):
        sample = curriculum.draw("tool", i, held_out=True)
        for call in sample.lesson.calls:
            assert all(value in sample.lesson.ask for value in call.arguments.values())


def test_a_finished_turn_reads_back_as_the_template_writes_it() -> None:
    """What the model is taught to write is what the template makes of the same turn afterwards."""
    renderer = Renderer(checkpoint.ASSETS / "chat_template.jinja")
    sample = curriculum.draw("tool", 3, held_out=False)
    calls = [{"function": {"name": c.name, "arguments": c.arguments}} for c in sample.lesson.calls]
    turn = {"role": "assistant", "content": None, "reasoning_content": sample.thought, "tool_calls": calls}
    after = Sample(sample.lesson, (*sample.messages, turn), sample.effort, sample.tools)
    assert renderer.prompt(after).startswith(renderer.prompt(sample) + completion(sample))
    assert call_text(sample.lesson.calls[0]) in completion(sample)
