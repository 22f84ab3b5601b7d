"""Traces of sampled requests, exported by OTLP. Whether a request is sampled is decided when it arrives; its spans are
made when it has ended, so that nothing is done for a token, and almost nothing for a request without a trace.

The SDK's thread exports the spans. What waits for it is bounded, a whole request at a time: a collector that is away
or slow costs spans, which are counted, and never a request's time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Self

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, TraceIdRatioBased
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from serve_app.config.schema import TracingConfig
from serve_app.engine.vllm_tracing import name_service
from serve_app.observability.records import record_of
from serve_app.observability.spans import Attributes, SpanFacts, spans_of
from serve_app.protocol.errors import Outcome
from serve_app.protocol.trace_context import TraceContext, new_span_id
from serve_app.router.request_context import RequestContext

MAX_WAITING_SPANS = 4096
"""Spans that wait for export, in all: some hundred requests, and a few megabytes."""

EXPORT_PERIOD_S = 5.0
"""The longest that a span waits where the collector answers: the SDK's own default."""

MAX_TEXT = 300
"""Characters of an attribute: a client chooses the names of its model and its session."""

CLOSE_S = 5.0
"""How long a stopping ingress exports what waits."""


def exporter_for(config: TracingConfig) -> SpanExporter:
    """The exporter to the configured collector. It connects with the first span."""
    if config.uses_grpc:
        return GrpcExporter(endpoint=config.traces_url)
    return HttpExporter(endpoint=config.traces_url)


class Tracing:
    """`middleware.RequestTracing`: samples requests and exports their spans.

    `on_dropped` is called with how many spans were not exported, from any thread."""

    def __init__(
        self,
        exporter: SpanExporter,
        sample_ratio: float,
        ingress_id: str,
        on_dropped: Callable[[int], None],
        *,
        export_period_s: float = EXPORT_PERIOD_S,
    ) -> None:
        self._ingress_id = ingress_id
        self._on_dropped = on_dropped
        self._propagator = TraceContextTextMapPropagator()
        self._bound = TraceIdRatioBased.get_bound_for_rate(sample_ratio)
        self._random = RandomIdGenerator()
        self._ids = _GivenIds()
        self._exporter = _CountingExporter(exporter, on_dropped)
        self._given = 0
        self._processor = BatchSpanProcessor(
            self._exporter,
            max_queue_size=MAX_WAITING_SPANS,
            schedule_delay_millis=export_period_s * 1000,
        )
        name_service()
        resource = Resource.create({SERVICE_INSTANCE_ID: ingress_id})
        provider = TracerProvider(ALWAYS_ON, resource, shutdown_on_exit=False, id_generator=self._ids)
        provider.add_span_processor(self._processor)
        self._tracer = provider.get_tracer("serve_app")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Export what waits, for `CLOSE_S` at most."""
        closing = asyncio.ensure_future(asyncio.to_thread(self._processor.shutdown))
        done, _pending = await asyncio.wait({closing}, timeout=CLOSE_S)
        if not done:
            await asyncio.to_thread(self._exporter.shutdown)  # gives up on what is under way
            await closing

    def begin(self, headers: Mapping[str, str]) -> TraceContext | None:
        """See `middleware.RequestTracing`."""
        if "traceparent" in headers:
            parent = get_current_span(self._propagator.extract(headers)).get_span_context()
            if parent.is_valid:
                if not parent.trace_flags.sampled:
                    return None
                return TraceContext(parent.trace_id, new_span_id(), parent.span_id, parent.trace_state.to_header())
        trace_id = self._random.generate_trace_id()
        if trace_id & TraceIdRatioBased.TRACE_ID_LIMIT >= self._bound:
            return None
        return TraceContext(trace_id, new_span_id())

    def request(self, context: RequestContext, route: str, status: int, outcome: Outcome, total_s: float) -> None:
        """See `middleware.RequestTracing`."""
        trace = context.trace_context
        if trace is None:
            return
        record = record_of(context, self._ingress_id, route, status, outcome, total_s)
        spans = list(spans_of(context, record, trace))
        if self._given - self._exporter.taken + len(spans) > MAX_WAITING_SPANS:
            # All or none: half a trace would look like a request that lost its time.
            self._on_dropped(len(spans))
            return
        self._given += len(spans)
        offset_s = context.received_unix_s - context.received_s
        for span in reversed(spans):  # the request's own last, as it would be were they made on the way
            self._export(span, trace, offset_s)

    def _export(self, span: SpanFacts, trace: TraceContext, offset_s: float) -> None:
        def unix_ns(stamp_s: float) -> int:
            return round((stamp_s + offset_s) * 1e9)

        def of(span_id: int, *, remote: bool = False) -> SpanContext:
            state = TraceState.from_header([trace.state]) if trace.state else None
            return SpanContext(trace.trace_id, span_id, remote, TraceFlags(TraceFlags.SAMPLED), state)

        parent = Context()
        if span.parent_id is not None:
            remote = span.parent_id == trace.parent_id
            parent = set_span_in_context(NonRecordingSpan(of(span.parent_id, remote=remote)), parent)
        self._ids.trace_id, self._ids.span_id = trace.trace_id, span.span_id
        links = [] if span.linked_id is None else [Link(of(span.linked_id), {"step.link": "took over from"})]
        made = self._tracer.start_span(
            span.name, parent, span.kind, _clean(span.attributes), links=links, start_time=unix_ns(span.begun_s)
        )
        for event in span.events:
            made.add_event(event.name, event.attributes, unix_ns(event.at_s))
        if span.error is not None:
            made.set_status(Status(StatusCode.ERROR, _text(span.error)))
        made.end(unix_ns(span.ended_s))


def _clean(attributes: Attributes) -> Attributes:
    return {name: _text(value) if isinstance(value, str) else value for name, value in attributes.items()}


def _text(value: str) -> str:
    """Text as protobuf takes it. A client's names may hold lone surrogates, over which a whole batch would be lost."""
    return value[:MAX_TEXT].encode("utf-8", "replace").decode()


def open_tracing(config: TracingConfig, ingress_id: str, on_dropped: Callable[[int], None]) -> Tracing:
    """Tracing as configured, with an endpoint; use it as an async context manager."""
    return Tracing(exporter_for(config), config.sample_ratio, ingress_id, on_dropped)


class _GivenIds(IdGenerator):
    """The ids of the span that is made next. They are known before it: an engine's span has named it its parent."""

    def __init__(self) -> None:
        self.trace_id = 0
        self.span_id = 0

    def generate_trace_id(self) -> int:
        return self.trace_id

    def generate_span_id(self) -> int:
        return self.span_id


class _CountingExporter(SpanExporter):
    """Counts what the SDK's thread has taken, and what did not arrive."""

    def __init__(self, exporter: SpanExporter, on_dropped: Callable[[int], None]) -> None:
        self._exporter = exporter
        self._on_dropped = on_dropped
        self.taken = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.taken += len(spans)
        result = self._exporter.export(spans)
        if result is not SpanExportResult.SUCCESS:
            self._on_dropped(len(spans))
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()
