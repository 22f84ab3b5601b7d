"""`python -m bench time-split --parts`: the CPU time of what the split consists of, each alone: for a chunk, and for a
request's end. Some seconds; no service."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from serve_app.observability.records import RecordStore, record_of
from serve_app.protocol.errors import Outcome
from serve_app.protocol.messages import EngineTiming, TokenDelta
from serve_app.router.request_context import AttemptTrace, RequestContext, RequestTrace
from serve_app.router.routing import Decision, Reason

ROUNDS = 15
CHUNKS, REQUESTS = 20_000, 2_000
DECISION = Decision("replica", Reason.NEW, missing_tokens=100)


def measure() -> str:
    """A line for each part: the median of the rounds and their quartiles."""
    chunk = [_chunk_ns() for _ in range(ROUNDS)]
    request = [_request_us() for _ in range(ROUNDS)]
    return f"a chunk: {_spread(chunk)} ns\na request's end: {_spread(request)} us"


def _spread(found: list[float]) -> str:
    low, middle, high = statistics.quantiles(found, n=4)
    return f"{middle:.0f} ({low:.0f} to {high:.0f})"


def _chunk_ns() -> float:
    """`AttemptTrace.take`, without the call."""
    trace = AttemptTrace("replica", 0.0, DECISION)
    deltas = [TokenDelta("attempt", number, [1, 2]) for number in range(CHUNKS)]

    def nothing(_delta: TokenDelta, _now_s: float) -> None:
        return

    return (_spent_s(trace.take, deltas) - _spent_s(nothing, deltas)) / CHUNKS * 1e9


def _spent_s(take: Callable[[TokenDelta, float], None], deltas: list[TokenDelta]) -> float:
    before_s = time.process_time()
    for delta in deltas:
        take(delta, 1.0)
    return time.process_time() - before_s


def _request_us() -> float:
    """The split, the record, and keeping it."""
    attempt = AttemptTrace("replica", 1.1, DECISION, end="finished")
    attempt.take(TokenDelta("attempt", 0, [1], timing=EngineTiming(0.1, 0.1, 0.5)), 2.0)
    attempt.take(TokenDelta("attempt", 1, [1]), 3.0)
    sequence = RequestTrace(submitted_s=1.0, prompt_tokens=100, output_tokens=2, attempts=[attempt])
    context = RequestContext("request", received_s=0.5, body_read_s=0.6, sequences=[sequence], model="model")
    store = RecordStore()
    before_s = time.process_time()
    for _ in range(REQUESTS):
        store.add(record_of(context, "ingress", "/v1/chat/completions", 200, Outcome.OK, 2.6))
    return (time.process_time() - before_s) / REQUESTS * 1e6
