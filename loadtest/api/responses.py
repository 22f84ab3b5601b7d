"""What an answer's events say: tokens, channels, usage, errors, and so how the request ended.

Decoding runs after a stream has ended and in slices, so that a finished request never delays the clock reading of a
running one by more than one slice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import msgspec
import numpy as np

from loadtest.api.event_schema import CachedTokens, Choice, MessageEvent, OpenAiChunk, Usage
from loadtest.api.fast_path import Lane
from loadtest.api.record import Record
from loadtest.http.connection import Body, Exchange
from loadtest.http.event_stream import BadFraming, Event, EventFeed, payload_of
from loadtest.outcome import Outcome, of_status

SLICE_READS = 96
"""Reads decoded before other work gets a turn: about 0.1 ms."""
BODY_KEPT = 2_000
"""Bytes of a failed response that are kept for the report."""


@dataclass(slots=True)
class Reading:
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
Reader = Callable[[EventFeed, list[bytes], Reading], Iterator[None]]
_openai = msgspec.json.Decoder(OpenAiChunk)
_message = msgspec.json.Decoder(MessageEvent)


def read_openai(feed: EventFeed, reads: list[bytes], reading: Reading) -> Iterator[None]:
    """Chat and text completions. Yields after every slice."""
    lane: Lane | None = None
    clean = False  # whether a read starts afresh; a lane's read leaves it so
    number = 0
    while number < len(reads):
        end = min(number + SLICE_READS, len(reads))
        while number < end:
            if clean and lane is not None and (texts := lane.texts_of(reads[number:end])):
                reading.chunk_reads.extend(range(number, number + len(texts)))
                reading.has_token.extend(map(bool, texts))
                if lane.visible:
                    reading.text.extend(texts)
                number += len(texts)
            else:
                for event in feed.feed(reads[number], number):
                    if lane is not None and (text := lane.text_of(event.data)) is not None:
                        _alike(reading, lane, text, event.read)
                    else:
                        lane = _openai_event(event, reading, chunked=feed.chunked) or lane
                clean = feed.clean
                number += 1
        yield
    for event in feed.finish():
        _openai_event(event, reading, chunked=feed.chunked)


def _alike(reading: Reading, lane: Lane, text: bytes, read: int) -> None:
    reading.chunk_reads.append(read)
    reading.has_token.append(bool(text))
    if lane.visible:
        reading.text.append(text)


def _openai_event(event: Event, reading: Reading, *, chunked: bool) -> Lane | None:
    """Take one event in; gives a lane for events like it."""
    if event.data == b"[DONE]":
        reading.ended = True
        return None
    chunk = _openai.decode(event.data)
    lane = None
    if chunk.choices:
        choice = chunk.choices[0]
        _choice(reading, choice, event.read)
        reading.usage = chunk.usage or reading.usage
        if choice.finish_reason is None and chunk.usage is None:
            lane = _lane(event.data, choice, chunked=chunked)
    elif chunk.usage is not None:
        reading.usage = reading.bare_usage = chunk.usage
    if chunk.error and chunk.error != NULL:
        reading.error = bytes(chunk.error).decode(errors="replace")
    return lane


def _lane(data: bytes, choice: Choice, *, chunked: bool) -> Lane | None:
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
    lane = Lane(data, key, text or "", visible=visible, chunked=chunked)
    return lane if lane.known else None


def _choice(reading: Reading, choice: Choice, read: int) -> None:
    delta = choice.delta
    visible = choice.text or (delta is not None and (delta.content or delta.tool_calls))
    thought = delta is not None and (delta.reasoning or delta.reasoning_content)
    reading.chunk_reads.append(read)
    reading.has_token.append(bool(visible or thought))
    if visible and reading.visible_read < 0:
        reading.visible_read = read
    if thought and reading.reasoning_read < 0:
        reading.reasoning_read = read
    text = choice.text if delta is None else delta.content
    if text:
        reading.text.append(text.encode())
    if choice.finish_reason:
        reading.finish_reason = choice.finish_reason


def read_messages(feed: EventFeed, reads: list[bytes], reading: Reading) -> Iterator[None]:
    """Anthropic's messages: a content block's delta is what a chunk with choices is to OpenAI."""
    usage = Usage()
    for number, read in enumerate(reads):
        for event in feed.feed(read, number):
            _messages_event(event, reading, usage)
        if number % SLICE_READS == 0:
            yield
    for event in feed.finish():
        _messages_event(event, reading, usage)


def _messages_event(event: Event, reading: Reading, usage: Usage) -> None:
    said = _message.decode(event.data)
    delta = said.delta
    if said.type != "content_block_delta" or delta is None:
        _message_frame(reading, said, usage)
        return
    visible = delta.text or delta.partial_json
    reading.chunk_reads.append(event.read)
    reading.has_token.append(bool(visible or delta.thinking))
    if visible and reading.visible_read < 0:
        reading.visible_read = event.read
    if delta.thinking and reading.reasoning_read < 0:
        reading.reasoning_read = event.read
    reading.text.append((delta.text or "").encode())


def _message_frame(reading: Reading, said: MessageEvent, usage: Usage) -> None:
    heard = said.usage or (said.message.usage if said.message else None)
    if heard is not None:
        usage.prompt_tokens = heard.input_tokens or usage.prompt_tokens
        usage.completion_tokens = heard.output_tokens or usage.completion_tokens
        usage.prompt_tokens_details = CachedTokens(heard.cache_read_input_tokens)
        reading.usage = reading.bare_usage = usage
    if said.delta is not None and said.delta.stop_reason:
        reading.finish_reason = said.delta.stop_reason
    if said.error and said.error != NULL:
        reading.error = bytes(said.error).decode(errors="replace")
    reading.ended = reading.ended or said.type == "message_stop"


def read_answer(record: Record, exchange: Exchange, reader: Reader, *, forced: bool, keep_text: bool) -> Iterator[None]:
    """Fill `record` from the exchange; yields between slices of work.

    With `forced`, fewer tokens than planned make the request a failure: the server was told not to stop.
    """
    record.start_ns, record.sent_ns = exchange.start_ns, exchange.sent_ns
    record.first_byte_ns, record.end_ns = exchange.first_byte_ns, exchange.end_ns
    record.status = exchange.status
    record.replica = exchange.headers.get("x-replica-id", "")
    reading = Reading()
    feed = EventFeed(chunked=exchange.body is Body.CHUNKED)
    try:
        if exchange.status == 200:
            yield from reader(feed, exchange.reads, reading)
    except (BadFraming, msgspec.DecodeError) as bad:
        if not exchange.failure:  # a stream that was cut may well end in half an event
            reading.malformed = str(bad)
    _fill(record, exchange, reading)
    record.outcome, record.error = _judge(record, exchange, reading, forced)
    if record.failed:
        record.body = _body_start(exchange)
    if keep_text:
        record.text = b"".join(reading.text).decode(errors="replace")


def _body_start(exchange: Exchange) -> str:
    try:
        return payload_of(exchange)[:BODY_KEPT].decode(errors="replace")
    except BadFraming:
        return b"".join(exchange.reads)[:BODY_KEPT].decode(errors="replace")


def _fill(record: Record, exchange: Exchange, reading: Reading) -> None:
    reads = np.asarray(reading.chunk_reads, dtype=np.int64)
    times = np.asarray(exchange.times, dtype=np.int64)
    record.chunk_ns = times[reads] if len(reads) else record.chunk_ns
    record.chunk_has_token = np.asarray(reading.has_token, dtype=np.bool_)
    record.first_visible_ns = exchange.times[reading.visible_read] if reading.visible_read >= 0 else 0
    record.first_reasoning_ns = exchange.times[reading.reasoning_read] if reading.reasoning_read >= 0 else 0
    record.finish_reason = reading.finish_reason
    usage, bare = reading.usage, reading.bare_usage
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
    record.vllm_success = exchange.status == 200 and bool(len(reads)) and not reading.malformed and not exchange.failure


def _judge(record: Record, exchange: Exchange, reading: Reading, forced: bool) -> tuple[Outcome, str]:
    """The first thing that went wrong, in the order a user would want to hear it."""
    if exchange.abandoned is not None:
        return exchange.abandoned, exchange.failure
    if exchange.failure and not exchange.status:
        return Outcome.CUT, exchange.failure
    if exchange.status != 200:
        retry = exchange.headers.get("retry-after", "")
        record.retry_after_s = float(retry) if retry.replace(".", "", 1).isdigit() else 0.0
        return of_status(exchange.status), f"HTTP {exchange.status}"
    if reading.error:
        return Outcome.ERROR_EVENT, reading.error
    if exchange.failure:
        return Outcome.CUT, exchange.failure
    if reading.malformed:
        return Outcome.MALFORMED, reading.malformed
    if not np.any(record.chunk_has_token) and not record.output_tokens:
        return Outcome.EMPTY, "the stream carried no token"
    if not reading.ended and not reading.finish_reason:
        return Outcome.NO_END, "the stream ended without a finish reason and without an end marker"
    if forced and record.tokens_from == "usage" and record.output_tokens < record.planned_output_tokens:
        return Outcome.SHORT, f"{record.output_tokens} tokens of the forced {record.planned_output_tokens}"
    return Outcome.OK, ""
