"""Parses the model's output into reasoning, content and tool calls, in one pass over its tokens, streamed or whole.

vLLM has two parsers: a stream goes by token ids through two parsers in turn, a whole answer is parsed by its text
alone. They differ in line breaks, in tags that are spelled out as text, in text between calls, and in the name and
arguments of a call that was cut off. Here a whole answer is a stream with one delta: vLLM's lexer and state machine
read it once, and the events become deltas in their order.

* Only special tokens are markup. A spelled out `</think>` or `<tool_call>` is text, streamed or not.
* The line breaks after `<think>` and `</think>` are the template's, not the model's; nor is white space that ends
  reasoning, or that comes before a tool call.
* A call is reported from its first value on, or when it has ended. One that is cut off earlier (`max_tokens`) is not
  reported; one that is cut off later has the arguments so far, and they are not closed.
* What only looks like a call (`<tool_call>` without a function) is text, and so is a call where the request has no
  tools or forbids them: no output is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import replace
from functools import cache
from typing import Any, Final

from vllm.entrypoints.generate.base.protocol import DeltaMessage, FunctionCall
from vllm.parser.abstract_parser import DelegatingParser
from vllm.parser.engine.parser_engine_config import ParserEngineConfig, ParserState
from vllm.parser.engine.streaming_parser_engine import StreamingParserEngine
from vllm.parser.step3p5 import step3p5_config

from serve_app.vllm_patches.answer_state import AROUND_FUNCTION, Answer, AnswerDelta
from serve_app.vllm_patches.chunks import Delta
from serve_app.vllm_patches.parsers import ReasoningCounter, SpecialTokenScanner

CALL_STATES: Final = frozenset({ParserState.TOOL_PREAMBLE, ParserState.TOOL_NAME, ParserState.TOOL_ARGS})
"""States in which a call has not ended."""

PLAIN_STATES: Final = frozenset({ParserState.CONTENT, ParserState.REASONING})
"""States in which text is content or reasoning."""


@cache
def grammar() -> ParserEngineConfig:
    """vLLM's grammar of the model, extended to report what it would drop: text around a function."""
    known = step3p5_config()
    around = {ParserState.TOOL_PREAMBLE: AROUND_FUNCTION, ParserState.TOOL_BETWEEN: AROUND_FUNCTION}
    return replace(known, content_events={**known.content_events, **around})


STREAM_PARSER: ContextVar[AnswerParser | None] = ContextVar("serve_app_stream_parser", default=None)
"""What parses the stream that the running task makes."""


class AnswerParser(DelegatingParser):  # type: ignore[misc]  # vLLM is not read by mypy
    """vLLM's parser of this model for one answer: its request side unchanged, its answer side in one pass."""

    first_whole = False
    """Whether a call is reported only once its first parameter is complete (see `ToolArguments`)."""

    last_delta: DeltaMessage | Delta | None = None
    """The last delta of a stream that was parsed."""

    _is_parsed = False
    """Whether vLLM has not yet asked for it."""
    _with_reasoning = True
    _answer: Answer | None = None
    _prompt: Sequence[int] | None = None
    _reasons = False
    _counter: ReasoningCounter
    _engine: StreamingParserEngine
    _scanner: SpecialTokenScanner

    def set_prompt_token_ids(self, prompt_token_ids: Sequence[int]) -> None:
        """See `Parser`: a prompt may end in the middle of an answer."""
        self._prompt = prompt_token_ids

    def parse_delta(
        self,
        delta_text: str,
        delta_token_ids: list[int],
        request: Any,
        prompt_token_ids: list[int] | None = None,
        *,
        finished: bool,
    ) -> DeltaMessage | Delta | None:
        """See `Parser`. The delta that was parsed ahead, if there is one."""
        if self._is_parsed:
            self._is_parsed = False
            return self.last_delta
        if self._answer is None:
            self._answer = self._begin(request, prompt_token_ids or self._prompt)
            self._with_reasoning = request.include_reasoning
            STREAM_PARSER.set(self)
        return self._parse_next(self._answer, delta_text, delta_token_ids, finished=finished)

    def parse_ahead(self, text: str, token_ids: Sequence[int], *, finished: bool) -> DeltaMessage | Delta | None:
        """Parse a delta before vLLM asks for it, if it ever does (`forget_parsed`). Not the first one."""
        if self._answer is None:
            raise RuntimeError("nothing has been parsed")
        self._is_parsed = True
        return self._parse_next(self._answer, text, token_ids, finished=finished)

    def forget_parsed(self) -> None:
        """vLLM will not ask for the delta that was parsed ahead."""
        self._is_parsed = False

    def give(self, delta: DeltaMessage | Delta | None) -> None:
        """vLLM gets this delta when it asks for the next one: it has been parsed."""
        self.last_delta = delta
        self._is_parsed = True

    def parse(
        self,
        model_output: str,
        request: Any,
        enable_auto_tools: bool = False,  # noqa: ARG002  # vLLM's signature
        model_output_token_ids: Sequence[int] = (),
    ) -> tuple[str | None, str | None, list[FunctionCall] | None]:
        """See `Parser`."""
        answer = self._begin(request, self._prompt)
        delta = self._read(answer, model_output, model_output_token_ids, finished=True)
        calls = [
            FunctionCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
            for call in delta.calls.values()
            if call.function is not None
        ]
        return delta.reasoning or None, delta.content or None, calls or None

    def count_reasoning_tokens(self, token_ids: Sequence[int]) -> int:
        """How many tokens of the answer are reasoning. A stream may ask after each delta, with all tokens so far."""
        if self._reasoning_parser is None or not self._reasons:
            return 0
        special = self._engine_of_the_grammar()._resolved_token_ids  # noqa: SLF001  # the same table that parses
        return self._counter.count(token_ids, self._reasoning_parser.find_reasoning_end, special)

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _parse_next(
        self, answer: Answer, text: str, token_ids: Sequence[int], *, finished: bool
    ) -> DeltaMessage | Delta | None:
        delta = self._read(answer, text, token_ids, finished=finished)
        self.last_delta = delta.message(with_reasoning=self._with_reasoning)
        return self.last_delta

    def _begin(self, request: Any, prompt: Sequence[int] | None) -> Answer:
        tools = request.tools or ()
        may_call = self._tool_parser is not None and bool(tools) and request.tool_choice != "none"
        reasoning = self._reasons = not self._begins_with_content(prompt)
        engine = self._engine_of_the_grammar()
        engine.config = grammar()
        engine.skip_tool_parsing = not may_call
        engine.skip_reasoning_parsing = self._reasoning_parser is None
        self._scanner = SpecialTokenScanner(engine._resolved_token_ids, self.model_tokenizer)  # noqa: SLF001  # as above
        engine._scanner = self._scanner  # noqa: SLF001  # vLLM's looks for the text of a tag
        engine.reset(ParserState.REASONING if reasoning else ParserState.CONTENT)
        self._engine, self._counter = engine, ReasoningCounter()
        return Answer(tools, may_call=may_call, reasoning=reasoning, first_whole=self.first_whole)

    def _engine_of_the_grammar(self) -> StreamingParserEngine:
        """One of the two parser engines that vLLM made for this request; the other stays unused."""
        adapter = self._tool_parser if self._tool_parser is not None else self._reasoning_parser
        return adapter._parser_engine._engine  # noqa: SLF001  # making a third would cost each request as much again

    def _begins_with_content(self, prompt: Sequence[int] | None) -> bool:
        return self._reasoning_parser is None or (prompt is not None and self.is_reasoning_end(prompt))

    def _read(self, answer: Answer, text: str, token_ids: Sequence[int], *, finished: bool) -> AnswerDelta:
        engine = self._engine
        if not finished and engine.state in PLAIN_STATES and self._is_plain(text, token_ids):
            # As `feed` does, without its events: most deltas are like this.
            engine._ever_had_token_ids = True  # noqa: SLF001  # see above
            answer.say(text) if engine.state is ParserState.CONTENT else answer.think(text)
            return answer.pop()
        answer.take(engine.feed(text, token_ids))
        if finished:
            thinking = engine.state is ParserState.REASONING
            if engine.state not in CALL_STATES:  # what the lexer holds of a call is the beginning of markup
                answer.take(engine.finish())
            answer.finish(thinking=thinking, by_model=self._scanner.has_ended)
        return answer.pop()

    def _is_plain(self, text: str, token_ids: Sequence[int]) -> bool:
        """Whether it is neither markup nor the beginning of it, and none is held back."""
        engine = self._engine
        lexer = engine._lexer  # noqa: SLF001  # vLLM's own conditions
        return (
            bool(text and token_ids)
            and not lexer.buffer
            and lexer._literal_first_chars.isdisjoint(text)  # noqa: SLF001  # as above
            and engine._resolved_token_ids.keys().isdisjoint(token_ids)  # noqa: SLF001  # as above
        )
