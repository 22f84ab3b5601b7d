"""vLLM makes the chunks of a stream of our structs (`chunks.py`) in place of pydantic models.

vLLM builds three pydantic models for each chunk and serialises them, and for `/v1/messages` it parses that JSON into
models again: two thirds of what a token costs at an ingress. The code that decides what a chunk says stays vLLM's. Only
the classes that it makes chunks of are replaced, and only for the chunks that every token has: text and reasoning, the
start and the end. What has log probabilities, and any class not named here, is vLLM's own as before.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, Final

import msgspec

from serve_app.vllm_patches.chunks import (
    BlockDelta,
    BlockEvent,
    ChatChoice,
    ChatChunk,
    Chunk,
    CompletionChoice,
    CompletionChunk,
    Delta,
    ReadChunk,
    ReasoningEvent,
    TextEvent,
)
from serve_app.vllm_patches.patching import Function, PatchTarget, replace

CHAT: Final = "vllm.entrypoints.openai.chat_completion.serving"
COMPLETION: Final = "vllm.entrypoints.openai.completion.serving"
ANTHROPIC: Final = "vllm.entrypoints.anthropic.serving"
RESPONSES: Final = "vllm.entrypoints.openai.responses.streaming_events"

CHAT_DELTA: Final = PatchTarget(CHAT, "", "DeltaMessage", ("role", "content"))
CHAT_CHOICE: Final = PatchTarget(
    CHAT, "", "ChatCompletionResponseStreamChoice", ("index", "delta", "logprobs", "finish_reason")
)
CHAT_CHUNK: Final = PatchTarget(CHAT, "", "ChatCompletionStreamResponse", ("id", "object", "created", "model"))
COMPLETION_CHOICE: Final = PatchTarget(
    COMPLETION, "", "CompletionResponseStreamChoice", ("index", "text", "logprobs", "finish_reason", "stop_reason")
)
COMPLETION_CHUNK: Final = PatchTarget(COMPLETION, "", "CompletionStreamResponse", ("id", "object", "created", "model"))
CHAT_USAGE: Final = PatchTarget(CHAT, "", "UsageInfo", ("prompt_tokens", "completion_tokens", "total_tokens"))
CHAT_USAGE_DETAILS: Final = PatchTarget(CHAT, "", "CompletionTokenUsageInfo", ("reasoning_tokens",))
READ_CHUNK: Final = PatchTarget(ANTHROPIC, "", "ChatCompletionStreamResponse", ("id", "model", "choices", "usage"))
ANTHROPIC_DELTA: Final = PatchTarget(ANTHROPIC, "", "AnthropicDelta", ("type", "text", "thinking", "partial_json"))
ANTHROPIC_EVENT: Final = PatchTarget(ANTHROPIC, "", "AnthropicStreamEvent", ("type", "delta", "index"))
TEXT_EVENT: Final = PatchTarget(RESPONSES, "", "ResponseTextDeltaEvent", ())
REASONING_EVENT: Final = PatchTarget(RESPONSES, "", "ResponseReasoningTextDeltaEvent", ())
TARGETS: Final = (
    CHAT_DELTA,
    CHAT_CHOICE,
    CHAT_CHUNK,
    CHAT_USAGE,
    CHAT_USAGE_DETAILS,
    COMPLETION_CHOICE,
    COMPLETION_CHUNK,
    READ_CHUNK,
    ANTHROPIC_DELTA,
    ANTHROPIC_EVENT,
)
"""The two events of OpenAI's package are not vLLM's to check."""

BLOCK_DELTAS: Final = frozenset({"text_delta", "thinking_delta", "input_json_delta"})


def use_structs() -> None:
    """Called once for each process that serves an API. Calling it again changes nothing."""
    replace(CHAT_DELTA, lambda _original, _module: Delta)
    replace(CHAT_CHOICE, chat_choice)
    replace(CHAT_CHUNK, lambda original, _module: chunk_of(original, ChatChunk, ChatChoice))
    replace(COMPLETION_CHOICE, completion_choice)
    replace(COMPLETION_CHUNK, lambda original, _module: chunk_of(original, CompletionChunk, CompletionChoice))
    replace(CHAT_USAGE, unchecked)
    replace(CHAT_USAGE_DETAILS, unchecked)
    replace(READ_CHUNK, read_chunk)
    replace(ANTHROPIC_DELTA, block_delta)
    replace(ANTHROPIC_EVENT, block_event)
    replace(TEXT_EVENT, text_event)
    replace(REASONING_EVENT, lambda _original, _module: ReasoningEvent)


def chat_choice(original: Function, _: ModuleType) -> Function:
    """A choice with log probabilities stays vLLM's, and its delta with it."""
    message = original.model_fields["delta"].annotation  # type: ignore[attr-defined]  # a pydantic model

    def make(*, index: int, delta: Any, logprobs: Any = None, **fields: Any) -> Any:
        if logprobs is None:
            return ChatChoice(index=index, delta=delta, **fields)
        if isinstance(delta, Delta):
            delta = message(**msgspec.to_builtins(delta))
        return original(index=index, delta=delta, logprobs=logprobs, **fields)

    return make


def completion_choice(original: Function, _: ModuleType) -> Function:
    """A choice with log probabilities stays vLLM's."""

    def make(*, logprobs: Any = None, **fields: Any) -> Any:
        return CompletionChoice(**fields) if logprobs is None else original(logprobs=logprobs, **fields)

    return make


def chunk_of(original: Function, chunk: type[Chunk], choice: type[msgspec.Struct]) -> Function:
    """A chunk of our choices is ours. One without choices, which has the usage, is vLLM's."""

    def make(*, choices: list[Any], **fields: Any) -> Any:
        ours = bool(choices) and isinstance(choices[0], choice)
        return (chunk if ours else original)(choices=choices, **fields)

    return make


def unchecked(original: Function, _: ModuleType) -> Function:
    """vLLM's model, without the validation of numbers that vLLM has just counted."""
    construct = original.model_construct  # type: ignore[attr-defined]  # a pydantic model

    def make(**fields: Any) -> Any:
        return construct(set(fields), **fields)

    return make


def read_chunk(original: Function, _: ModuleType) -> Function:
    """The converter to Anthropic's events parses each chat chunk, and makes none."""

    def make(**fields: Any) -> Any:
        return original(**fields)

    make.model_validate_json = msgspec.json.Decoder(ReadChunk).decode  # type: ignore[attr-defined]  # as pydantic's
    return make


def block_delta(original: Function, _: ModuleType) -> Function:
    """What is not a block's content stays vLLM's."""

    def make(*, type: str | None = None, **fields: Any) -> Any:  # noqa: A002  # the field's name
        if type in BLOCK_DELTAS:
            return BlockDelta(type=type, **fields)
        return original(**fields) if type is None else original(type=type, **fields)

    return make


def block_event(original: Function, _: ModuleType) -> Function:
    """An event with such a delta is ours."""

    def make(**fields: Any) -> Any:
        return (BlockEvent if isinstance(fields.get("delta"), BlockDelta) else original)(**fields)

    return make


def text_event(original: Function, _: ModuleType) -> Function:
    """An event with log probabilities stays OpenAI's."""

    def make(*, logprobs: list[Any], **fields: Any) -> Any:
        return (original if logprobs else TextEvent)(logprobs=logprobs, **fields)

    return make
