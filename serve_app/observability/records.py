"""What is kept of a request that has ended: its record, and the bounded store of an ingress. No prompts, no answers."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterable, Sequence

import msgspec

from serve_app.observability.phases import first_token_s, slowest, split
from serve_app.observability.usage import KeyUsage, UsageLog
from serve_app.protocol.errors import Outcome
from serve_app.router.request_context import AttemptTrace, RequestContext, RequestTrace

RECENT_RECORDS = 4096
"""How many of the last requests an ingress keeps. A record takes about half a kilobyte."""

SLOT_S = 300
SLOTS = 13
SLOW_RECORDS_PER_SLOT = 32
"""Of each five minutes of the last hour the slowest requests are kept beside the last ones, so that `--since 1h` finds
them at a busy service, too."""

MAX_TEXT = 300
"""Characters that are kept of a name or an error."""

MAX_MATCHES = 200
"""The most records that one question gets."""


class AttemptRecord(msgspec.Struct, frozen=True, gc=False):
    """One attempt. Seconds count from the request's arrival; `AttemptTrace` says what the fields are.

    `missing_tokens` were to be computed as far as its ingress knew, `least_missing_tokens` where the most of it was
    cached."""

    replica_id: str
    reason: str
    waited_for: str
    unfinished: int
    slots: int
    kv_usage_ratio: float
    missing_tokens: int
    least_missing_tokens: int
    dispatched_s: float
    end: str
    first_token_s: float | None = None
    last_token_s: float | None = None
    ended_s: float | None = None
    steps: int = 0
    tokens: int = 0
    replica_queue_s: float = 0.0
    engine_queue_s: float = 0.0
    prefill_s: float = 0.0
    neighbour_prefill_s: float = 0.0
    preempted_s: float = 0.0
    preemptions: int = 0
    pool: str = ""
    compile_s: float = 0.0
    cpu_wait_s: float = 0.0


class RequestRecord(msgspec.Struct, frozen=True, gc=False):
    """One request that has ended. `received_unix_s` is its arrival in seconds since 1970, `phases` are the names and
    seconds of `phases.split` in their order, and `attempts` are those of the sequence that these follow.

    `prompt_tokens`, `cached_tokens` and `output_tokens` are those of all its `sequences`. `first_token_s` counts from
    its arrival. `trace_id` is that of its OpenTelemetry trace; empty without one."""

    request_id: str
    ingress_id: str
    received_unix_s: float
    total_s: float
    route: str
    status: int
    outcome: str
    phases: list[tuple[str, float]]
    key: str | None = None
    session: str | None = None
    model: str | None = None
    streamed: bool = False
    sequences: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    resumed_tokens: int = 0
    first_token_s: float | None = None
    attempts: list[AttemptRecord] = []
    error: str = ""
    trace_id: str = ""


class RecordQuery(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which records are wanted: one request's, else the last `limit` ones, or the `slowest` that many; of one key,
    and received since `since_unix_s`. `asked_by` is the ingress that asks the others; empty: not one of them."""

    request_id: str | None = None
    slowest: int = 0
    limit: int = 20
    key: str | None = None
    since_unix_s: float = 0.0
    asked_by: str = ""

    def matches(self, record: RequestRecord) -> bool:
        """Whether a record is among those that are looked through."""
        if self.request_id is not None and record.request_id != self.request_id:
            return False
        return (self.key is None or record.key == self.key) and record.received_unix_s >= self.since_unix_s

    def best(self, records: Iterable[RequestRecord]) -> list[RequestRecord]:
        """Those of the records that are wanted, the slowest or the newest first."""
        found = {(one.request_id, one.ingress_id, one.received_unix_s): one for one in records if self.matches(one)}
        if self.slowest:
            return heapq.nlargest(min(self.slowest, MAX_MATCHES), found.values(), key=lambda one: one.total_s)
        return heapq.nlargest(min(self.limit, MAX_MATCHES), found.values(), key=lambda one: one.received_unix_s)


def record_of(
    context: RequestContext, ingress_id: str, route: str, status: int, outcome: Outcome, total_s: float
) -> RequestRecord:
    """The record of a request that has just ended."""
    sequences = context.sequences
    followed = slowest(sequences)
    error = context.error
    return RequestRecord(
        request_id=context.request_id,
        ingress_id=ingress_id,
        received_unix_s=context.received_unix_s,
        total_s=total_s,
        route=route,
        status=status,
        outcome=outcome.value,
        phases=[(str(one.phase), one.duration_s) for one in split(context, context.received_s + total_s)],
        key=context.key_name,
        session=_short(context.session.name) if context.session is not None else None,
        model=_short(context.model),
        streamed=context.stream is not None,
        sequences=len(sequences),
        prompt_tokens=sum(one.prompt_tokens for one in sequences),
        cached_tokens=sum(one.cached_tokens for one in sequences),
        output_tokens=sum(one.output_tokens for one in sequences),
        resumed_tokens=sum(one.resumed_tokens for one in sequences),
        first_token_s=first_token_s(context),
        attempts=_attempts(followed, context.received_s) if followed is not None else [],
        error=_short(str(error)) or "" if error is not None else "",
        trace_id=context.trace_context.trace_id_hex if context.trace_context is not None else "",
    )


def _short(text: str | None) -> str | None:
    """Text that may be a client's: a record is small, and a terminal shows it."""
    if text is None:
        return None
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text[:MAX_TEXT])


def _attempts(sequence: RequestTrace, received_s: float) -> list[AttemptRecord]:
    return [_attempt(one, received_s) for one in sequence.attempts]


def _attempt(trace: AttemptTrace, received_s: float) -> AttemptRecord:
    def since(stamp_s: float | None) -> float | None:
        return None if stamp_s is None else stamp_s - received_s

    return AttemptRecord(
        replica_id=trace.replica_id,
        reason=trace.routing.reason.value,
        waited_for=trace.waited_for.value,
        unfinished=trace.unfinished,
        slots=trace.slots,
        kv_usage_ratio=trace.kv_usage_ratio,
        missing_tokens=trace.routing.missing_tokens,
        least_missing_tokens=trace.routing.least_missing_tokens,
        dispatched_s=trace.dispatched_s - received_s,
        end=trace.end,
        first_token_s=since(trace.first_token_s),
        last_token_s=since(trace.last_token_s),
        ended_s=since(trace.ended_s),
        steps=trace.steps,
        tokens=trace.tokens,
        replica_queue_s=trace.replica_queue_s,
        engine_queue_s=trace.engine_queue_s,
        prefill_s=trace.prefill_s,
        neighbour_prefill_s=trace.neighbour_prefill_s,
        preempted_s=trace.preempted_s,
        preemptions=trace.preemptions,
        pool=trace.pool,
        compile_s=trace.first_compile_s + trace.compile_s,
        cpu_wait_s=trace.first_cpu_wait_s + trace.cpu_wait_s,
    )


class RecordStore:
    """The last records of one ingress, the slowest of the last hour, and what each key has used in it.

    Records are kept encoded: they are read seldom, and objects would be looked at by every run of the garbage
    collector."""

    def __init__(self) -> None:
        self._recent: deque[bytes] = deque(maxlen=RECENT_RECORDS)
        self._slow: deque[tuple[int, list[tuple[float, int, bytes]]]] = deque(maxlen=SLOTS)
        self._added = 0
        self.usage = UsageLog()

    def add(self, record: RequestRecord) -> None:
        """Keep a record."""
        data = _ENCODER.encode(record)
        self._recent.append(data)
        self._added += 1
        ended_unix_s = record.received_unix_s + record.total_s
        if record.sequences:
            tokens = (record.prompt_tokens, record.cached_tokens, record.output_tokens)
            self.usage.add(KeyUsage(record.key, 1, *tokens), ended_unix_s)
        number = math.floor(ended_unix_s / SLOT_S)
        if not self._slow or self._slow[-1][0] < number:
            self._slow.append((number, []))
        slow = self._slow[-1][1]
        entry = (record.total_s, self._added, data)
        if len(slow) < SLOW_RECORDS_PER_SLOT:
            heapq.heappush(slow, entry)
        else:
            heapq.heappushpop(slow, entry)

    def kept_slowest(self, limit: int, since_unix_s: float) -> list[RequestRecord]:
        """The slowest since then, from those that are kept for each five minutes: cheap enough for every few
        seconds."""
        since_slot = math.floor(since_unix_s / SLOT_S)
        entries = (entry for number, slow in self._slow if number >= since_slot for entry in slow)
        found = (decode_record(data) for _, _, data in heapq.nlargest(2 * limit, entries))
        return [record for record in found if record.received_unix_s >= since_unix_s][:limit]

    def find(self, query: RecordQuery) -> list[RequestRecord]:
        """The records that are wanted, as `RecordQuery.best` orders them."""
        slow = [data for _, entries in self._slow for _, _, data in entries]
        if query.request_id is not None:
            name = query.request_id.encode("utf-8", "surrogatepass")
            kept = [data for data in (*self._recent, *slow) if name in data]
        else:
            kept = [*self._recent, *slow]
        return query.best(decode_record(data) for data in kept)


_ENCODER = msgspec.msgpack.Encoder()
_RECORD_DECODER = msgspec.msgpack.Decoder(RequestRecord)
_RECORDS_DECODER = msgspec.msgpack.Decoder(list[RequestRecord])
_QUERY_DECODER = msgspec.msgpack.Decoder(RecordQuery)


def decode_record(data: bytes) -> RequestRecord:
    """The record in `data`."""
    return _RECORD_DECODER.decode(data)


def encode_records(records: Sequence[RequestRecord]) -> bytes:
    """The bytes of records, for another process."""
    return _ENCODER.encode(list(records))


def decode_records(data: bytes) -> list[RequestRecord]:
    """The records in `data`. Raises `msgspec.DecodeError`."""
    return _RECORDS_DECODER.decode(data)


def encode_query(query: RecordQuery) -> bytes:
    """The bytes of a query."""
    return _ENCODER.encode(query)


def decode_query(data: bytes) -> RecordQuery:
    """The query in `data`. Raises `msgspec.DecodeError`."""
    return _QUERY_DECODER.decode(data)
