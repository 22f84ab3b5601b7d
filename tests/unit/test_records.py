"""The store of records: bounded, and it keeps the slowest of the last hour."""

from __future__ import annotations

from serve_app.observability.records import (
    MAX_MATCHES,
    RECENT_RECORDS,
    SLOT_S,
    SLOTS,
    SLOW_RECORDS_PER_SLOT,
    RecordQuery,
    RecordStore,
    RequestRecord,
    decode_query,
    decode_records,
    encode_query,
    encode_records,
    record_of,
)
from serve_app.protocol.errors import Outcome, ServeError
from serve_app.router.request_context import AttemptTrace, RequestContext, RequestTrace, Session
from serve_app.router.routing import Decision, Reason


def record(number: int, received_s: float = 1000.0, total_s: float = 1.0, key: str | None = None) -> RequestRecord:
    return RequestRecord(f"r{number}", "i", received_s, total_s, "/x", 200, "ok", [("render", total_s)], key=key)


def ids(records: list[RequestRecord]) -> list[str]:
    return [one.request_id for one in records]


def test_the_newest_come_first_and_one_is_found_by_its_id() -> None:
    store = RecordStore()
    for number in range(30):
        store.add(record(number, 1000.0 + number))
    assert ids(store.find(RecordQuery(limit=2))) == ["r29", "r28"]
    assert ids(store.find(RecordQuery(request_id="r7"))) == ["r7"]
    assert store.find(RecordQuery(request_id="r")) == []


def test_key_and_time_narrow_it() -> None:
    store = RecordStore()
    for number in range(10):
        store.add(record(number, 1000.0 + number, key="alice" if number % 2 else "bob"))
    assert ids(store.find(RecordQuery(key="alice", since_unix_s=1006.0))) == ["r9", "r7"]


def test_the_slowest_outlive_what_came_after_them() -> None:
    store = RecordStore()
    store.add(record(-1, total_s=99.0))
    for number in range(RECENT_RECORDS + 10):
        store.add(record(number, total_s=0.001 * number))
    assert ids(store.find(RecordQuery(slowest=2)))[0] == "r-1"
    assert ids(store.find(RecordQuery(request_id="r-1"))) == ["r-1"]


def test_it_is_bounded() -> None:
    store = RecordStore()
    for number in range(RECENT_RECORDS + SLOTS * 2 * (SLOW_RECORDS_PER_SLOT + 5)):
        store.add(record(number, number * SLOT_S / (SLOW_RECORDS_PER_SLOT + 5)))
    assert len(store._recent) == RECENT_RECORDS
    assert sum(len(slow) for _, slow in store._slow) <= SLOTS * SLOW_RECORDS_PER_SLOT
    assert len(store.find(RecordQuery(limit=10**9))) == MAX_MATCHES


def test_records_and_queries_travel() -> None:
    assert decode_records(encode_records([record(1)])) == [record(1)]
    query = RecordQuery(slowest=3, key="alice")
    assert decode_query(encode_query(query)) == query


def test_a_record_says_what_the_request_did() -> None:
    attempt = AttemptTrace(
        "a", 12.0, Decision("a", Reason.LOAD, 90, least_missing_tokens=5), unfinished=3, end="finished"
    )
    sequence = RequestTrace(11.0, 13.0, prompt_tokens=100, cached_tokens=10, output_tokens=7, attempts=[attempt])
    made = record_of(
        RequestContext("r", received_s=10.0, received_unix_s=500.0, key_name="alice", sequences=[sequence]),
        "i",
        "/v1/messages",
        200,
        Outcome.OK,
        5.0,
    )
    assert (made.key, made.prompt_tokens, made.cached_tokens, made.output_tokens) == ("alice", 100, 10, 7)
    assert made.first_token_s == 3.0
    (kept,) = made.attempts
    assert (kept.dispatched_s, kept.unfinished, kept.missing_tokens, kept.least_missing_tokens) == (2.0, 3, 90, 5)


def test_what_a_client_sends_makes_a_record_neither_large_nor_dangerous_to_print() -> None:
    sent = RequestContext("r", model="m" * 10_000_000, session=Session("\x1b]0;owned\x07\nfake line", "x-session-id"))
    sent.refused = ServeError("GET /\x1b[31m is not served here." + "x" * 5000)
    made = record_of(sent, "i", "/v1/messages", 404, Outcome.NOT_FOUND, 0.1)
    assert len(encode_records([made])) < 2000
    assert all(text is not None and text.isprintable() for text in (made.model, made.session, made.error))
