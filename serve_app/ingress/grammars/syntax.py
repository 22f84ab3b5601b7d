"""Checks of a grammar's text alone: its size, and regular expressions that no dialect accepts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import regex

MAX_GRAMMAR_BYTES: Final = 128 << 10
"""Largest schema, grammar or expression. OpenAI's limit is 120,000 characters. Compiling takes seconds at this size,
and grows faster than the size."""

KINDS: Final = ("regex", "choice", "json", "grammar", "structural_tag")


def check_size(value: Any) -> None:
    """Raises `ValueError` for a grammar that is too large to compile within seconds."""
    size = len((value if isinstance(value, str) else json.dumps(value)).encode("utf-8", "replace"))
    if size > MAX_GRAMMAR_BYTES:
        raise ValueError(f"it has {size} bytes; at most {MAX_GRAMMAR_BYTES} are compiled")


def check_patterns(schema: Any) -> None:
    """Raises `ValueError` for a JSON schema that is no JSON, or has a pattern that is no regular expression."""
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except json.JSONDecodeError as error:
            raise ValueError(f"it is not JSON ({error})") from error
    for pattern in patterns(schema):
        check_expression(pattern)


def check_expression(pattern: str) -> None:
    """Raises `ValueError` for a repetition of nothing or of a repetition, which all dialects and the engine's compiler
    refuse."""
    try:
        regex.compile(pattern)
    except regex.error as error:
        if "repeat" in error.msg:
            raise ValueError(f"{pattern[:80]!r} is not a regular expression ({error})") from error


def patterns(schema: Any) -> Iterator[str]:
    """The regular expressions in a JSON schema."""
    if isinstance(schema, list):
        for item in schema:
            yield from patterns(item)
    if not isinstance(schema, dict):
        return
    for name, value in schema.items():
        if name == "pattern" and isinstance(value, str):
            yield value
        if name == "patternProperties" and isinstance(value, dict):
            yield from value
        if name not in ("enum", "const", "default", "examples"):
            yield from patterns(value)
