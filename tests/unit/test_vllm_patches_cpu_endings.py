"""What a schema leaves without an end gets one, and nothing else of it changes."""

from __future__ import annotations

import json

import pytest

from serve_app.vllm_patches.cpu_endings import (
    MAX_ITEMS,
    MAX_NUMBER,
    MAX_STRING_CHARS,
    PLAIN_TEXT,
    bounded,
    end_repetition,
)

STRING = {"type": "string"}
SHORT = {"type": "string", "pattern": PLAIN_TEXT % (0, MAX_STRING_CHARS)}
NUMBER = {"minimum": -MAX_NUMBER, "maximum": MAX_NUMBER}


@pytest.mark.parametrize(
    ("schema", "narrow"),
    [
        (STRING, SHORT),
        ({"type": ["string", "null"]}, {**SHORT, "type": ["string", "null"]}),
        ({**STRING, "minLength": 100}, {**STRING, "pattern": PLAIN_TEXT % (100, MAX_STRING_CHARS + 100)}),
        ({"type": "array", "items": STRING}, {"type": "array", "items": SHORT, "maxItems": MAX_ITEMS}),
        ({"properties": {"a": {"properties": {"b": STRING}}}}, {"properties": {"a": {"properties": {"b": SHORT}}}}),
        ({"anyOf": [STRING, {"type": "integer"}]}, {"anyOf": [SHORT, {"type": "integer", **NUMBER}]}),
        ({"$defs": {"x": STRING}, "$ref": "#/$defs/x"}, {"$defs": {"x": SHORT}, "$ref": "#/$defs/x"}),
    ],
)  # fmt: skip
def test_free_strings_and_arrays_are_bounded_at_any_depth(schema: object, narrow: object) -> None:
    assert bounded(schema) == narrow


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "maxLength": 4000},
        {"type": "string", "pattern": "^a+$"},
        {"type": "string", "enum": ["a", "b"]},
        {"type": "string", "format": "date"},
        {"type": "array", "items": {"type": "boolean"}, "maxItems": 100},
        {"type": "object", "properties": {"type": {"type": "boolean"}}},
        {"type": "integer", "minimum": 3},
        {"const": {"type": "string"}},
        True,
    ],
)
def test_what_has_an_end_stays_as_it_is(schema: object) -> None:
    assert bounded(schema) == schema


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schema", "said", "is_said"),
    [
        ({"type": "string"}, '"h\u00e4ll\u00f6 \U0001f600"', True),
        ({"type": "string"}, '"bell \x07"', False),
        ({"type": "string"}, f'"{"x" * (MAX_STRING_CHARS + 1)}"', False),
        ({"type": "integer"}, "-12", True),
        ({"type": "integer"}, "1" * 12, False),
        ({"type": "number"}, "76.25", True),
        ({"type": "number"}, "1." + "1" * 40, False),
        ({"type": "array", "items": {"type": "boolean"}}, "[true, false]", True),
        ({"type": "array", "items": {"type": "boolean"}}, f"[{', '.join(['true'] * (MAX_ITEMS + 1))}]", False),
    ],
)
def test_the_narrower_grammar_ends_and_says_json(schema: dict[str, object], said: str, is_said: bool) -> None:
    import xgrammar
    from xgrammar.testing import _is_grammar_accept_string

    holder = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    grammar = xgrammar.Grammar.from_json_schema(json.dumps(bounded(holder)), max_whitespace_cnt=1)
    assert _is_grammar_accept_string(grammar, f'{{"a": {said}}}') is is_said
    assert not _is_grammar_accept_string(grammar, f'{{"a":   {said}}}'), "more white space than one character"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tokens", "ignore_eos", "ends"),
    [
        ([7] * 64, False, True),
        ([7, 8, 9] * 16, False, True),
        ([7, 8, 9] * 16, True, False),
        ([1, 2, 3, *[4] * 13], False, False),
        (list(range(160)), False, False),
    ],
)
def test_an_answer_that_only_repeats_itself_ends(tokens: list[int], ignore_eos: bool, ends: bool) -> None:
    from vllm.sampling_params import SamplingParams
    from vllm.v1.core.sched import utils
    from vllm.v1.request import Request, RequestStatus

    params = SamplingParams(max_tokens=4096, ignore_eos=ignore_eos)
    request = Request("r", prompt_token_ids=[1], sampling_params=params, pooling_params=None)
    check_stop = end_repetition(utils.check_stop, utils)
    ended = False
    for token in tokens:
        request.append_output_token_ids(token)
        ended = ended or check_stop(request, 8192)
    assert ended is ends
    assert (request.status is RequestStatus.FINISHED_LENGTH_CAPPED) is ends
