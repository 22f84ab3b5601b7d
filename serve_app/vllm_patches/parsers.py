"""Changes to vLLM's lexer of reasoning and tool calls: cached tables, and special tokens found exactly.

vLLM makes two parsers for each request, and each compiles its lexer's table of the tokenizer's special tokens again: a
quarter of a millisecond for a result that never changes and is only read.

vLLM looks for the tags' text, and may take a tag that the model has spelled out for the token. A delta's text lags
behind its tokens only by what a character or a stop string may still become, and never behind a special token
(`answer_stops.py`), so the text before a tag ends with the text of the tokens before it.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from functools import lru_cache, wraps
from typing import Any

from vllm.parser.engine import streaming_parser_engine
from vllm.parser.engine.token_id_scanner import LexerInput, PreLexedTerminal, TextChunk, TokenIDScanner

TABLES = 8
"""How many tables are cached: there is one for each parser (reasoning, tool calls) and tokenizer."""

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
    """`build`, which makes a table of a configuration and a tokenizer, with the last tables cached."""
    kept = lru_cache(TABLES)(lambda pair: build(pair.config, pair.tokenizer))

    @wraps(build)
    def look_up(config: object, tokenizer: object) -> object:
        return kept(_Pair(config, tokenizer))

    return look_up


def keep_tables() -> None:
    """Let the parsers of this process share their tables. Calling it again changes nothing."""
    build = streaming_parser_engine._build_drop_info  # noqa: SLF001  # there is no public hook
    if not hasattr(build, "__wrapped__"):
        streaming_parser_engine._build_drop_info = keeping(build)  # noqa: SLF001  # see above


REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""The text of incomplete bytes of a character."""


class SpecialTokenScanner(TokenIDScanner):  # type: ignore[misc]  # vLLM is not read by mypy
    """Cuts a delta's text at its special tokens."""

    has_ended = False
    """Whether the model has ended the answer itself."""

    def scan(self, delta_text: str, delta_token_ids: Sequence[int]) -> Sequence[LexerInput]:
        """See `TokenIDScanner`."""
        special = self.token_id_to_terminal
        items: list[LexerInput] = []
        begin = position = 0
        for place, token_id in enumerate(delta_token_ids):
            if token_id not in special:
                continue
            tag = self._decode_token(token_id)
            before, is_last = delta_token_ids[begin:place], place + 1 == len(delta_token_ids)
            found = self._find(tag, delta_text, position, before, is_last=is_last)
            begin = place + 1
            if found < 0:
                self.has_ended = True  # the token that ends the answer has no text
                continue
            if found > position:
                items.append(TextChunk(delta_text[position:found]))
            items.append(PreLexedTerminal(special[token_id], token_id, tag))
            position = found + len(tag)
        if position < len(delta_text):
            items.append(TextChunk(delta_text[position:]))
        return items

    def _find(self, tag: str, text: str, position: int, before: Sequence[int], *, is_last: bool) -> int:
        """The position of `tag` in `text`, after the text of the tokens `before`. -1: none."""
        if is_last and not text.endswith(tag):
            return -1  # what ended the answer has no text
        found = first = text.find(tag, position)
        if first < 0 or (not is_last and text.find(tag, first + 1) < 0):
            return first
        text_before = self._text_of(before)
        if is_last:
            last = len(text) - len(tag)
            return last if last >= position and text[position:last].endswith(text_before) else -1
        while found >= 0 and not text[position:found].endswith(text_before):
            found = text.find(tag, found + 1)
        return found if found >= 0 else first

    def _text_of(self, token_ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(token_ids))
        return text.lstrip(REPLACEMENT)


class ReasoningCounter:
    """Counts the tokens of an answer that are reasoning. With each call the answer has grown: only new tokens are
    read."""

    def __init__(self) -> None:
        self._read = 0
        self._reasoning = 0
        self._is_over = False

    def count(self, token_ids: Sequence[int], find_end: Callable[[Sequence[int]], Any], special: Container[int]) -> int:
        """How many of all tokens so far are reasoning. `find_end` is a reasoning parser's `find_reasoning_end`;
        `special` tokens are not counted."""
        if not self._is_over:
            new = token_ids[self._read :]
            self._read = len(token_ids)
            end = find_end(new)
            if end is not None and end.offset < len(new):
                new, self._is_over = new[: end.offset], True
            self._reasoning += sum(token_id not in special for token_id in new)
        return self._reasoning
