"""What servers say in one event: only the fields that are counted, everything else is passed over."""

from __future__ import annotations

import msgspec


class Delta(msgspec.Struct):
    """What a chat chunk adds."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class Choice(msgspec.Struct):
    """One choice of a chat (`delta`) or completions (`text`) chunk."""

    delta: Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


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


class OpenAiChunk(msgspec.Struct):
    """A chunk of chat or text completions."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: msgspec.Raw = msgspec.Raw()


class MessageHead(msgspec.Struct):
    """`message_start.message`."""

    usage: Usage | None = None


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
