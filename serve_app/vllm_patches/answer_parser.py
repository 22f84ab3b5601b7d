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
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Final

from vllm.entrypoints.generate.base.protocol import DeltaFunctionCall, DeltaMessage, DeltaToolCall, FunctionCall
from vllm.parser.abstract_parser import DelegatingParser
from vllm.parser.engine.events import EventType, SemanticEvent
from vllm.parser.engine.parser_engine_config import ParserEngineConfig, ParserState
from vllm.parser.engine.streaming_parser_engine import StreamingParserEngine
from vllm.parser.step3p5 import step3p5_config
from vllm.renderers.chat_utils import make_tool_call_id
from vllm.tool_parsers.utils import coerce_to_schema_type, extract_types_from_schema, find_tool_properties

from serve_app.vllm_patches.chunks import Delta
from serve_app.vllm_patches.parsers import ReasoningCounter, SpecialTokenScanner
from serve_app.vllm_patches.tool_arguments import ToolArguments

AROUND_FUNCTION: Final = EventType.REASONING_START
"""Text inside `<tool_call>` but outside `<function=...>`. This model's grammar has no other use for the event."""

CALL_STATES: Final = frozenset({ParserState.TOOL_PREAMBLE, ParserState.TOOL_NAME, ParserState.TOOL_ARGS})
"""States in which a call has not ended."""


@cache
def grammar() -> ParserEngineConfig:
    """vLLM's grammar of the model, extended to report what it would drop: text around a function."""
    known = step3p5_config()
    around = {ParserState.TOOL_PREAMBLE: AROUND_FUNCTION, ParserState.TOOL_BETWEEN: AROUND_FUNCTION}
    return replace(known, content_events={**known.content_events, **around})


@dataclass
class _Call:
    """A call in progress. `index` is its position among the reported ones."""

    name: str = ""
    preamble: str = ""
    arguments: ToolArguments | None = None
    index: int | None = None


@dataclass
class _Delta:
    """What is new for the client."""

    reasoning: str = ""
    content: str = ""
    calls: dict[int, DeltaToolCall] = field(default_factory=dict)

    def message(self, *, with_reasoning: bool) -> DeltaMessage | Delta | None:
        """The delta as vLLM's serving code takes it. Absent fields are left out: every set field is sent."""
        parts: dict[str, Any] = {"reasoning": self.reasoning} if self.reasoning and with_reasoning else {}
        if self.content:
            parts["content"] = self.content
        if self.calls:
            return DeltaMessage(**parts, tool_calls=list(self.calls.values()))
        return Delta(**parts) if parts else None


class _Answer:
    """The state of one answer, from events to deltas."""

    def __init__(self, tools: Sequence[Any], *, may_call: bool, reasoning: bool, first_whole: bool) -> None:
        self._tools = tools
        self._may_call = may_call
        self._first_whole = first_whole
        self._delta = _Delta()
        self._call: _Call | None = None
        self._reported = 0
        self._held = ""
        """White space that may turn out to stand before a call, or to end the reasoning."""
        self._at_start = reasoning
        """Directly behind `<think>` or `</think>`."""
        self._behind_function = False

    def take(self, events: Sequence[SemanticEvent]) -> None:
        """Add what these events say to the delta."""
        for event in events:
            match event.type:
                case EventType.TEXT_CHUNK:
                    self._say(event.value)
                case EventType.REASONING_CHUNK:
                    self._think(event.value)
                case EventType.REASONING_END:
                    self._held, self._at_start = "", True
                case EventType.TOOL_CALL_START:
                    self._call, self._behind_function = _Call(), False
                case EventType.TOOL_NAME if self._call is not None:
                    self._call.name += event.value
                case EventType.ARG_VALUE_CHUNK if self._call is not None:
                    self._argue(self._call, event.value)
                case EventType.TOOL_CALL_END if self._call is not None:
                    self._end(self._call)
                case EventType.REASONING_START:
                    self._around_function(event.value)

    def finish(self, *, thinking: bool, by_model: bool) -> None:
        """The answer is complete. An open call stays as it is, unless the model ended the answer after a parameter: it
        forgot `</function>`."""
        call = self._call
        if by_model and call is not None and call.arguments is not None and call.arguments.is_between:
            self._end(call)
        if not (thinking or self._reported or self._call):
            self._delta.content += self._held
        self._held = ""

    def pop(self) -> _Delta:
        """What is new since the last time."""
        delta, self._delta = self._delta, _Delta()
        return delta

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _think(self, text: str) -> None:
        if self._at_start:
            text = text.lstrip("\n")
            self._at_start = not text
        text = self._held + text
        said = text.rstrip()
        self._held = text[len(said) :]
        self._delta.reasoning += said

    def _say(self, text: str) -> None:
        if self._at_start:
            text = text.lstrip("\n")
            self._at_start = not text
        if not self._may_call:
            self._delta.content += text
            return
        text = self._held + text
        said = text.rstrip()
        self._held = text[len(said) :]
        self._delta.content += said

    def _around_function(self, text: str) -> None:
        if self._call is not None:
            self._call.preamble += text
            return
        if not self._behind_function:
            text = text.lstrip()
            self._behind_function = bool(text)
        self._say(text)

    def _argue(self, call: _Call, text: str) -> None:
        if call.arguments is None:
            call.arguments = self._arguments_of(call)
        if json := call.arguments.feed(text):
            self._report(call, json)

    def _end(self, call: _Call) -> None:
        self._call, self._behind_function = None, False
        if not call.name.strip():
            if call.arguments is None:
                self._say(f"<tool_call>{call.preamble}</tool_call>")
            return
        arguments = call.arguments or self._arguments_of(call)
        self._report(call, arguments.close())

    def _arguments_of(self, call: _Call) -> ToolArguments:
        properties = find_tool_properties(self._tools, call.name.strip())

        def types(key: str) -> list[str]:
            schema = properties.get(key)
            return extract_types_from_schema(schema) if isinstance(schema, dict) else ["string"]

        return ToolArguments(
            lambda key, text: coerce_to_schema_type(text, types(key)),
            lambda key: set(types(key)) == {"string"},
            first_whole=self._first_whole,
        )

    def _report(self, call: _Call, arguments: str) -> None:
        if not call.name.strip():
            return
        if call.index is None:
            call.index, self._reported = self._reported, self._reported + 1
            self._held, self._at_start = "", False
            function = DeltaFunctionCall(name=call.name.strip(), arguments=arguments)
            made = DeltaToolCall(index=call.index, id=make_tool_call_id(), type="function", function=function)
            self._delta.calls[call.index] = made
        elif (known := self._delta.calls.get(call.index)) is not None and known.function is not None:
            known.function.arguments = (known.function.arguments or "") + arguments
        else:
            more = DeltaToolCall(index=call.index, function=DeltaFunctionCall(arguments=arguments))
            self._delta.calls[call.index] = more


class AnswerParser(DelegatingParser):  # type: ignore[misc]  # vLLM is not read by mypy
    """vLLM's parser of this model for one answer: its request side unchanged, its answer side in one pass."""

    first_whole = False
    """Whether a call is reported only once its first parameter is complete (see `ToolArguments`)."""

    _answer: _Answer | None = None
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
        """See `Parser`."""
        if self._answer is None:
            self._answer = self._begin(request, prompt_token_ids or self._prompt)
        delta = self._read(self._answer, delta_text, delta_token_ids, finished=finished)
        return delta.message(with_reasoning=request.include_reasoning)

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

    def _begin(self, request: Any, prompt: Sequence[int] | None) -> _Answer:
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
        return _Answer(tools, may_call=may_call, reasoning=reasoning, first_whole=self.first_whole)

    def _engine_of_the_grammar(self) -> StreamingParserEngine:
        """One of the two parser engines that vLLM made for this request; the other stays unused."""
        adapter = self._tool_parser if self._tool_parser is not None else self._reasoning_parser
        return adapter._parser_engine._engine  # noqa: SLF001  # making a third would cost each request as much again

    def _begins_with_content(self, prompt: Sequence[int] | None) -> bool:
        return self._reasoning_parser is None or (prompt is not None and self.is_reasoning_end(prompt))

    def _read(self, answer: _Answer, text: str, token_ids: Sequence[int], *, finished: bool) -> _Delta:
        engine = self._engine
        answer.take(engine.feed(text, token_ids))
        if finished:
            thinking = engine.state is ParserState.REASONING
            if engine.state not in CALL_STATES:  # what the lexer holds of a call is the beginning of markup
                answer.take(engine.finish())
            answer.finish(thinking=thinking, by_model=self._scanner.has_ended)
        return answer.pop()
