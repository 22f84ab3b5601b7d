"""What a sampled request's spans say. Made at its end from what was noted on the way. Pure; no prompts, no answers.

chat step3p7-flash            SERVER    the request, as its client saw it
  receive, render, routing, migration, delivery
  attempt                     CLIENT    one for each replica that had it; linked to the one that it took over from
    replica_queue, engine_queue, prefill, transfer, decode
    (llm_request)                       vLLM's own, from the replica's process
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from types import MappingProxyType
from typing import Final

from opentelemetry.trace import SpanKind

from serve_app.observability.phases import Phase, at_replica, split
from serve_app.observability.records import RequestRecord
from serve_app.protocol.errors import Outcome
from serve_app.protocol.trace_context import TraceContext, new_span_id
from serve_app.router.attempts import End
from serve_app.router.request_context import AttemptTrace, RequestContext, RequestTrace

Attributes = Mapping[str, str | int | float | bool | tuple[str, ...]]

OPERATIONS: Final = MappingProxyType(
    {
        "/v1/chat/completions": "chat",
        "/v1/messages": "chat",
        "/v1/responses": "chat",
        "/v1/completions": "text_completion",
    }
)
"""`gen_ai.operation.name` of each route that generates."""

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

OF_THE_REQUEST = frozenset({Phase.RECEIVE, Phase.RENDER, Phase.ROUTING, Phase.MIGRATION, Phase.DELIVERY})
"""The other phases are spent at a replica, and are children of its attempt."""

FAILED = frozenset({End.DIED.value, End.NAMED.value, End.BESIDE.value, End.CUT.value})
"""Ends of attempts that failed. One that moved from a stopping replica did not."""


@dataclass(frozen=True)
class SpanEvent:
    """A moment in a span; `at_s` is a stamp of `loop.time()`."""

    name: str
    at_s: float
    attributes: Attributes


@dataclass(frozen=True)
class SpanFacts:
    """One span. `begun_s` and `ended_s` are stamps of `loop.time()`.

    `error` says why it failed (None: it did not). `linked_id` is the span of the attempt that it took over from."""

    name: str
    kind: SpanKind
    span_id: int
    parent_id: int | None
    begun_s: float
    ended_s: float
    attributes: Attributes = field(default_factory=dict)
    error: str | None = None
    linked_id: int | None = None
    events: tuple[SpanEvent, ...] = ()


def spans_of(context: RequestContext, record: RequestRecord, trace: TraceContext) -> Iterator[SpanFacts]:
    """The spans of a request that has ended; the request's own comes first."""
    ended_s = context.received_s + record.total_s
    yield _request_span(context, record, trace, ended_s)
    begun_s = context.received_s
    for phase, parts in groupby(split(context, ended_s), key=lambda one: one.phase):
        duration_s = sum(part.duration_s for part in parts)
        if phase in OF_THE_REQUEST:
            yield _phase_span(phase, trace.span_id, begun_s, duration_s)
        begun_s += duration_s
    for number, sequence in enumerate(context.sequences):
        yield from _sequence_spans(sequence, number, trace, ended_s)


def _request_span(context: RequestContext, record: RequestRecord, trace: TraceContext, ended_s: float) -> SpanFacts:
    operation = OPERATIONS.get(record.route)
    method = context.method if context.method in METHODS else "_OTHER"
    name = operation or f"{method} {record.route}"
    if operation and record.sequences and record.model:  # else the model may be any text that a client has sent
        name = f"{operation} {record.model}"
    # By OpenTelemetry's conventions for servers, what is the client's fault (4xx) is no error of the span.
    failed = record.status >= 500 or (record.status < 400 and record.outcome not in (Outcome.OK, Outcome.CANCELLED))
    return SpanFacts(
        name,
        SpanKind.SERVER,
        trace.span_id,
        trace.parent_id,
        context.received_s,
        ended_s,
        {
            "http.request.method": method,
            "http.route": record.route,
            **({"http.response.status_code": record.status} if record.status else {}),  # 0: the client left before it
            "step.request.id": record.request_id,
            "step.outcome": record.outcome,
            **({"error.type": record.outcome} if record.outcome not in (Outcome.OK, Outcome.CANCELLED) else {}),
            **({"step.key": record.key} if record.key else {}),
            **(_generation(record, operation) if operation else {}),
            **({"gen_ai.response.finish_reasons": tuple(context.finish_reasons)} if context.finish_reasons else {}),
        },
        error=record.error if failed else None,
        events=tuple(_migrations(context)),
    )


def _generation(record: RequestRecord, operation: str) -> Attributes:
    """By the semantic conventions for generative AI."""
    found: dict[str, str | int | float | bool] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.stream": record.streamed,
    }
    if record.model is not None:
        found["gen_ai.request.model"] = record.model
    if record.session is not None:
        found["gen_ai.conversation.id"] = record.session
    if not record.sequences:
        return found
    found |= {
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": record.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": record.cached_tokens,
    }
    if record.model is not None:
        found["gen_ai.response.model"] = record.model
    if record.sequences > 1:
        found["gen_ai.request.choice.count"] = record.sequences
    if record.streamed and record.first_token_s is not None:
        found["gen_ai.response.time_to_first_chunk"] = record.first_token_s
    return found


def _migrations(context: RequestContext) -> Iterator[SpanEvent]:
    for sequence in context.sequences:
        for lost, attempt in zip(sequence.attempts, sequence.attempts[1:], strict=False):
            about = {"step.from": lost.replica_id, "step.to": attempt.replica_id, "step.attempt.end": lost.end}
            yield SpanEvent("migration", attempt.dispatched_s, about)


def _sequence_spans(sequence: RequestTrace, number: int, trace: TraceContext, ended_s: float) -> Iterator[SpanFacts]:
    before: int | None = None
    for attempt in sequence.attempts:
        yield SpanFacts(
            "attempt",
            SpanKind.CLIENT,
            attempt.span_id,
            trace.span_id,
            attempt.dispatched_s,
            attempt.ended_s if attempt.ended_s is not None else ended_s,
            {**_attempt(attempt), "step.sequence": number},
            error=f"replica {attempt.replica_id}: {attempt.end}" if attempt.end in FAILED else None,
            linked_id=before,
        )
        begun_s = attempt.dispatched_s
        for phase in at_replica(attempt):
            yield _phase_span(phase.phase, attempt.span_id, begun_s, phase.duration_s, _stalls(attempt, phase.phase))
            begun_s += phase.duration_s
        before = attempt.span_id


def _attempt(attempt: AttemptTrace) -> Attributes:
    """Which replica and why, and how it went."""
    return {
        "step.replica.id": attempt.replica_id,
        "step.routing.reason": attempt.routing.reason.value,
        "step.routing.waited_for": attempt.waited_for.value,
        "step.replica.unfinished": attempt.unfinished,
        "step.replica.kv_usage_ratio": attempt.kv_usage_ratio,
        "step.attempt.prefill_tokens": attempt.routing.missing_tokens,
        "step.attempt.end": attempt.end,
        "step.attempt.output_tokens": attempt.tokens,
        "step.attempt.steps": attempt.steps,
        "step.attempt.compile_s": attempt.first_compile_s + attempt.compile_s,
        "step.attempt.cpu_wait_s": attempt.first_cpu_wait_s + attempt.cpu_wait_s,
        **({"error.type": attempt.end} if attempt.end in FAILED else {}),
    }


def _stalls(attempt: AttemptTrace, phase: Phase) -> Attributes:
    """What made its steps longer, in seconds."""
    if phase is not Phase.DECODE:
        return {}
    return {
        "step.decode.neighbour_prefill_s": attempt.neighbour_prefill_s,
        "step.decode.preempted_s": attempt.preempted_s,
        "step.decode.preemptions": attempt.preemptions,
        "step.decode.compile_s": attempt.compile_s,
        "step.decode.cpu_wait_s": attempt.cpu_wait_s,
    }


def _phase_span(
    phase: Phase, parent_id: int, begun_s: float, duration_s: float, attributes: Attributes = MappingProxyType({})
) -> SpanFacts:
    ended_s = begun_s + duration_s
    return SpanFacts(str(phase), SpanKind.INTERNAL, new_span_id(), parent_id, begun_s, ended_s, attributes)
