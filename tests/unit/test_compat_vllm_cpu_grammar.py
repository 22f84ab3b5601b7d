"""What a schema leaves without an end gets one, and nothing else of it changes."""

from __future__ import annotations

import pytest

from serve_app.compat.vllm_cpu_grammar import MAX_ITEMS, MAX_STRING_CHARS, bounded

STRING = {"type": "string"}
SHORT = {"type": "string", "maxLength": MAX_STRING_CHARS}


@pytest.mark.parametrize(
    ("schema", "narrow"),
    [
        (STRING, SHORT),
        ({"type": ["string", "null"]}, {"type": ["string", "null"], "maxLength": MAX_STRING_CHARS}),
        ({**STRING, "minLength": 100}, {**STRING, "minLength": 100, "maxLength": MAX_STRING_CHARS + 100}),
        ({"type": "array", "items": STRING}, {"type": "array", "items": SHORT, "maxItems": MAX_ITEMS}),
        ({"properties": {"a": {"properties": {"b": STRING}}}}, {"properties": {"a": {"properties": {"b": SHORT}}}}),
        ({"anyOf": [STRING, {"type": "integer"}]}, {"anyOf": [SHORT, {"type": "integer"}]}),
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
        {"type": "array", "items": {"type": "integer"}, "maxItems": 100},
        {"type": "object", "properties": {"type": {"type": "integer"}}},
        {"const": {"type": "string"}},
        {"type": "integer"},
        True,
    ],
)
def test_what_has_an_end_stays_as_it_is(schema: object) -> None:
    assert bounded(schema) == schema
