"""The state of one answer while it is parsed: from the events of vLLM's state machine to what is new for the client.

See `answer_parser.py` for the rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from vllm.entrypoints.generate.base.protocol import DeltaFunctionCall, DeltaMessage, DeltaToolCall
from vllm.parser.engine.events import EventType, SemanticEvent
from vllm.renderers.chat_utils import make_tool_call_id
from vllm.tool_parsers.utils import coerce_to_schema_type, extract_types_from_schema, find_tool_properties

from serve_app.vllm_patches.chunks import Delta
from serve_app.vllm_patches.tool_arguments import ToolArguments

AROUND_FUNCTION: Final = EventType.REASONING_START
"""Text inside `<tool_call>` but outside `<function=...>`. This model's grammar has no other use for the event."""


@dataclass
class _Call:
    """A call in progress. `index` is its position among the reported ones."""

    name: str = ""
    preamble: str = ""
    arguments: ToolArguments | None = None
    index: int | None = None


@dataclass
class AnswerDelta:
    """What is new for the client."""

    reasoning: str = ""
    content: str = ""
    calls: dict[int, DeltaToolCall] = field(default_factory=dict)

    def message(self, *, with_reasoning: bool) -> DeltaMessage | Delta | None:
        """The delta as vLLM's serving code takes it. Absent fields are left out: every set field is sent."""
        reasoning = self.reasoning if with_reasoning else ""
        if self.calls:
            parts: dict[str, Any] = {"reasoning": reasoning} if reasoning else {}
            if self.content:
                parts["content"] = self.content
            return DeltaMessage(**parts, tool_calls=list(self.calls.values()))
        if not (reasoning or self.content):
            return None
        return Delta(content=self.content or None, reasoning=reasoning or None)


class Answer:
    """The state of one answer, from events to deltas."""

    def __init__(self, tools: Sequence[Any], *, may_call: bool, reasoning: bool, first_whole: bool) -> None:
        self._tools = tools
        self._may_call = may_call
        self._first_whole = first_whole
        self._delta = AnswerDelta()
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
                    self.say(event.value)
                case EventType.REASONING_CHUNK:
                    self.think(event.value)
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

    def think(self, text: str) -> None:
        """Add text of the reasoning to the delta."""
        if self._at_start:
            text = text.lstrip("\n")
            self._at_start = not text
        text = self._held + text
        said = text.rstrip()
        self._held = text[len(said) :]
        self._delta.reasoning += said

    def say(self, text: str) -> None:
        """Add text of the answer to the delta."""
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

    def finish(self, *, thinking: bool, by_model: bool) -> None:
        """The answer is complete. An open call stays as it is, unless the model ended the answer after a parameter: it
        forgot `</function>`."""
        call = self._call
        if by_model and call is not None and call.arguments is not None and call.arguments.is_between:
            self._end(call)
        if not (thinking or self._reported or self._call):
            self._delta.content += self._held
        self._held = ""

    def pop(self) -> AnswerDelta:
        """What is new since the last time."""
        delta, self._delta = self._delta, AnswerDelta()
        return delta

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _around_function(self, text: str) -> None:
        if self._call is not None:
            self._call.preamble += text
            return
        if not self._behind_function:
            text = text.lstrip()
            self._behind_function = bool(text)
        self.say(text)

    def _argue(self, call: _Call, text: str) -> None:
        if call.arguments is None:
            call.arguments = self._arguments_of(call)
        if json := call.arguments.feed(text):
            self._report(call, json)

    def _end(self, call: _Call) -> None:
        self._call, self._behind_function = None, False
        if not call.name.strip():
            if call.arguments is None:
                self.say(f"<tool_call>{call.preamble}</tool_call>")
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
