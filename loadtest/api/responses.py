"""Turn an exchange into a record: times, tokens, and the request's outcome."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np

from loadtest.api.event_parser import EventParser, ParsedResponse
from loadtest.api.record import Record
from loadtest.errors import RequestOutcome, outcome_of_status
from loadtest.http.connection import Body, Exchange
from loadtest.http.event_stream import BadFraming, EventFeed, payload_of

BODY_KEPT = 2_000
"""Bytes of a failed response that are kept for the report."""


def parse_response(
    record: Record, exchange: Exchange, parser: EventParser, *, forced_length: bool, keep_text: bool
) -> Iterator[None]:
    """Fill `record` from a finished exchange; yields between slices of work.

    With `forced_length` (`ignore_eos`), fewer tokens than planned make the request a failure.
    """
    record.start_ns, record.sent_ns = exchange.start_ns, exchange.sent_ns
    record.first_byte_ns, record.end_ns = exchange.first_byte_ns, exchange.end_ns
    record.status = exchange.status
    record.replica = exchange.headers.get("x-replica-id", "")
    parsed = ParsedResponse()
    feed = EventFeed(chunked=exchange.body is Body.CHUNKED)
    try:
        if exchange.status == 200:
            yield from parser(feed, exchange.reads, parsed)
    except (BadFraming, msgspec.DecodeError) as bad:
        if not exchange.failure:  # an incomplete response may end within an event; it has its own outcome
            parsed.malformed = str(bad)
    _fill(record, exchange, parsed)
    record.outcome, record.error = _outcome(record, exchange, parsed, forced_length=forced_length)
    if record.failed:
        record.body = _body_start(exchange)
    if keep_text:
        record.text = b"".join(parsed.text).decode(errors="replace")
        record.reasoning = b"".join(parsed.reasoning).decode(errors="replace")


def _body_start(exchange: Exchange) -> str:
    try:
        return payload_of(exchange)[:BODY_KEPT].decode(errors="replace")
    except BadFraming:
        return b"".join(exchange.reads)[:BODY_KEPT].decode(errors="replace")


def _fill(record: Record, exchange: Exchange, parsed: ParsedResponse) -> None:
    chunks = np.asarray(parsed.chunk_read_index, dtype=np.int64)
    read_ns = np.asarray(exchange.read_ns, dtype=np.int64)
    record.chunk_ns = read_ns[chunks] if len(chunks) else record.chunk_ns
    record.chunk_has_token = np.asarray(parsed.has_token, dtype=np.bool_)
    record.first_visible_ns = exchange.read_ns[parsed.visible_read_index] if parsed.visible_read_index >= 0 else 0
    record.first_reasoning_ns = exchange.read_ns[parsed.reasoning_read_index] if parsed.reasoning_read_index >= 0 else 0
    record.finish_reason = parsed.finish_reason
    usage, final_usage = parsed.usage, parsed.final_usage
    if usage is not None:
        record.prompt_tokens = usage.prompt_tokens or 0
        record.output_tokens = usage.completion_tokens or 0
        details = usage.prompt_tokens_details
        record.cached_tokens = (details.cached_tokens or 0) if details else 0
        record.tokens_from = "usage"
    if not record.output_tokens:
        record.output_tokens = int(np.count_nonzero(record.chunk_has_token))
        record.tokens_from = "chunks"
    record.vllm_output_tokens = (final_usage.completion_tokens or 0) if final_usage else 0
    record.vllm_prompt_tokens = (final_usage.prompt_tokens if final_usage else None) or record.planned_prompt_tokens
    record.vllm_success = exchange.status == 200 and bool(len(chunks)) and not parsed.malformed and not exchange.failure


def _outcome(
    record: Record, exchange: Exchange, parsed: ParsedResponse, *, forced_length: bool
) -> tuple[RequestOutcome, str]:
    """The outcome and its message. Where several apply, the cause comes before its consequences."""
    if exchange.abandoned is not None:
        return exchange.abandoned, exchange.failure
    if exchange.failure and not exchange.status:
        return RequestOutcome.CUT, exchange.failure
    if exchange.status != 200:
        retry = exchange.headers.get("retry-after", "")
        record.retry_after_s = float(retry) if retry.replace(".", "", 1).isdecimal() else 0.0
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
    if forced_length and record.tokens_from == "usage" and record.output_tokens < record.planned_output_tokens:
        return RequestOutcome.SHORT, f"{record.output_tokens} tokens of the forced {record.planned_output_tokens}"
    return RequestOutcome.OK, ""
