"""Chunks of a stream as msgspec structs: the JSON of vLLM's pydantic models for a tenth of the CPU time.

The structs have the fields in the models' order, because that is the order of the JSON. A field that a model leaves out
where it was not set (`exclude_unset`) is `UNSET` here. `chunk_classes.py` puts them in the place of vLLM's.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET


def _dump(model: Any) -> dict[str, Any]:
    """A pydantic model inside a struct: the usage of a chunk, or a delta with tool calls. Of those, no value needs a
    serializer of its own."""
    was_set = model.model_fields_set
    return {name: getattr(model, name) for name in type(model).model_fields if name in was_set}


_ENCODER = msgspec.json.Encoder(enc_hook=_dump)


class Chunk(msgspec.Struct, kw_only=True):
    """What vLLM serialises."""

    def model_dump_json(self, **_options: Any) -> str:
        """See pydantic. vLLM leaves out what was not set, which is what encoding a struct does."""
        return _ENCODER.encode(self).decode()

    def model_dump(self, **_options: Any) -> dict[str, Any]:
        """See pydantic."""
        values: dict[str, Any] = msgspec.to_builtins(self, enc_hook=_dump)
        return values


class Delta(msgspec.Struct, omit_defaults=True, kw_only=True):
    """vLLM's `DeltaMessage`. No field is ever set to null, and an empty list of calls is left out."""

    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Any] = []


class ChatChoice(msgspec.Struct, kw_only=True):
    """vLLM's `ChatCompletionResponseStreamChoice` without log probabilities."""

    index: int
    delta: Any
    logprobs: None = None
    finish_reason: str | None = None
    stop_reason: Any = UNSET
    token_ids: Any = UNSET

    @property
    def tool_calls(self) -> list[Any]:
        """The delta's: `maybe_filter_parallel_tool_calls` takes what is not vLLM's class for a delta."""
        calls: list[Any] = self.delta.tool_calls
        return calls

    @tool_calls.setter
    def tool_calls(self, calls: list[Any]) -> None:
        self.delta.tool_calls = calls


class ChatChunk(Chunk):
    """vLLM's `ChatCompletionStreamResponse`."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Any = UNSET
    system_fingerprint: Any = UNSET
    prompt_token_ids: Any = UNSET
    prompt_text: Any = UNSET


class CompletionChoice(msgspec.Struct, kw_only=True):
    """vLLM's `CompletionResponseStreamChoice` without log probabilities."""

    index: int
    text: str
    logprobs: None = None
    finish_reason: str | None = None
    stop_reason: Any = None
    prompt_token_ids: Any = None
    token_ids: Any = None


class CompletionChunk(Chunk):
    """vLLM's `CompletionStreamResponse`."""

    id: str
    object: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Any = UNSET
    system_fingerprint: Any = UNSET


class _ReadFunction(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ReadCall(msgspec.Struct):
    index: int
    id: str | None = None
    function: _ReadFunction | None = None


class _ReadDelta(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_ReadCall] = []


class _ReadChoice(msgspec.Struct):
    delta: _ReadDelta
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class _ReadPromptDetails(msgspec.Struct):
    cached_tokens: int | None = None
    created_cache_tokens: int | None = None


class _ReadUsage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: _ReadPromptDetails | None = None


class ReadChunk(msgspec.Struct):
    """A chat chunk as the converter to Anthropic's events reads it. Each has the usage so far."""

    id: str
    model: str
    choices: list[_ReadChoice]
    usage: _ReadUsage | None = None


class BlockDelta(msgspec.Struct, kw_only=True):
    """vLLM's `AnthropicDelta` of a block's content."""

    type: str
    text: Any = UNSET
    thinking: Any = UNSET
    partial_json: Any = UNSET


class BlockEvent(Chunk):
    """vLLM's `AnthropicStreamEvent` with such a delta."""

    type: str
    delta: BlockDelta
    index: int


class TextEvent(Chunk):
    """OpenAI's `ResponseTextDeltaEvent`."""

    content_index: int
    delta: str
    item_id: str
    logprobs: list[Any]
    output_index: int
    sequence_number: int
    type: str


class ReasoningEvent(Chunk):
    """OpenAI's `ResponseReasoningTextDeltaEvent`."""

    content_index: int
    delta: str
    item_id: str
    output_index: int
    sequence_number: int
    type: str
