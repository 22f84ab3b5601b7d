"""Changes to vLLM's API servers so that an answer is the same streamed and whole, and so that it can be prefilled.

The parser of the served model is ours (`answer_parser.py`). Around it, what vLLM adds to an answer is corrected:

* chat, whole: `finish_reason` is `tool_calls` only where the model stopped by itself, as in a stream; a message
  without content has null as its content, not an empty string.
* messages: the `input` of a call that was cut off has the parameters that are complete. The call is reported once it
  has one, so that no empty input appears that the model did not write.
* responses, streamed: the events of a delta keep the order of its parts.
* prefill: a request may end with the beginning of its answer, which the model continues. vLLM does so for chat
  completions that ask for it (`continue_final_message`). Its Anthropic routes never ask, and give a fresh turn, where
  Anthropic's API continues. (For its Responses API `ingress/requests/responses.py` marks the message as incomplete.)
"""

from __future__ import annotations

import inspect
import json
from collections.abc import AsyncIterator
from types import ModuleType
from typing import Any, Final

import pydantic_core

from serve_app.vllm_patches.patching import Function, PatchTarget, replace

PARSER: Final = PatchTarget(
    "vllm.parser.parser_manager", "ParserManager", "get_parser", ("tool_parser_name", "reasoning_parser_name")
)
WHOLE_CHAT: Final = PatchTarget(
    "vllm.entrypoints.openai.chat_completion.serving",
    "OpenAIServingChat",
    "chat_completion_full_generator",
    ("request", "result_generator"),
)
MAKE_PARSER: Final = PatchTarget(
    "vllm.entrypoints.openai.chat_completion.serving", "OpenAIServingChat", "_make_parser", ("request",)
)
WHOLE_MESSAGE: Final = PatchTarget(
    "vllm.entrypoints.anthropic.serving", "AnthropicServingMessages", "messages_full_converter", ("generator",)
)
SPLIT: Final = PatchTarget("vllm.entrypoints.openai.responses.serving", "", "split_delta", ("delta",))
CONVERT: Final = PatchTarget(
    "vllm.entrypoints.anthropic.serving",
    "AnthropicServingMessages",
    "to_chat_completion_request",
    ("anthropic_request",),
)
CHAT_STREAM: Final = PatchTarget(
    "vllm.entrypoints.openai.chat_completion.serving",
    "OpenAIServingChat",
    "chat_completion_stream_generator",
    ("request", "conversation"),
)
TARGETS: Final = (PARSER, WHOLE_CHAT, MAKE_PARSER, WHOLE_MESSAGE, SPLIT, CONVERT, CHAT_STREAM)

MODEL_PARSER: Final = "step3p5"
"""vLLM's name of the parsers that `answer_parser.py` takes the place of."""


def correct_answers() -> None:
    """Called once for each process that serves an API. Calling it again changes nothing."""
    replace(PARSER, parse_in_one_pass)
    replace(WHOLE_CHAT, finish_as_a_stream)
    replace(MAKE_PARSER, wait_for_first_parameter)
    replace(WHOLE_MESSAGE, accept_cut_calls)
    replace(SPLIT, keep_order)
    replace(CONVERT, ask_to_continue)
    replace(CHAT_STREAM, echo_parts_as_text)


def parse_in_one_pass(original: Function, _: ModuleType) -> Function:
    """The parser of this model is ours. Others stay as they are."""
    from serve_app.vllm_patches.answer_parser import AnswerParser

    def get_parser(cls: Any, *args: Any, **named: Any) -> Any:
        found = original(cls, *args, **named)
        wanted = {named.get("tool_parser_name") or MODEL_PARSER, named.get("reasoning_parser_name") or MODEL_PARSER}
        if found is None or wanted != {MODEL_PARSER}:
            return found
        return type("StepAnswerParser", (AnswerParser, found), {})

    return get_parser


class _Last:
    """A generator's items, of which the last is kept."""

    def __init__(self, items: AsyncIterator[Any]) -> None:
        self._items = items
        self.item: Any = None

    async def __aiter__(self) -> AsyncIterator[Any]:
        async for item in self._items:
            self.item = item
            yield item


def finish_as_a_stream(original: Function, _: ModuleType) -> Function:
    """vLLM reports `tool_calls` for every whole answer with a call, also where `max_tokens` cut it."""

    async def chat_completion_full_generator(
        self: Any, request: Any, result_generator: AsyncIterator[Any], *args: Any, **named: Any
    ) -> Any:
        last = _Last(result_generator)
        response = await original(self, request, last, *args, **named)
        for choice, output in zip(
            getattr(response, "choices", ()), last.item.outputs if last.item else (), strict=False
        ):
            calls = choice.message.tool_calls
            choice.finish_reason = output.finish_reason or "stop"
            if calls and choice.finish_reason == "stop" and not hasattr(request.tool_choice, "function"):
                choice.finish_reason = "tool_calls"
            choice.message.content = choice.message.content or None
        return response

    return chat_completion_full_generator


def wait_for_first_parameter(original: Function, module: ModuleType) -> Function:
    """A `tool_use` block has an object for its input, cut or not: it begins with its first complete parameter."""
    chat = module.OpenAIServingChat

    def _make_parser(self: Any, request: Any, *args: Any, **named: Any) -> Any:
        parser = original(self, request, *args, **named)
        if type(self) is not chat:
            parser.first_whole = True
        return parser

    return _make_parser


def accept_cut_calls(original: Function, _: ModuleType) -> Function:
    """vLLM fails on arguments that are no JSON."""

    def messages_full_converter(self: Any, generator: Any) -> Any:
        for call in generator.choices[0].message.tool_calls:
            call.function.arguments = json.dumps(
                pydantic_core.from_json(call.function.arguments, allow_partial=True), ensure_ascii=False
            )
        return original(self, generator)

    return messages_full_converter


def keep_order(original: Function, module: ModuleType) -> Function:
    """What goes on with an open call comes before a delta's text: the text was said after it, and closes it."""

    def split_delta(delta: Any) -> list[Any]:
        more = [call for call in delta.tool_calls or () if call.id is None]
        if not more or not delta.content:
            parts: list[Any] = original(delta)
            return parts
        delta.tool_calls = [call for call in delta.tool_calls if call.id is not None]
        return [module.DeltaMessage(tool_calls=more), *original(delta)]

    return split_delta


def ask_to_continue(original: Function, _: ModuleType) -> Function:
    """A conversation that ends with the assistant's words is continued."""

    def to_chat_completion_request(cls: Any, anthropic_request: Any, **options: Any) -> Any:
        request = original(cls, anthropic_request, **options)
        if request.messages and request.messages[-1]["role"] == "assistant":
            request.continue_final_message = True
            request.add_generation_prompt = False
        return request

    return to_chat_completion_request


def echo_parts_as_text(original: Function, _: ModuleType) -> Function:
    """With `echo`, a stream begins with the last message; vLLM's sends its parts, which no chunk can hold."""
    signature = inspect.signature(original)

    def chat_completion_stream_generator(*args: Any, **named: Any) -> Any:
        values = signature.bind(*args, **named).arguments
        conversation = values["conversation"]
        if values["request"].echo and conversation and isinstance(content := conversation[-1].get("content"), list):
            conversation[-1]["content"] = "\n".join(part["text"] for part in content)
        return original(*args, **named)

    return chat_completion_stream_generator
