"""Chunks as structs are the same JSON as vLLM's models, to the byte, and are read to the same values."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import ResponseReasoningTextDeltaEvent, ResponseTextDeltaEvent
from openai.types.responses.response_text_delta_event import Logprob
from vllm.entrypoints.anthropic.protocol import AnthropicDelta, AnthropicStreamEvent
from vllm.entrypoints.anthropic.serving import _build_anthropic_usage
from vllm.entrypoints.generate.base.protocol import DeltaFunctionCall, DeltaMessage, DeltaToolCall
from vllm.entrypoints.openai.chat_completion.protocol import (
    ChatCompletionLogProb,
    ChatCompletionLogProbs,
    ChatCompletionLogProbsContent,
    ChatCompletionResponseStreamChoice,
    ChatCompletionStreamResponse,
)
from vllm.entrypoints.openai.completion.protocol import (
    CompletionLogProbs,
    CompletionResponseStreamChoice,
    CompletionStreamResponse,
)
from vllm.entrypoints.serve.engine.protocol import CompletionTokenUsageInfo, PromptTokenUsageInfo, UsageInfo
from vllm.entrypoints.serve.utils.tool_calls_utils import maybe_filter_parallel_tool_calls

from serve_app.vllm_patches import chunk_classes, chunks
from serve_app.vllm_patches.chunks import Delta

pytestmark = pytest.mark.slow  # vLLM's server is imported: ten seconds

HEAD: dict[str, Any] = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 5, "model": "m"}
NONE = ModuleType("none")
text = st.text(st.characters(exclude_categories=["Cs"]))
"""What a decoder can give: no lone surrogates."""

chat_choice = chunk_classes.chat_choice(ChatCompletionResponseStreamChoice, NONE)
chat_chunk = chunk_classes.chunk_of(ChatCompletionStreamResponse, chunks.ChatChunk, chunks.ChatChoice)
completion_choice = chunk_classes.completion_choice(CompletionResponseStreamChoice, NONE)
completion_chunk = chunk_classes.chunk_of(CompletionStreamResponse, chunks.CompletionChunk, chunks.CompletionChoice)
read_chunk = chunk_classes.read_chunk(ChatCompletionStreamResponse, NONE)


def cheap(model: Any) -> Any:
    return chunk_classes.unchecked(model, NONE)


block_delta, block_event = (
    chunk_classes.block_delta(AnthropicDelta, NONE),
    chunk_classes.block_event(AnthropicStreamEvent, NONE),
)


def test_every_class_is_there_to_be_replaced() -> None:
    chunk_classes.use_structs()
    chunk_classes.use_structs()
    from vllm.entrypoints.anthropic import serving as messages
    from vllm.entrypoints.openai.chat_completion import serving as chat

    assert isinstance(chat.DeltaMessage(content="a"), Delta)
    assert chat.ChatCompletionStreamResponse is not messages.ChatCompletionStreamResponse


@given(
    parts=st.fixed_dictionaries({}, optional={"role": text, "content": text, "reasoning": text}),
    ending=st.sampled_from(
        [
            {},
            {"token_ids": None},
            {"token_ids": [1, 2]},
            {"stop_reason": None, "token_ids": None},
            {"stop_reason": "</x>", "token_ids": None},
            {"stop_reason": 7, "token_ids": [3]},
        ]
    ),
    finish=st.sampled_from([None, "stop", "length", "tool_calls"]),
    first=st.sampled_from([{}, {"prompt_token_ids": None, "prompt_text": None}, {"prompt_token_ids": [4]}]),
    usage=st.booleans(),
)
def test_a_chat_chunk(
    parts: dict[str, str], ending: dict[str, Any], finish: str | None, first: dict[str, Any], *, usage: bool
) -> None:
    def of(choice: Any, chunk: Any, delta: Any, usage_info: Any, details: Any) -> str:
        made = chunk(
            **HEAD,
            **first,
            choices=[choice(index=0, delta=delta(**parts), logprobs=None, finish_reason=finish, **ending)],
        )
        if usage:
            made.usage = usage_info(
                prompt_tokens=9, completion_tokens=2, total_tokens=11, completion_tokens_details=details
            )
            if finish is not None:
                made.usage.prompt_tokens_details = PromptTokenUsageInfo(cached_tokens=4)
        if finish is not None:
            made.system_fingerprint = "vllm-1"
        return str(made.model_dump_json(exclude_unset=True))

    plain_details, cheap_details = CompletionTokenUsageInfo(reasoning_tokens=3), cheap(CompletionTokenUsageInfo)
    theirs = of(
        ChatCompletionResponseStreamChoice, ChatCompletionStreamResponse, DeltaMessage, UsageInfo, plain_details
    )
    assert of(chat_choice, chat_chunk, Delta, cheap(UsageInfo), cheap_details(reasoning_tokens=3)) == theirs
    ours, parsed = read_chunk.model_validate_json(theirs), ChatCompletionStreamResponse.model_validate_json(theirs)
    assert (ours.id, ours.model) == (parsed.id, parsed.model)
    assert _build_anthropic_usage(ours.usage) == _build_anthropic_usage(parsed.usage)
    for name in ("content", "reasoning", "tool_calls"):
        assert getattr(ours.choices[0].delta, name) == getattr(parsed.choices[0].delta, name)
    for name in ("finish_reason", "stop_reason"):
        assert getattr(ours.choices[0], name) == getattr(parsed.choices[0], name)


def calls() -> DeltaMessage:
    function = DeltaFunctionCall(name="look", arguments='{"a": "\\"usage\\":"}')
    first = DeltaToolCall(index=0, id="call_1", type="function", function=function)
    return DeltaMessage(
        content="x", tool_calls=[first, DeltaToolCall(index=1, function=DeltaFunctionCall(arguments="1"))]
    )


def test_a_chat_chunk_with_tool_calls() -> None:
    def of(choice: Any, chunk: Any) -> str:
        made = choice(index=0, delta=calls(), logprobs=None, finish_reason=None, token_ids=None)
        return str(chunk(**HEAD, choices=[made]).model_dump_json(exclude_unset=True))

    theirs = of(ChatCompletionResponseStreamChoice, ChatCompletionStreamResponse)
    assert of(chat_choice, chat_chunk) == theirs
    ours = read_chunk.model_validate_json(theirs).choices[0].delta.tool_calls
    parsed = ChatCompletionStreamResponse.model_validate_json(theirs).choices[0].delta.tool_calls
    assert [(one.index, one.id, one.function.name, one.function.arguments) for one in ours] == [
        (one.index, one.id, one.function.name, one.function.arguments) for one in parsed
    ]


def test_one_call_is_left_where_a_request_wants_no_parallel_ones() -> None:
    class Request:
        parallel_tool_calls = False

    choice = chat_choice(index=0, delta=calls(), logprobs=None, finish_reason=None)
    filtered = maybe_filter_parallel_tool_calls(choice, Request())
    assert [call.index for call in filtered.delta.tool_calls] == [0]
    assert maybe_filter_parallel_tool_calls(Delta(content="x"), Request()).content == "x"


def test_a_chat_chunk_with_log_probabilities_is_vllms_own() -> None:
    one = ChatCompletionLogProbsContent(
        token="a", logprob=-1e-7, bytes=[97], top_logprobs=[ChatCompletionLogProb(token="a")]
    )

    def of(choice: Any, chunk: Any, delta: Any) -> str:
        probabilities = ChatCompletionLogProbs(content=[one])
        made = choice(index=0, delta=delta(content="a"), logprobs=probabilities, finish_reason="stop", stop_reason=None)
        return str(chunk(**HEAD, choices=[made]).model_dump_json(exclude_unset=True))

    theirs = of(ChatCompletionResponseStreamChoice, ChatCompletionStreamResponse, DeltaMessage)
    assert of(chat_choice, chat_chunk, Delta) == theirs


def test_the_last_chunk_with_the_usage_is_vllms_own() -> None:
    usage = UsageInfo(prompt_tokens=1, completion_tokens=2, total_tokens=3)
    made = chat_chunk(**HEAD, choices=[], usage=usage)
    assert isinstance(made, ChatCompletionStreamResponse)
    read = read_chunk.model_validate_json(made.model_dump_json(exclude_unset=True))
    assert (read.choices, read.usage.prompt_tokens, read.usage.completion_tokens) == ([], 1, 2)
    assert isinstance(completion_chunk(**HEAD, choices=[], usage=usage), CompletionStreamResponse)


@given(said=text, finish=st.sampled_from([None, "stop"]), stop_reason=st.sampled_from([None, 7, "x"]))
def test_a_completion_chunk(said: str, finish: str | None, stop_reason: str | int | None) -> None:
    def of(choice: Any, chunk: Any, logprobs: Any) -> str:
        fields = {"finish_reason": finish, "stop_reason": stop_reason, "prompt_token_ids": None, "token_ids": [5]}
        made = choice(index=0, text=said, logprobs=logprobs, **fields)
        return str(chunk(**{**HEAD, "object": "text_completion"}, choices=[made]).model_dump_json(exclude_unset=True))

    for logprobs in (None, CompletionLogProbs(text_offset=[0], token_logprobs=[-1e-7], tokens=["a"])):
        theirs = of(CompletionResponseStreamChoice, CompletionStreamResponse, logprobs)
        assert of(completion_choice, completion_chunk, logprobs) == theirs


@given(
    said=text,
    kind=st.sampled_from(
        [("text_delta", "text"), ("thinking_delta", "thinking"), ("input_json_delta", "partial_json")]
    ),
)
def test_an_event_of_an_anthropic_block(said: str, kind: tuple[str, str]) -> None:
    def of(event: Any, delta: Any) -> str:
        made = event(index=3, type="content_block_delta", delta=delta(type=kind[0], **{kind[1]: said}))
        return str(made.model_dump_json(exclude_unset=True))

    assert of(block_event, block_delta) == of(AnthropicStreamEvent, AnthropicDelta)


def test_other_anthropic_events_are_vllms_own() -> None:
    ended = block_delta(stop_reason="end_turn", stop_sequence=None)
    assert isinstance(block_event(type="message_delta", delta=ended), AnthropicStreamEvent)
    assert isinstance(block_delta(type="signature_delta", signature="s"), AnthropicDelta)
    assert isinstance(block_event(type="content_block_stop", index=1), AnthropicStreamEvent)


@given(said=text)
def test_an_event_of_the_responses_api(said: str) -> None:
    place: dict[str, Any] = {"content_index": 0, "item_id": "msg_1", "output_index": 2, "sequence_number": -1}
    reasoning = {**place, "delta": said, "type": "response.reasoning_text.delta"}
    made_text = {**place, "delta": said, "type": "response.output_text.delta"}
    text_event = chunk_classes.text_event(ResponseTextDeltaEvent, NONE)
    probabilities = [Logprob(token="a", logprob=-1e-7)]
    for ours, theirs in (
        (chunks.ReasoningEvent(**reasoning), ResponseReasoningTextDeltaEvent(**reasoning)),
        (text_event(logprobs=[], **made_text), ResponseTextDeltaEvent(logprobs=[], **made_text)),
        (
            text_event(logprobs=probabilities, **made_text),
            ResponseTextDeltaEvent(logprobs=probabilities, **made_text),
        ),
    ):
        ours.sequence_number = theirs.sequence_number = 9
        assert (ours.type, hasattr(ours, "sequence_number")) == (theirs.type, True)
        assert ours.model_dump_json(indent=None, by_alias=True) == theirs.model_dump_json(indent=None, by_alias=True)
        assert ours.model_dump() == theirs.model_dump()
