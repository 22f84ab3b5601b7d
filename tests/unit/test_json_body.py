"""Bodies as clients send them: read as tolerantly as vLLM reads them, repaired or refused in one sentence."""

from __future__ import annotations

import json

import pytest

from serve_app.ingress.requests import json_body
from serve_app.ingress.requests.edits import header_value
from serve_app.protocol.errors import RequestRefused


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (rb'{"a": "cut \ud83d x"}', {"a": "cut � x"}),
        (rb'{"a": "\udc00\ud83d"}', {"a": "��"}),
        (rb'{"\ud83d": {"\udc00": ["\ud83d"]}}', {"�": {"�": ["�"]}}),
        (b'{"a": "x\xed\xa0\xbdy"}', {"a": "x�y"}),
        (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
        ('{"a": "é"}'.encode("utf-16"), {"a": "é"}),
        (b'{"messages": [{"input": {"v": NaN, "w": -Infinity}}]}', {"messages": [{"input": {"v": None, "w": None}}]}),
    ],
)
def test_what_other_readers_take_is_repaired(body: bytes, value: object) -> None:
    decoded, repaired = json_body.decode(body)
    assert decoded == value
    assert repaired
    assert json.loads(json_body.encode(decoded)) == value


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (rb'{"a": "\ud83d\ude00"}', {"a": "😀"}),
        (b'{"a": 1, "a": 2}', {"a": 2}),
        (b'{"seed": 123456789012345678901234567890}', {"seed": 123456789012345678901234567890}),
        (b'{"a": "\\u0000"}', {"a": "\0"}),
    ],
)
def test_what_is_sound_stays_as_it_is(body: bytes, value: object) -> None:
    decoded, repaired = json_body.decode(body)
    assert (decoded, repaired) == (value, False)
    assert json.loads(json_body.encode(decoded)) == value


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"[]", "not an array"),
        (b'"x"', "not a string"),
        (b"null", "not null"),
        (b"true", "not a boolean"),
        (b"1", "not a number"),
        (b"{", "line 1, column 2"),
        (b'{"a": 1,}', "not valid JSON"),
        (b'{"a": 1} x', "not valid JSON"),
        (b'{"a": "\xff"}', "byte 7"),
        (b'{"a": ' + b"9" * 5000 + b"}", "too many digits"),
        (b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}", "nested too deeply"),
        (b'{"a": ' + b"[" * 101 + b"]" * 101 + b"}", "nested too deeply"),
        (b'{"a": NaN, "b": ' + b"[" * 101 + b"]" * 101 + b"}", "nested too deeply"),
    ],
)
def test_what_is_no_object_is_refused_in_one_sentence(body: bytes, says: str) -> None:
    with pytest.raises(RequestRefused, match=says):
        json_body.decode(body)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_parameter_that_is_no_number_is_named(number: str) -> None:
    with pytest.raises(RequestRefused) as refused:
        json_body.decode(f'{{"temperature": {number}}}'.encode())
    assert refused.value.param == "temperature"


def test_a_wide_body_is_not_taken_for_a_deep_one() -> None:
    body = json.dumps({"messages": [{"content": [{"text": "x"}]}] * 5000}).encode()
    assert json_body.decode(body)[1] is False


def test_arguments_of_tool_calls_are_repaired_too() -> None:
    assert json.loads(json_body.repaired_arguments(r'{"x": "\ud83d", "n": 1}')) == {"x": "�", "n": 1}
    for sound in ('{"x": "\\ud83d\\ude00"}', "", "no JSON", '{"x": 1}'):
        assert json_body.repaired_arguments(sound).replace("😀", "\\ud83d\\ude00") == sound
    with pytest.raises(RequestRefused, match="deeply"):
        json_body.repaired_arguments('{"a":' * 1500 + "1" + "}" * 1500)


def test_the_header_of_what_was_left_out_is_short_and_plain() -> None:
    assert header_value(["tools.0 (web_search_20250305)", "x (é\r\n)"]) == b"tools.0 (web_search_20250305), x (???)"
    long = header_value([f"messages.{number} (document)" for number in range(1000)])
    assert len(long) <= 1024
    assert long.endswith(b"more")
    assert len(header_value(["x" * 5000])) <= 1024
