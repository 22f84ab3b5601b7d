"""Parse a response's events: tokens, channels, usage, errors.

Parsing runs after a stream has ended and in slices, so that a finished request delays the timestamps of a running one
by at most one slice. Only the fields that are counted are decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import msgspec

from loadtest.api.event_schema import CachedTokens, Choice, MessageEvent, OpenAiChunk, Usage
from loadtest.api.fast_path import FastPath
from loadtest.http.event_stream import Event, EventFeed

SLICE_READS = 96
"""Reads that are parsed before other tasks get a turn: about 0.1 ms."""
NULL = msgspec.Raw(b"null")


@dataclass(slots=True)
class ParsedResponse:
    """The content of one response's events. A `*_read_index` counts socket reads; -1: never."""

    chunk_read_index: list[int] = field(default_factory=list)
    """One entry per event with choices."""
    has_token: list[bool] = field(default_factory=list)
    text: list[bytes] = field(default_factory=list)
    """Answer text without reasoning, UTF-8."""
    reasoning: list[bytes] = field(default_factory=list)
    visible_read_index: int = -1
    reasoning_read_index: int = -1
    usage: Usage | None = None
    final_usage: Usage | None = None
    """Usage of an event without choices, the only one that vLLM's client reads."""
    finish_reason: str = ""
    ended: bool = False
    """Whether the protocol's end marker arrived."""
    error: str = ""
    malformed: str = ""


EventParser = Callable[[EventFeed, list[bytes], ParsedResponse], Iterator[None]]
"""Parses reads into a `ParsedResponse`; yields after every slice. Raises BadFraming and msgspec.DecodeError."""
_openai = msgspec.json.Decoder(OpenAiChunk)
_message = msgspec.json.Decoder(MessageEvent)


def parse_openai(feed: EventFeed, reads: list[bytes], parsed: ParsedResponse) -> Iterator[None]:
    """An `EventParser` for chat and text completions."""
    fast_path: FastPath | None = None
    between_events = False  # a read that the fast path takes leaves this as it is
    index = 0
    while index < len(reads):
        end = min(index + SLICE_READS, len(reads))
        while index < end:
            if between_events and fast_path is not None and (texts := fast_path.texts_of(reads[index:end])):
                parsed.chunk_read_index.extend(range(index, index + len(texts)))
                parsed.has_token.extend(map(bool, texts))
                (parsed.text if fast_path.visible else parsed.reasoning).extend(texts)
                index += len(texts)
            else:
                for event in feed.feed(reads[index], index):
                    if fast_path is not None and (text := fast_path.text_of(event.data)) is not None:
                        _add_text(parsed, fast_path, text, event.read_index)
                    else:
                        fast_path = _openai_event(event, parsed, chunked=feed.chunked) or fast_path
                between_events = feed.between_events
                index += 1
        yield
    for event in feed.finish():
        _openai_event(event, parsed, chunked=feed.chunked)


def _add_text(parsed: ParsedResponse, fast_path: FastPath, text: bytes, read_index: int) -> None:
    parsed.chunk_read_index.append(read_index)
    parsed.has_token.append(bool(text))
    (parsed.text if fast_path.visible else parsed.reasoning).append(text)


def _openai_event(event: Event, parsed: ParsedResponse, *, chunked: bool) -> FastPath | None:
    """Add one event; returns a fast path for events that differ only in their text, where one can be built."""
    if event.data == b"[DONE]":
        parsed.ended = True
        return None
    chunk = _openai.decode(event.data)
    fast_path = None
    if chunk.choices:
        choice = chunk.choices[0]
        _add_choice(parsed, choice, event.read_index)
        parsed.usage = chunk.usage or parsed.usage
        if choice.finish_reason is None and chunk.usage is None:
            fast_path = _fast_path(event.data, choice, chunked=chunked)
    elif chunk.usage is not None:
        parsed.usage = parsed.final_usage = chunk.usage
    if chunk.error and chunk.error != NULL:
        parsed.error = bytes(chunk.error).decode(errors="replace")
    return fast_path


def _fast_path(data: bytes, choice: Choice, *, chunked: bool) -> FastPath | None:
    delta = choice.delta
    if delta is None:
        fields = [(b'"text":"', choice.text, True)]
    elif delta.tool_calls:
        return None
    else:
        fields = [
            (b'"content":"', delta.content, True),
            (b'"reasoning":"', delta.reasoning, False),
            (b'"reasoning_content":"', delta.reasoning_content, False),
        ]
    with_text = [(key, text, visible) for key, text, visible in fields if text]
    if len(with_text) != 1:
        return None
    key, text, visible = with_text[0]
    fast_path = FastPath(data, key, text or "", visible=visible, chunked=chunked)
    return fast_path if fast_path.usable else None


def _add_choice(parsed: ParsedResponse, choice: Choice, read_index: int) -> None:
    delta = choice.delta
    visible = choice.text or (delta is not None and (delta.content or delta.tool_calls))
    reasoning = delta is not None and (delta.reasoning or delta.reasoning_content)
    parsed.chunk_read_index.append(read_index)
    parsed.has_token.append(bool(visible or reasoning))
    if visible and parsed.visible_read_index < 0:
        parsed.visible_read_index = read_index
    if reasoning and parsed.reasoning_read_index < 0:
        parsed.reasoning_read_index = read_index
    text = choice.text if delta is None else delta.content
    if text:
        parsed.text.append(text.encode())
    if delta is not None and reasoning:
        parsed.reasoning.append(reasoning.encode())
    if choice.finish_reason:
        parsed.finish_reason = choice.finish_reason


def parse_messages(feed: EventFeed, reads: list[bytes], parsed: ParsedResponse) -> Iterator[None]:
    """An `EventParser` for Anthropic's messages: a `content_block_delta` counts as an event with choices."""
    usage = Usage()
    for index, read in enumerate(reads):
        for event in feed.feed(read, index):
            _messages_event(event, parsed, usage)
        if index % SLICE_READS == 0:
            yield
    for event in feed.finish():
        _messages_event(event, parsed, usage)


def _messages_event(event: Event, parsed: ParsedResponse, usage: Usage) -> None:
    message = _message.decode(event.data)
    delta = message.delta
    if message.type != "content_block_delta" or delta is None:
        _message_frame(parsed, message, usage)
        return
    visible = delta.text or delta.partial_json
    parsed.chunk_read_index.append(event.read_index)
    parsed.has_token.append(bool(visible or delta.thinking))
    if visible and parsed.visible_read_index < 0:
        parsed.visible_read_index = event.read_index
    if delta.thinking and parsed.reasoning_read_index < 0:
        parsed.reasoning_read_index = event.read_index
    parsed.text.append((delta.text or "").encode())
    parsed.reasoning.append((delta.thinking or "").encode())


def _message_frame(parsed: ParsedResponse, message: MessageEvent, usage: Usage) -> None:
    """An event around the content: usage, stop reason, error, end."""
    usage_part = message.usage or (message.message.usage if message.message else None)
    if usage_part is not None:
        usage.prompt_tokens = usage_part.input_tokens or usage.prompt_tokens
        usage.completion_tokens = usage_part.output_tokens or usage.completion_tokens
        if usage_part.cache_read_input_tokens is not None:  # only `message_start` may have it
            usage.prompt_tokens_details = CachedTokens(usage_part.cache_read_input_tokens)
        parsed.usage = parsed.final_usage = usage
    if message.delta is not None and message.delta.stop_reason:
        parsed.finish_reason = message.delta.stop_reason
    if message.error and message.error != NULL:
        parsed.error = bytes(message.error).decode(errors="replace")
    parsed.ended = parsed.ended or message.type == "message_stop"
