"""What an answer's events say: tokens, channels, usage, errors, and so how the request ended.

Decoding runs after a stream has ended and in slices, so that a finished request never delays the clock reading of a
running one by more than one slice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import msgspec
import numpy as np

from loadtest.api.event_parser import CachedTokens, Choice, MessageEvent, OpenAiChunk, Usage
from loadtest.api.fast_path import FastPath
from loadtest.api.record import Record
from loadtest.errors import RequestOutcome, outcome_of_status
from loadtest.http.connection import Body, Exchange
from loadtest.http.event_stream import BadFraming, Event, EventFeed, payload_of

SLICE_READS = 96
"""Reads decoded before other work gets a turn: about 0.1 ms."""
BODY_KEPT = 2_000
"""Bytes of a failed response that are kept for the report."""


@dataclass(slots=True)
class ParsedResponse:
    """What the events of one response said, in the order they came. `*_reads` number socket reads."""

    chunk_reads: list[int] = field(default_factory=list)
    has_token: list[bool] = field(default_factory=list)
    text: list[bytes] = field(default_factory=list)
    """Answer text without reasoning, UTF-8."""
    visible_read: int = -1
    reasoning_read: int = -1
    usage: Usage | None = None
    bare_usage: Usage | None = None
    """Usage of an event without choices, the only one vLLM's client reads."""
    finish_reason: str = ""
    ended: bool = False
    error: str = ""
    malformed: str = ""


NULL = msgspec.Raw(b"null")
Reader = Callable[[EventFeed, list[bytes], ParsedResponse], Iterator[None]]
_openai = msgspec.json.Decoder(OpenAiChunk)
_message = msgspec.json.Decoder(MessageEvent)


def read_openai(feed: EventFeed, reads: list[bytes], parsed: ParsedResponse) -> Iterator[None]:
    """Chat and text completions. Yields after every slice."""
    fast_path: FastPath | None = None
    clean = False  # whether a read starts afresh; a lane's read leaves it so
    number = 0
    while number < len(reads):
        end = min(number + SLICE_READS, len(reads))
        while number < end:
            if clean and fast_path is not None and (texts := fast_path.texts_of(reads[number:end])):
                parsed.chunk_reads.extend(range(number, number + len(texts)))
                parsed.has_token.extend(map(bool, texts))
                if fast_path.visible:
                    parsed.text.extend(texts)
                number += len(texts)
            else:
                for event in feed.feed(reads[number], number):
                    if fast_path is not None and (text := fast_path.text_of(event.data)) is not None:
                        _add_fast(parsed, fast_path, text, event.read)
                    else:
                        fast_path = _openai_event(event, parsed, chunked=feed.chunked) or fast_path
                clean = feed.clean
                number += 1
        yield
    for event in feed.finish():
        _openai_event(event, parsed, chunked=feed.chunked)


def _add_fast(parsed: ParsedResponse, fast_path: FastPath, text: bytes, read: int) -> None:
    parsed.chunk_reads.append(read)
    parsed.has_token.append(bool(text))
    if fast_path.visible:
        parsed.text.append(text)


def _openai_event(event: Event, parsed: ParsedResponse, *, chunked: bool) -> FastPath | None:
    """Take one event in; gives a lane for events like it."""
    if event.data == b"[DONE]":
        parsed.ended = True
        return None
    chunk = _openai.decode(event.data)
    fast_path = None
    if chunk.choices:
        choice = chunk.choices[0]
        _choice(parsed, choice, event.read)
        parsed.usage = chunk.usage or parsed.usage
        if choice.finish_reason is None and chunk.usage is None:
            fast_path = _fast_path(event.data, choice, chunked=chunked)
    elif chunk.usage is not None:
        parsed.usage = parsed.bare_usage = chunk.usage
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
    said = [(key, text, visible) for key, text, visible in fields if text]
    if len(said) != 1:
        return None
    key, text, visible = said[0]
    fast_path = FastPath(data, key, text or "", visible=visible, chunked=chunked)
    return fast_path if fast_path.usable else None


def _choice(parsed: ParsedResponse, choice: Choice, read: int) -> None:
    delta = choice.delta
    visible = choice.text or (delta is not None and (delta.content or delta.tool_calls))
    thought = delta is not None and (delta.reasoning or delta.reasoning_content)
    parsed.chunk_reads.append(read)
    parsed.has_token.append(bool(visible or thought))
    if visible and parsed.visible_read < 0:
        parsed.visible_read = read
    if thought and parsed.reasoning_read < 0:
        parsed.reasoning_read = read
    text = choice.text if delta is None else delta.content
    if text:
        parsed.text.append(text.encode())
    if choice.finish_reason:
        parsed.finish_reason = choice.finish_reason


def read_messages(feed: EventFeed, reads: list[bytes], parsed: ParsedResponse) -> Iterator[None]:
    """Anthropic's messages: a content block's delta is what a chunk with choices is to OpenAI."""
    usage = Usage()
    for number, read in enumerate(reads):
        for event in feed.feed(read, number):
            _messages_event(event, parsed, usage)
        if number % SLICE_READS == 0:
            yield
    for event in feed.finish():
        _messages_event(event, parsed, usage)


def _messages_event(event: Event, parsed: ParsedResponse, usage: Usage) -> None:
    said = _message.decode(event.data)
    delta = said.delta
    if said.type != "content_block_delta" or delta is None:
        _message_frame(parsed, said, usage)
        return
    visible = delta.text or delta.partial_json
    parsed.chunk_reads.append(event.read)
    parsed.has_token.append(bool(visible or delta.thinking))
    if visible and parsed.visible_read < 0:
        parsed.visible_read = event.read
    if delta.thinking and parsed.reasoning_read < 0:
        parsed.reasoning_read = event.read
    parsed.text.append((delta.text or "").encode())


def _message_frame(parsed: ParsedResponse, said: MessageEvent, usage: Usage) -> None:
    usage_part = said.usage or (said.message.usage if said.message else None)
    if usage_part is not None:
        usage.prompt_tokens = usage_part.input_tokens or usage.prompt_tokens
        usage.completion_tokens = usage_part.output_tokens or usage.completion_tokens
        usage.prompt_tokens_details = CachedTokens(usage_part.cache_read_input_tokens)
        parsed.usage = parsed.bare_usage = usage
    if said.delta is not None and said.delta.stop_reason:
        parsed.finish_reason = said.delta.stop_reason
    if said.error and said.error != NULL:
        parsed.error = bytes(said.error).decode(errors="replace")
    parsed.ended = parsed.ended or said.type == "message_stop"


def read_answer(record: Record, exchange: Exchange, reader: Reader, *, forced: bool, keep_text: bool) -> Iterator[None]:
    """Fill `record` from the exchange; yields between slices of work.

    With `forced`, fewer tokens than planned make the request a failure: the server was told not to stop.
    """
    record.start_ns, record.sent_ns = exchange.start_ns, exchange.sent_ns
    record.first_byte_ns, record.end_ns = exchange.first_byte_ns, exchange.end_ns
    record.status = exchange.status
    record.replica = exchange.headers.get("x-replica-id", "")
    parsed = ParsedResponse()
    feed = EventFeed(chunked=exchange.body is Body.CHUNKED)
    try:
        if exchange.status == 200:
            yield from reader(feed, exchange.reads, parsed)
    except (BadFraming, msgspec.DecodeError) as bad:
        if not exchange.failure:  # a stream that was cut may well end in half an event
            parsed.malformed = str(bad)
    _fill(record, exchange, parsed)
    record.outcome, record.error = _outcome(record, exchange, parsed, forced)
    if record.failed:
        record.body = _body_start(exchange)
    if keep_text:
        record.text = b"".join(parsed.text).decode(errors="replace")


def _body_start(exchange: Exchange) -> str:
    try:
        return payload_of(exchange)[:BODY_KEPT].decode(errors="replace")
    except BadFraming:
        return b"".join(exchange.reads)[:BODY_KEPT].decode(errors="replace")


def _fill(record: Record, exchange: Exchange, parsed: ParsedResponse) -> None:
    reads = np.asarray(parsed.chunk_reads, dtype=np.int64)
    times = np.asarray(exchange.times, dtype=np.int64)
    record.chunk_ns = times[reads] if len(reads) else record.chunk_ns
    record.chunk_has_token = np.asarray(parsed.has_token, dtype=np.bool_)
    record.first_visible_ns = exchange.times[parsed.visible_read] if parsed.visible_read >= 0 else 0
    record.first_reasoning_ns = exchange.times[parsed.reasoning_read] if parsed.reasoning_read >= 0 else 0
    record.finish_reason = parsed.finish_reason
    usage, bare = parsed.usage, parsed.bare_usage
    if usage is not None:
        record.prompt_tokens = usage.prompt_tokens or 0
        record.output_tokens = usage.completion_tokens or 0
        details = usage.prompt_tokens_details
        record.cached_tokens = (details.cached_tokens or 0) if details else 0
        record.tokens_from = "usage"
    if not record.output_tokens:
        record.output_tokens = int(np.count_nonzero(record.chunk_has_token))
        record.tokens_from = "chunks"
    record.vllm_output_tokens = (bare.completion_tokens or 0) if bare else 0
    record.vllm_prompt_tokens = (bare.prompt_tokens if bare else None) or record.planned_prompt_tokens
    record.vllm_success = exchange.status == 200 and bool(len(reads)) and not parsed.malformed and not exchange.failure


def _outcome(record: Record, exchange: Exchange, parsed: ParsedResponse, forced: bool) -> tuple[RequestOutcome, str]:
    """The first thing that went wrong, in the order a user would want to hear it."""
    if exchange.abandoned is not None:
        return exchange.abandoned, exchange.failure
    if exchange.failure and not exchange.status:
        return RequestOutcome.CUT, exchange.failure
    if exchange.status != 200:
        retry = exchange.headers.get("retry-after", "")
        record.retry_after_s = float(retry) if retry.replace(".", "", 1).isdigit() else 0.0
        return outcome_of_status(exchange.status), f"HTTP {exchange.status}"
    if parsed.error:
        return RequestOutcome.ERROR_EVENT, parsed.error
    if exchange.failure:
        return RequestOutcome.CUT, exchange.failure
    if parsed.malformed:
        return RequestOutcome.MALFORMED, parsed.malformed
    if not np.any(record.chunk_has_token) and not record.output_tokens:
        return RequestOutcome.EMPTY, "the stream carried no token"
    if not parsed.ended and not parsed.finish_reason:
        return RequestOutcome.NO_END, "the stream ended without a finish reason and without an end marker"
    if forced and record.tokens_from == "usage" and record.output_tokens < record.planned_output_tokens:
        return RequestOutcome.SHORT, f"{record.output_tokens} tokens of the forced {record.planned_output_tokens}"
    return RequestOutcome.OK, ""
