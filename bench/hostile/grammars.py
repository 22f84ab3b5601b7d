"""Grammars that do not compile, compile for ever, explode, or make each token slow. With xgrammar 0.2.8."""

from __future__ import annotations

import json
from typing import Any, Final

WORDS: Final = {"type": "string"}


def properties(count: int) -> dict[str, Any]:
    """A schema's: `count` strings."""
    return {f"p{number}": WORDS for number in range(count)}


def doubling(depth: int) -> dict[str, Any]:
    """A schema of which each level names the next one twice."""
    levels: dict[str, Any] = {
        f"d{level}": {"properties": {side: {"$ref": f"#/$defs/d{level + 1}"} for side in "ab"}}
        for level in range(depth)
    }
    return {"$defs": {**levels, f"d{depth}": WORDS}, "$ref": "#/$defs/d0"}


def nested(depth: int) -> dict[str, Any]:
    """A schema of objects in objects."""
    schema: dict[str, Any] = WORDS
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


EXPLODE: Final[dict[str, dict[str, Any]]] = {
    "regex of 5,000 optional letters": {"regex": "a?" * 5000 + "a" * 5000},
    "regex of 20,000 optional groups": {"regex": "(a|b)?" * 20_000},
    "schema with 100 of 200 properties": {
        "json": {"type": "object", "properties": properties(200), "minProperties": 100, "maxProperties": 150}
    },
    "schema with 1,000 bounded patterns": {
        "json": {
            "type": "object",
            "properties": {f"p{n}": {"type": "string", "pattern": f"[a-z]{{1,{100 + n}}}"} for n in range(1000)},
        }
    },
}
"""Small enough to be taken, and compiled for minutes."""

CANNOT_WORK: Final[dict[str, dict[str, Any]]] = {
    "regex that does not compile": {"regex": "a**"},
    "regex with 40,000 brackets": {"regex": "(" * 40_000 + "a" + ")" * 40_000},
    "EBNF with 40,000 brackets": {"grammar": "root ::= " + "(" * 40_000 + '"a"' + ")" * 40_000},
    "Lark with 40,000 brackets": {"grammar": "start: " + "(" * 40_000 + '"a"' + ")" * 40_000},
    "EBNF with a rule that is missing": {"grammar": "root ::= nowhere"},
    "schema of 1 MB": {"json": {"type": "object", "properties": properties(40_000)}},
    "schema nested 400 levels deep": {"json": nested(400)},
    "schema with numbers of 4,000 digits": {"json": {"type": "integer", "minimum": 10**4000}},
    "schema with nothing to choose from": {"json": {"enum": []}},
    "structural tag without triggers": {
        "structural_tag": json.dumps({"structures": [{"begin": "<a>", "schema": {}, "end": "</a>"}]})
    },
    "structural tag that is a list": {"structural_tag": "[]"},
    "100,000 choices": {"choice": [f"choice {n}" for n in range(100_000)]},
}

BOUNDED: Final[dict[str, dict[str, Any]]] = {
    "choices with half a character": {"choice": ["\ud800"]},
    "schema that is itself": {"json": {"$ref": "#"}},
    "schema that requires itself": {"json": {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}},
    "schema that doubles 30 times": {"json": doubling(30)},
    "schema with arrays of 1,000 arrays of 1,000": {
        "json": {"type": "array", "minItems": 1000, "items": {"type": "array", "minItems": 1000}}
    },
    "schema with a string of 10^9": {"json": {"type": "string", "minLength": 10**9, "maxLength": 10**9}},
    "schema with 3,000 properties": {"json": {"type": "object", "properties": properties(3000)}},
    "EBNF with left recursion": {"grammar": 'root ::= root "a" | "a"'},
    "EBNF with many readings": {"grammar": 'root ::= root root root | root root | "a" | ""'},
    "EBNF that says nothing": {"grammar": "root ::= root"},
    "EBNF of 3,000 rules": {
        "grammar": "root ::= r0\n"
        + "\n".join(f'r{n} ::= "{n}" r{n + 1} | "x"' for n in range(3000))
        + '\nr3000 ::= "e"'
    },
    "regex a{1,1000000}": {"regex": "a{1,1000000}"},
    "regex (a{1,1000}){1,1000}": {"regex": "(a{1,1000}){1,1000}"},
    "Lark with a repeated repetition": {"grammar": "start: /((a{1,100}){1,100}){1,100}/"},
    "schema that needs another library": {"json": {"type": "integer", "multipleOf": 3}},
}
"""May be served or refused, but costs little either way."""
