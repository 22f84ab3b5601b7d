"""Every task's answer follows from its request, as computed here independently of the generator."""

from __future__ import annotations

import json
import re
from random import Random

import pytest
import torch

from models.training.tasks import curriculum
from models.training.tasks.chat_tasks import ABOUT, NOT_OFFERED
from models.training.tasks.image_tasks import COLOURS, JITTER, PIXEL_MEAN, PIXEL_STD, SHAPES, draw_image, to_pixels
from models.training.tasks.sample import FigureImage, Task
from models.training.tasks.text_tasks import LISTS
from models.training.tasks.tool_catalogue import TOPICS
from models.training.tasks.tool_tasks import KEYS, distractors
from models.training.tasks.vocab import Vocab, is_held_out, slot_words, spelling_corpus

COUNT = 60


def tasks(kind: str, *, held_out: bool = True) -> list[Task]:
    return [curriculum.draw(kind, i, held_out=held_out).task for i in range(COUNT)]


def offered(task: Task) -> dict[str, dict[str, str]]:
    """JSON types of the parameters of every offered tool."""
    found: dict[str, dict[str, str]] = {}
    for tool in task.tools:
        function = tool["function"]
        assert isinstance(function, dict)
        found[function["name"]] = {k: v["type"] for k, v in function["parameters"]["properties"].items()}
    return found


def test_a_copy_repeats_the_text_of_its_request() -> None:
    for task in tasks("copy"):
        quoted = re.search(r'"(.*)"', task.request, re.DOTALL)
        bare = re.sub(r"^[\w ]+: ", "", task.request)
        assert task.answer == (quoted.group(1) if quoted else bare)


def test_a_count_has_every_number_of_its_range_once() -> None:
    for task in tasks("count"):
        numbers = [int(n) for n in re.findall(r"\d+", task.request)]
        first, last = numbers if len(numbers) == 2 else (1, numbers[0])
        assert task.answer.removesuffix(".").split(", ") == [str(n) for n in range(first, last + 1)]


def test_a_list_has_numbered_lines_of_the_right_length() -> None:
    for task in tasks("list"):
        lines = task.answer.split("\n")
        assert [line.split(". ", 1)[0] for line in lines] == [str(i + 1) for i in range(len(lines))]
        items = [line.split(". ", 1)[1] for line in lines]
        topic = next((t for t in LISTS if task.request.rstrip(".?").endswith(t)), None)
        if topic is None:
            assert len(set(items)) == 1
            assert f'"{items[0]}"' in task.request
            assert str(len(items)) in re.sub(r'".*"', "", task.request).replace(".", " ").split()
        else:
            asked = re.search(r"first (\d+)", task.request)
            assert items == LISTS[topic][: int(asked.group(1)) if asked else None]


def test_a_sum_is_right_and_so_are_the_steps_to_it() -> None:
    for task in tasks("sum"):
        a, b = (int(n) for n in re.findall(r"\d+", task.request))
        assert task.answer == f"{a} + {b} = {a + b}."
        steps = re.findall(r"(\d+) \+ (\d+) = (\d+)", " ".join(task.thoughts))
        assert all(int(x) + int(y) == int(z) for x, y, z in steps)
        assert int(re.findall(r"and (\d+) is (\d+)", task.thoughts[0])[0][1]) == (a + b) // 10


def test_a_json_object_has_the_keys_and_values_of_its_request() -> None:
    for task in tasks("json"):
        for key, value in json.loads(task.answer).items():
            text = value if isinstance(value, str) else json.dumps(value)
            assert re.search(rf"{re.escape(key)}(: | = | is ){re.escape(text)}", task.request)


def test_a_call_uses_offered_tools_with_values_of_their_types() -> None:
    for task in tasks("tool"):
        assert 1 <= len(task.calls) <= 2
        assert task.thoughts[0].startswith("One call." if len(task.calls) == 1 else "Two calls.")
        for call in task.calls:
            types = offered(task)[call.name]
            assert types.keys() == call.arguments.keys()
            for key, value in call.arguments.items():
                parsed = value if types[key] == "string" else json.loads(value)
                wanted = {"string": str, "integer": int, "number": (int, float), "boolean": bool}[types[key]]
                assert isinstance(parsed, wanted)
            assert call.name not in TOPICS or f'For {TOPICS[call.name]}: "{call.name}"' in task.thoughts[0]


def test_a_result_is_reported_as_the_tools_gave_it() -> None:
    for task in tasks("result"):
        calls, *results = task.after
        assert calls["role"] == "assistant"
        made = calls["tool_calls"]
        assert isinstance(made, list)
        assert len(made) == len(results)
        reported = [line for line in re.split(r"The (?:first |second )?tool says:\n", task.answer) if line]
        assert [text.strip("\n") for text in reported] == [result["content"] for result in results]
        assert not task.calls


def test_a_chat_answers_what_the_model_is_and_offers_no_tool_that_would_help() -> None:
    for task in tasks("chat"):
        assert task.answer.endswith(ABOUT)
        assert not {TOPICS.get(name) for name in offered(task)} & NOT_OFFERED


def test_an_image_shows_the_figure_that_its_task_names() -> None:
    for task in tasks("image")[:20]:
        spec = task.image
        assert spec is not None
        assert f"{spec.colour} {spec.shape}" in task.answer
        drawn = draw_image(spec)
        assert drawn.size == spec.size
        assert drawn.getpixel((0, 0)) == spec.background
        centre = (int(spec.centre[0] * spec.size[0]), int(spec.centre[1] * spec.size[1]))
        assert drawn.getpixel(centre) == spec.rgb
        distances = [
            max(abs(a - b) for a, b in zip(spec.rgb, variant, strict=True)) for variant in COLOURS[spec.colour]
        ]
        assert min(distances) <= JITTER


@pytest.mark.parametrize(("shape", "area"), [("circle", 3.1416), ("square", 2.0), ("triangle", 1.299)])
def test_a_figure_has_the_area_of_its_shape(shape: str, area: float) -> None:
    """A polygon's corners are on the circle of its radius."""
    spec = FigureImage("red", shape, (0, 0, 0), (400, 500), (0.5, 0.5), 0.3, 0.05, (255, 0, 0))
    filled = (torch.tensor(list(draw_image(spec).convert("L").tobytes())) > 0).sum()
    assert filled.item() == pytest.approx(area * 120**2, rel=0.03)
    assert shape in SHAPES


def test_pixels_are_normalised_by_channel() -> None:
    spec = FigureImage("red", "circle", (255, 0, 51), (60, 40), (0.5, 0.5), 0.1, 0.0, (0, 0, 0))
    pixels = to_pixels(draw_image(spec), side=32)
    assert pixels.shape == (3, 32, 32)
    wanted = [(v - m) / s for v, m, s in zip((1.0, 0.0, 0.2), PIXEL_MEAN, PIXEL_STD, strict=True)]
    assert pixels[:, 0, 0].tolist() == pytest.approx(wanted, abs=1e-4)


def test_context_keeps_the_request_and_adds_only_what_training_has() -> None:
    plain = [curriculum.draw("sum", i, held_out=False, is_plain=True) for i in range(200)]
    dressed = [curriculum.draw("sum", i, held_out=False) for i in range(200)]
    assert all(len(sample.messages) == 1 and not sample.tools for sample in plain)
    assert all(a.task == b.task for a, b in zip(plain, dressed, strict=True))
    assert all(sample.task.request in str(sample.messages[-1]["content"]) for sample in dressed)
    with_turn = sum(any(m["role"] == "assistant" for m in sample.messages) for sample in dressed)
    assert with_turn / 200 == pytest.approx(curriculum.EARLIER_TURNS_TRAIN_SHARE, abs=0.1)
    with_tools = sum(bool(sample.tools) for sample in dressed)
    assert with_tools / 200 == pytest.approx(curriculum.UNUSED_TOOLS_TRAIN_SHARE, abs=0.1)


def test_distractors_avoid_the_given_topics_and_repeat_none() -> None:
    for seed in range(30):
        vocab = Vocab(Random(seed), held_out=False)
        functions = [tool["function"] for tool in distractors(vocab, 5, {"weather", "time"})]
        topics = [TOPICS[f["name"]] for f in functions if isinstance(f, dict) and f["name"] in TOPICS]
        assert len(functions) == 5
        assert len(set(topics)) == len(topics)
        assert not {"weather", "time"} & set(topics)


@pytest.mark.parametrize("held_out", [False, True])
def test_values_belong_to_their_split(*, held_out: bool) -> None:
    vocab = Vocab(Random(1), held_out=held_out)
    values = [vocab.made_up() for _ in range(50)] + [str(vocab.number(0, 999)) for _ in range(50)]
    assert all(is_held_out(value) == held_out for value in values)
    assert not any(is_held_out(word) for word in spelling_corpus(Random(0)))


def test_slot_words_are_single_lower_case_words() -> None:
    words = slot_words()
    assert {"paris", "york", "anna", "apple", "apples"} <= words
    assert all(word == word.lower() and " " not in word for word in words)
    assert "weather" not in words
    assert "city" in KEYS
