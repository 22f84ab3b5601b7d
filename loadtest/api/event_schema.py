"""Stream events of the four APIs: the fields that the load test counts and that chaos compares."""

from __future__ import annotations

import msgspec


class Delta(msgspec.Struct):
    """What a chat chunk adds."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[msgspec.Raw] | None = None
    """Each can be decoded as `ToolCall`; the load test only checks that there are some."""


class Function(msgspec.Struct):
    """A tool call's name and arguments, or a part of the arguments."""

    name: str | None = None
    arguments: str | None = None


class ToolCall(msgspec.Struct):
    """One of a chat chunk's or chat response's `tool_calls`. Only chunks have an index."""

    index: int | None = None
    function: Function | None = None


class Choice(msgspec.Struct):
    """One choice of a chat (`delta`) or completions (`text`) chunk, or of a whole chat response (`message`)."""

    delta: Delta | None = None
    text: str | None = None
    finish_reason: str | None = None
    message: Delta | None = None


class CachedTokens(msgspec.Struct):
    """`usage.prompt_tokens_details`, sent by servers that were told to."""

    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    """OpenAI's and Anthropic's names side by side; a server uses one set."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: CachedTokens | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


class OpenAiChunk(msgspec.Struct):
    """A chunk of chat or text completions, or a whole response."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: msgspec.Raw = msgspec.Raw()
    id: str | None = None


class ContentBlock(msgspec.Struct):
    """A content block of Anthropic's messages: text, thinking or a tool call."""

    text: str | None = None
    thinking: str | None = None
    name: str | None = None
    input: msgspec.Raw = msgspec.Raw()


class MessageHead(msgspec.Struct):
    """`message_start.message`, and a whole message."""

    usage: Usage | None = None
    id: str | None = None
    content: list[ContentBlock] | None = None
    stop_reason: str | None = None


class MessageDelta(msgspec.Struct):
    """`content_block_delta.delta` and `message_delta.delta` in one."""

    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None
    stop_reason: str | None = None


class MessageEvent(msgspec.Struct):
    """An event of Anthropic's messages stream."""

    type: str = ""
    message: MessageHead | None = None
    delta: MessageDelta | None = None
    usage: Usage | None = None
    error: msgspec.Raw = msgspec.Raw()
    index: int | None = None
    content_block: ContentBlock | None = None


class OutputPart(msgspec.Struct):
    """A text part of an output item of OpenAI's responses API."""

    text: str | None = None


class OutputItem(msgspec.Struct):
    """One output item: a message, reasoning or a function call."""

    type: str = ""
    content: list[OutputPart] | None = None
    name: str | None = None
    arguments: str | None = None


class ResponseObject(msgspec.Struct):
    """A whole response, and what the first and last events of a stream carry."""

    id: str | None = None
    status: str = ""
    output: list[OutputItem] = []
    usage: Usage | None = None
    error: msgspec.Raw = msgspec.Raw()


class ResponseEvent(msgspec.Struct):
    """An event of the responses stream."""

    type: str = ""
    sequence_number: int | None = None
    output_index: int = 0
    delta: str | None = None
    item: OutputItem | None = None
    response: ResponseObject | None = None
    error: msgspec.Raw = msgspec.Raw()
