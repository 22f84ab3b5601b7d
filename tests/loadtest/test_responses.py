"""A response becomes a record with the right tokens, times and outcome, for every API and every way it can end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
import pytest

from loadtest.api.record import Record
from loadtest.api.requests import PARSERS, Api
from loadtest.api.responses import BODY_KEPT, parse_response
from loadtest.errors import RequestOutcome, outcome_of_status
from loadtest.http.connection import Body, Exchange
from loadtest.mock.answers import chunk

DONE = b"data: [DONE]\n\n"


def event(content: object, name: str = "") -> bytes:
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + msgspec.json.encode(content) + b"\n\n"


def chat(delta: dict[str, object], **fields: object) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": fields.pop("finish_reason", None)}
    return event({"choices": [choice], **fields})


def usage_event(usage: object) -> bytes:
    return event({"choices": [], "usage": usage})


def message(kind: str, **fields: object) -> bytes:
    return event({"type": kind, **fields}, kind)


def block(**delta: object) -> bytes:
    return message("content_block_delta", index=0, delta=delta)


def record_of(
    reads: Sequence[bytes],
    *,
    api: Api = Api.CHAT,
    status: int = 200,
    headers: dict[str, str] | None = None,
    body: Body = Body.UNTIL_CLOSE,
    failure: str = "",
    abandoned: RequestOutcome | None = None,
    planned: int = 0,
) -> Record:
    """The record of a response whose n-th read arrived at n + 1 ms."""
    loop = asyncio.new_event_loop()
    exchange = Exchange(loop.create_future(), start_ns=0, status=status, headers=headers or {}, body=body)
    loop.close()
    exchange.reads = list(reads)
    exchange.read_ns = [(index + 1) * 1_000_000 for index in range(len(reads))]
    exchange.failure, exchange.abandoned = failure, abandoned
    record = Record(index=0, planned_prompt_tokens=7, planned_output_tokens=planned)
    for _ in parse_response(record, exchange, PARSERS[api], forced_length=planned > 0, keep_text=True):
        pass
    return record


def ms(times_ns: Sequence[int]) -> list[int]:
    return [int(time_ns) // 1_000_000 for time_ns in times_ns]


HELLO = [chat({"role": "assistant", "content": ""}), chat({"content": "Hel"}), chat({"content": "lo"})]
STOP = chat({"content": ""}, finish_reason="stop")


def test_chat_text_finish_reason_and_usage_are_read() -> None:
    record = record_of([*HELLO, STOP, usage_event({"prompt_tokens": 3, "completion_tokens": 2}), DONE])
    assert (record.outcome, record.text, record.finish_reason) == (RequestOutcome.OK, "Hello", "stop")
    assert (record.prompt_tokens, record.output_tokens, record.tokens_from) == (3, 2, "usage")
    assert (record.vllm_prompt_tokens, record.vllm_output_tokens) == (3, 2)
    assert record.chunk_has_token.tolist() == [False, True, True, False]
    assert ms(record.chunk_ns) == [1, 2, 3, 4]
    assert record.first_token_ns == record.first_visible_ns == 2_000_000


def test_usage_beside_choices_counts_for_us_and_not_for_vllm() -> None:
    record = record_of([*HELLO, chat({}, finish_reason="stop", usage={"prompt_tokens": 3, "completion_tokens": 2})])
    assert (record.prompt_tokens, record.output_tokens) == (3, 2)
    assert (record.vllm_prompt_tokens, record.vllm_output_tokens) == (7, 0), "planned, and none"
    assert record.output_tokens_or_one() == 1


def test_the_last_usage_of_continuous_usage_wins() -> None:
    reads = [chat({"content": "a"}, usage={"prompt_tokens": 3, "completion_tokens": n}) for n in (1, 2, 3)]
    record = record_of([*reads, STOP])
    assert (record.output_tokens, record.text) == (3, "aaa")


def test_null_usage_and_null_error_are_nothing() -> None:
    record = record_of([chat({"content": "a"}, usage=None, error=None), STOP, DONE])
    assert (record.outcome, record.tokens_from, record.output_tokens) == (RequestOutcome.OK, "chunks", 1)


def test_usage_of_zero_output_tokens_is_replaced_by_the_count_of_chunks() -> None:
    record = record_of([*HELLO, STOP, usage_event({"prompt_tokens": 3, "completion_tokens": 0})])
    assert (record.output_tokens, record.tokens_from, record.prompt_tokens) == (2, "chunks", 3)


def test_cached_tokens_come_from_the_details() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 8}}
    assert record_of([*HELLO, STOP, usage_event(usage)]).cached_tokens == 8
    assert record_of([*HELLO, STOP, usage_event({**usage, "prompt_tokens_details": None})]).cached_tokens == 0


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_reasoning_is_a_token_and_no_text(field: str) -> None:
    record = record_of([chat({field: "hm"}), chat({field: "so"}), chat({"content": "yes"}), STOP])
    assert (record.text, record.output_tokens) == ("yes", 3)
    assert (record.first_reasoning_ns, record.first_visible_ns) == (1_000_000, 3_000_000)
    assert record.first_token_ns == 1_000_000


def test_a_tool_call_is_a_visible_token_without_text() -> None:
    call = [{"index": 0, "function": {"name": "f", "arguments": "{"}}]
    record = record_of([chat({"tool_calls": call}), chat({"tool_calls": call}), chat({}, finish_reason="tool_calls")])
    assert (record.outcome, record.text) == (RequestOutcome.OK, "")
    assert record.chunk_has_token.tolist() == [True, True, False]
    assert record.first_visible_ns == 1_000_000


def test_completions_text_is_read() -> None:
    reads = [event({"choices": [{"index": 0, "text": text, "finish_reason": None}]}) for text in ("a", "", 'b"\\')]
    record = record_of([*reads, event({"choices": [{"text": "", "finish_reason": "length"}]})], api=Api.COMPLETIONS)
    assert (record.text, record.finish_reason) == ('ab"\\', "length")
    assert record.chunk_has_token.tolist() == [True, False, True, False]


def test_similar_events_that_share_a_read_each_count() -> None:
    record = record_of([chat({"content": "a"}), b"".join(chat({"content": text}) for text in "bcd"), STOP])
    assert record.text == "abcd"
    assert ms(record.chunk_ns) == [1, 2, 2, 2, 3]


def test_a_last_event_without_its_blank_line_counts() -> None:
    record = record_of([*HELLO, STOP.rstrip(b"\n")])
    assert (record.outcome, record.finish_reason) == (RequestOutcome.OK, "stop")
    assert len(record.chunk_ns) == 4


def test_more_reads_than_a_slice_are_all_parsed() -> None:
    record = record_of([*[chat({"content": "x", "n": n % 2}) for n in range(500)], STOP])
    assert (record.text, len(record.chunk_ns)) == ("x" * 500, 501)


MESSAGE_START = message("message_start", message={"usage": {"input_tokens": 9, "cache_read_input_tokens": 8}})
MESSAGE_END = [message("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 4})]
MESSAGE_END += [message("message_stop")]


def test_messages_usage_of_the_start_and_of_the_end_are_joined() -> None:
    reads = [MESSAGE_START, message("ping"), block(type="text_delta", text="Hi"), block(text=" you"), *MESSAGE_END]
    record = record_of(reads, api=Api.MESSAGES)
    assert (record.outcome, record.text, record.finish_reason) == (RequestOutcome.OK, "Hi you", "end_turn")
    assert (record.prompt_tokens, record.cached_tokens, record.output_tokens) == (9, 8, 4)
    assert record.vllm_output_tokens == 4
    assert ms(record.chunk_ns) == [3, 4]


def test_messages_thinking_and_tool_input_are_tokens_and_no_text() -> None:
    reads = [MESSAGE_START, block(thinking="hm"), block(partial_json='{"a'), block(text="ok"), *MESSAGE_END]
    record = record_of(reads, api=Api.MESSAGES)
    assert record.text == "ok"
    assert record.chunk_has_token.tolist() == [True, True, True]
    assert (record.first_reasoning_ns, record.first_visible_ns) == (2_000_000, 3_000_000)


def test_a_messages_error_event_is_an_error_in_the_stream() -> None:
    error = {"type": "overloaded_error", "message": "later"}
    record = record_of([MESSAGE_START, block(text="Hi"), message("error", error=error)], api=Api.MESSAGES)
    assert record.outcome is RequestOutcome.ERROR_EVENT
    assert "later" in record.error and "later" in record.body


def test_a_messages_stream_without_its_last_blank_line_is_complete() -> None:
    reads = [MESSAGE_START, block(text="Hi"), *MESSAGE_END[:1], MESSAGE_END[1].rstrip(b"\n")]
    assert record_of(reads, api=Api.MESSAGES).outcome is RequestOutcome.OK


def test_an_error_event_wins_over_the_cut_after_it() -> None:
    reads = [chunk(read) for read in (*HELLO, event({"error": {"message": "died"}}))]
    record = record_of(reads, failure="closed", body=Body.CHUNKED)
    assert record.outcome is RequestOutcome.ERROR_EVENT
    assert record.text == "Hello"
    assert record_of(reads[:-1], failure="closed", body=Body.CHUNKED).outcome is RequestOutcome.CUT


@pytest.mark.parametrize(
    ("reads", "outcome", "error"),
    [
        ([], RequestOutcome.EMPTY, "no token"),
        ([DONE], RequestOutcome.EMPTY, "no token"),
        (HELLO[:1], RequestOutcome.EMPTY, "no token"),
        (HELLO, RequestOutcome.NO_END, "without a finish reason"),
        ([*HELLO, DONE], RequestOutcome.OK, ""),
        ([*HELLO, b"data: {not json}\n\n", DONE], RequestOutcome.MALFORMED, "JSON"),
        ([b'data: {"choices": 3}\n\n'], RequestOutcome.MALFORMED, "array"),
        ([*HELLO, event({"error": "bad luck"})], RequestOutcome.ERROR_EVENT, "bad luck"),
    ],
)
def test_a_complete_response_has_the_outcome_of_its_events(
    reads: list[bytes], outcome: RequestOutcome, error: str
) -> None:
    record = record_of(reads)
    assert record.outcome is outcome
    assert error in record.error and bool(error) == bool(record.error)
    assert record.failed == (outcome is not RequestOutcome.OK)


def test_chunks_that_are_not_chunks_are_malformed_and_their_bytes_are_kept() -> None:
    record = record_of([b"zz\r\nhello\r\n0\r\n\r\n"], body=Body.CHUNKED)
    assert record.outcome is RequestOutcome.MALFORMED
    assert "not a chunk size" in record.error
    assert record.body.startswith("zz\r\nhello")


def test_a_failed_response_keeps_the_start_of_its_body() -> None:
    record = record_of([b"x" * 3000], status=500)
    assert record.body == "x" * BODY_KEPT
    assert not record_of([*HELLO, DONE]).body


def test_fewer_tokens_than_forced_are_short_only_where_the_server_counted() -> None:
    usage = usage_event({"prompt_tokens": 1, "completion_tokens": 5})
    assert record_of([*HELLO, STOP, usage], planned=6).outcome is RequestOutcome.SHORT
    assert record_of([*HELLO, STOP, usage], planned=5).outcome is RequestOutcome.OK
    assert record_of([*HELLO, STOP], planned=6).outcome is RequestOutcome.OK, "a chunk may hold several tokens"


def test_a_connection_that_ends_is_cut_and_an_abandoned_one_has_its_own_outcome() -> None:
    cut = record_of(HELLO, failure="closed after 9 bytes")
    assert (cut.outcome, cut.error, cut.vllm_success) == (RequestOutcome.CUT, "closed after 9 bytes", False)
    assert cut.output_tokens == 2, "what arrived still counts"
    silent = record_of([], status=0, failure="closed before any answer")
    assert silent.outcome is RequestOutcome.CUT
    late = record_of(HELLO, failure="no end within 1 s", abandoned=RequestOutcome.TIMEOUT)
    assert (late.outcome, late.error) == (RequestOutcome.TIMEOUT, "no end within 1 s")
    stopped = record_of(HELLO, failure="interrupted", abandoned=RequestOutcome.INTERRUPTED)
    assert not stopped.failed and not stopped.ok


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (400, RequestOutcome.REFUSED),
        (401, RequestOutcome.REFUSED),
        (301, RequestOutcome.REFUSED),
        (429, RequestOutcome.FULL),
        (500, RequestOutcome.SERVER_ERROR),
        (502, RequestOutcome.SERVER_ERROR),
        (503, RequestOutcome.UNAVAILABLE),
        (529, RequestOutcome.UNAVAILABLE),
    ],
)
def test_each_status_has_its_outcome(status: int, outcome: RequestOutcome) -> None:
    assert outcome_of_status(status) is outcome
    record = record_of([b'{"error": 1}'], status=status)
    assert (record.outcome, record.error, record.body) == (outcome, f"HTTP {status}", '{"error": 1}')


@pytest.mark.parametrize(
    ("header", "seconds"), [("7", 7.0), ("1.5", 1.5), ("", 0.0), ("Fri, 31 Dec 1999 23:59:59 GMT", 0.0), ("²", 0.0)]
)
def test_retry_after_is_read_where_it_is_seconds(header: str, seconds: float) -> None:
    assert record_of([], status=429, headers={"retry-after": header}).retry_after_s == seconds


def test_the_replica_is_kept() -> None:
    assert record_of([*HELLO, STOP], headers={"x-replica-id": "r-1"}).replica == "r-1"
