"""vLLM's parsers of thoughts and tool calls, without the part of their making that is always the same.

vLLM makes two of them for each request, and for each compiles its lexer's table of the tokenizer's special tokens
again: a quarter of a millisecond of work whose result never changes and is only read.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any

from vllm.parser.engine import streaming_parser_engine

TABLES = 8
"""How many are kept: there is one for each parser (thoughts, tool calls) and tokenizer."""

Build = Callable[[Any, Any], object]


class _Pair:
    """A parser's configuration and a tokenizer, which cannot be hashed: the same objects make the same table."""

    def __init__(self, config: object, tokenizer: object) -> None:
        self.config = config
        self.tokenizer = tokenizer

    def __hash__(self) -> int:
        return hash((id(self.config), id(self.tokenizer)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Pair) and self.config is other.config and self.tokenizer is other.tokenizer


def keeping(build: Build) -> Build:
    """`build`, which makes a table of a configuration and a tokenizer, with the last tables kept."""
    kept = lru_cache(TABLES)(lambda pair: build(pair.config, pair.tokenizer))

    @wraps(build)
    def look_up(config: object, tokenizer: object) -> object:
        return kept(_Pair(config, tokenizer))

    return look_up


def keep_tables() -> None:
    """Have the parsers of this process share their tables. Calling it again changes nothing."""
    build = streaming_parser_engine._build_drop_info  # noqa: SLF001  # there is no other place to take hold of it
    if not hasattr(build, "__wrapped__"):
        streaming_parser_engine._build_drop_info = keeping(build)  # noqa: SLF001  # see above
