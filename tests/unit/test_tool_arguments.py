"""A call's arguments become JSON while they are said, however they are cut."""

from __future__ import annotations

import json
import random

import pytest
from vllm.parser.qwen3 import _qwen3_arg_converter

from serve_app.vllm_patches.tool_arguments import ToolArguments

GOOD = "\n<parameter=path>\na.py\n</parameter>\n<parameter=text>\nif a<b:\n    say('hi \"you\" 🎉')\n\n</parameter>\n"


def arguments(*, first_whole: bool = False) -> ToolArguments:
    """Of a tool whose key `n` is a number, and every other text."""
    return ToolArguments(
        lambda key, text: int(text) if key == "n" else text, lambda key: key != "n", first_whole=first_whole
    )


@pytest.mark.parametrize("seed", range(50))
@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        "<parameter=a></parameter><parameter=b>\n\n</parameter>",
        "< parameter = a >x< / parameter >",
        "<parameter=a>x<parameter=b>y</parameter>",
        "<parameter=a></param</parameter>",
    ],
)
def test_however_it_is_cut_it_is_what_vllm_makes_of_the_whole(text: str, seed: int) -> None:
    chance, said, out, place = random.Random(seed), arguments(), "", 0
    while place < len(text):
        size = chance.randint(1, 6)
        out += said.feed(text[place : place + size])
        place += size
    expected = {key.strip(): value for key, value in json.loads(_qwen3_arg_converter(text, partial=False)).items()}
    assert json.loads(out + said.close()) == expected


def test_nothing_is_said_before_a_first_value_begins() -> None:
    said = arguments()
    assert said.feed("\n<parameter=path>\n") == ""
    assert said.feed("a") == '{"path": "a'


def test_a_first_parameter_may_be_waited_for_and_the_next_streams() -> None:
    said = arguments(first_whole=True)
    assert said.feed("<parameter=path>a.py") == ""
    assert said.feed("</parameter><parameter=text>b") == '{"path": "a.py", "text": "b'


def test_a_value_that_is_no_text_comes_when_it_is_complete() -> None:
    said = arguments()
    assert said.feed("<parameter=n>1") == ""
    assert said.feed("2</parameter>") == '{"n": 12'
    assert said.close() == "}"


@pytest.mark.parametrize(
    ("text", "json_text"),
    [("", "{}"), ("\n", "{}"), ("no parameters", "{}"), ('\n{"city": "Paris"}\n', '{"city": "Paris"}'), ("[1]", "{}")],
)
def test_a_call_without_parameters_has_an_object_all_the_same(text: str, json_text: str) -> None:
    said = arguments()
    assert said.feed(text) + said.close() == json_text


def test_a_forgotten_closing_tag_of_the_last_parameter_is_not_missed() -> None:
    said = arguments()
    assert said.feed("<parameter=city>\nParis\n") + said.close() == '{"city": "Paris"}'
