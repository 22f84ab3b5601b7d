"""Our metrics, the access log (one line per request, at its end), and the format of log lines.

vLLM's own metrics (time to first token in the engine, KV use, queue, MTP acceptance per position) come from the engine
replicas through vLLM's Ray stat logger. Ours are what an engine cannot know: the whole request as its client saw it.
All reach Ray's metrics endpoint with the replica's and the deployment's labels. Other labels come from enums and our
own route patterns, never from users.

Serve buffers its own log files by a thousand lines when it is set to be fast. Ours go to the actor's standard error,
where Ray picks them up at once (dashboard, `ray logs`, the terminal of `serve run`).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence

import msgspec
from ray.serve import metrics

from serve_app.engine.metrics import start_at_zero
from serve_app.ingress import routes
from serve_app.ingress.key_metrics import KeyMetrics
from serve_app.ingress.routes import SERVED
from serve_app.observability.phases import merged
from serve_app.observability.records import RecordStore, RequestRecord, record_of
from serve_app.protocol.errors import Outcome, RateLimited
from serve_app.router.request_context import RequestContext, RequestTrace

LOGGED_IGNORED = 20
"""How many ignored parts of a request its line lists: a long history holds hundreds."""

logger = logging.getLogger("serve_app.access")

PROBES = frozenset({"/health", "/version", "/", routes.FLEET, routes.STATUS_PAGE, routes.STATUS_PAGE_FILES})
"""Routes that load balancers, agents and status pages poll."""

GENERATING = frozenset(route.pattern.pattern for route in SERVED if route.generates)

ALERTED = (Outcome.SERVER_ERROR, Outcome.NO_REPLICA, Outcome.POISON, Outcome.SHED_QUEUE_FULL)
"""What alerts count (`monitoring/rules`): these are there before the first of them, whose step is seen then."""

LATENCY_BUCKETS_S = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000]
"""From a cached prompt on an idle engine to the slowest published P99 (100 s to first token) and long streams."""


RETRY_BUCKETS_S = [1, 2, 5, 10, 20, 30, 60]
"""`Retry-After` is within these (`router/admission.py`)."""


class IngressMetrics:
    """Counts and logs requests at one ingress replica, and keeps their records in `store`. `on_ended` is called with
    each, too."""

    def __init__(
        self,
        ingress_id: str,
        store: RecordStore,
        keys: KeyMetrics,
        on_ended: Callable[[Sequence[RequestTrace], Outcome], None] = lambda _sequences, _outcome: None,
    ) -> None:
        self._on_ended = on_ended
        self._ingress_id = ingress_id
        self._store = store
        self._keys = keys
        self._requests = _counter("step_requests", "Requests, by how they ended.", "route", "outcome")
        start_at_zero(self._requests, [{"route": one, "outcome": end.value} for one in GENERATING for end in ALERTED])
        self._tokens = _counter("step_tokens", "Tokens: prompt, cached (of the prompt), output.", "kind")
        self._preemptions = _counter("step_preemptions", "Attempts that made room for one of a higher class.")
        self._routing = _counter(
            "step_routing_decisions",
            "Choices of a replica: prefix (none has more of the prompt cached), load (another has, but is busier), new "
            "(none has any), only (there was no other), policy (not by cost).",
            "reason",
        )
        self._total_s = _seconds(
            "step_request_duration_seconds", "From the request's arrival to its last byte.", "route"
        )
        self._first_token_s = _seconds(
            "step_time_to_first_token_seconds",
            "From the request's arrival to the first token back at the ingress.",
            "route",
        )
        self._phase_s = _seconds(
            "step_request_phase_seconds",
            "The parts of a request's time, which add up to its duration (`docs/observability.md`).",
            "phase",
        )
        self._retry_after_s = metrics.Histogram(
            "step_retry_after_seconds",
            description="What refused clients were told (`Retry-After`), and whether it was measured or a constant.",
            boundaries=RETRY_BUCKETS_S,
            tag_keys=("outcome", "basis"),
        )
        self._rate_limited = _counter(
            "step_rate_limited", "Requests refused because their key had used up a limit, by kind.", "kind"
        )
        self._spans_dropped = _counter(
            "step_trace_spans_dropped",
            "Spans of sampled requests that the collector did not get: it is away, slow, or refuses them.",
        )

    def spans_dropped(self, count: int) -> None:
        """So many spans were not exported. May be called from any thread."""
        self._spans_dropped.inc(count)

    def request(self, context: RequestContext, route: str, status: int, outcome: Outcome, total_s: float) -> None:
        """See `middleware.AccessLog`."""
        record = record_of(context, self._ingress_id, route, status, outcome, total_s)
        phases = {phase: seconds for phase, seconds in merged(record.phases).items() if context.sequences}
        self._count(record, context.sequences)
        self._on_ended(context.sequences, outcome)
        self._observe_refusal(context, outcome)
        self._observe_times(record, phases)
        # Probes come every few seconds and would hide the requests; a lost replica is logged elsewhere.
        if route in GENERATING and outcome is not Outcome.UNAUTHENTICATED:
            self._store.add(record)  # not what strangers send: it would push the others out
        level = logging.DEBUG if route in PROBES else logging.INFO
        logger.log(level, "request", extra={**_fields(record, phases), **_path_fields(context)})

    def _count(self, record: RequestRecord, sequences: Sequence[RequestTrace]) -> None:
        self._requests.inc(tags={"route": record.route, "outcome": record.outcome})
        tokens = {"prompt": record.prompt_tokens, "cached": record.cached_tokens, "output": record.output_tokens}
        for kind, count in tokens.items():
            if count:
                self._tokens.inc(count, tags={"kind": kind})
        if record.route not in PROBES:
            self._keys.count(record.key, Outcome(record.outcome), tokens)
        for sequence in sequences:
            if sequence.preemptions:
                self._preemptions.inc(sequence.preemptions)
            if sequence.routing is not None:
                self._routing.inc(tags={"reason": sequence.routing.reason.value})

    def _observe_times(self, record: RequestRecord, phases: dict[str, float]) -> None:
        self._total_s.observe(record.total_s, tags={"route": record.route})
        if record.first_token_s is not None:
            self._first_token_s.observe(record.first_token_s, tags={"route": record.route})
        for phase, seconds in phases.items():
            self._phase_s.observe(seconds, tags={"phase": phase})

    def _observe_refusal(self, context: RequestContext, outcome: Outcome) -> None:
        error = context.error
        if isinstance(error, RateLimited):
            self._rate_limited.inc(tags={"kind": error.kind.value})
        if error is not None and error.retry_after_s is not None:
            basis = "measured" if error.measured else "constant"
            self._retry_after_s.observe(error.retry_after_s, tags={"outcome": outcome.value, "basis": basis})


def _counter(name: str, description: str, *labels: str) -> metrics.Counter:
    return metrics.Counter(name, description=description, tag_keys=labels)


def _seconds(name: str, description: str, *labels: str) -> metrics.Histogram:
    return metrics.Histogram(name, description=description, boundaries=LATENCY_BUCKETS_S, tag_keys=labels)


def _fields(record: RequestRecord, phases: dict[str, float]) -> dict[str, object]:
    """What the log line takes from the record."""
    return {
        "id": record.request_id,
        "key": record.key,
        "route": record.route,
        "model": record.model,
        "status": record.status,
        "outcome": record.outcome,
        "prompt_tokens": record.prompt_tokens,
        "cached_tokens": record.cached_tokens,
        "output_tokens": record.output_tokens,
        "first_token_s": _round(record.first_token_s),
        "phases": {f"{phase}_s": _round(seconds) for phase, seconds in phases.items()},
        "total_s": _round(record.total_s),
        "resumed_tokens": record.resumed_tokens,
        **({"trace_id": record.trace_id} if record.trace_id else {}),
    }


def _path_fields(context: RequestContext) -> dict[str, object]:
    """Its session, what was left out of it, the replicas and pools of each attempt, and what its migrations could
    not carry exactly."""
    sequences, session = context.sequences, context.session
    return {
        "class": context.share.service_class.word,
        **({} if session is None else {"session": session.name, "session_source": session.source}),
        "ignored": context.ignored[:LOGGED_IGNORED],
        "replica": [replica for sequence in sequences for replica in sequence.replicas],
        **({"pool": pools} if (pools := _pools(sequences)) else {}),
        "routing": [sequence.routing.reason.value for sequence in sequences if sequence.routing is not None],
        "prefill_tokens": sum(one.routing.missing_tokens for one in sequences if one.routing is not None),
        "inexact": sorted({name for sequence in sequences if sequence.migrations for name in sequence.inexact}),
        "migrations": sum(sequence.migrations for sequence in sequences),
        "preemptions": sum(sequence.preemptions for sequence in sequences),
    }


def _pools(sequences: Sequence[RequestTrace]) -> list[str]:
    """The pool of each attempt; none where the fleet has one part only."""
    return [attempt.pool for sequence in sequences for attempt in sequence.attempts if attempt.pool]


def _round(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)


_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class FieldsFormatter(logging.Formatter):
    """`LEVEL logger: event {"field": value}`; the fields are what the caller passed as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        line = f"{self.formatTime(record)} {record.levelname} {record.name}: {record.getMessage()}"
        fields = {name: value for name, value in vars(record).items() if name not in _STANDARD and name[:4] != "ray_"}
        if fields:
            line += " " + msgspec.json.encode(fields, enc_hook=str).decode()
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def log_to_stderr(level: int = logging.INFO) -> None:
    """Log `serve_app` to standard error in this process. Calling it again changes nothing."""
    logger = logging.getLogger("serve_app")
    if any(isinstance(handler.formatter, FieldsFormatter) for handler in logger.handlers):
        return
    handler = logging.StreamHandler(sys.__stderr__)
    handler.setFormatter(FieldsFormatter())
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
