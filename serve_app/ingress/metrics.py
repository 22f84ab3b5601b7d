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
from collections.abc import Sequence

import msgspec
from ray.serve import metrics

from serve_app.ingress.event_loop import LoopUse
from serve_app.protocol.errors import Outcome, RateLimited
from serve_app.router.dispatcher import Dispatcher
from serve_app.router.request_context import RequestContext, RequestTrace

LOGGED_IGNORED = 20
"""How many ignored parts of a request its line lists: a long history holds hundreds."""

logger = logging.getLogger("serve_app.access")

PROBES = frozenset({"/health", "/version", "/"})
"""Routes that load balancers and agents poll."""

LATENCY_BUCKETS_S = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000]
"""From a cached prompt on an idle engine to the slowest published P99 (100 s to first token) and long streams."""


RETRY_BUCKETS_S = [1, 2, 5, 10, 20, 30, 60]
"""`Retry-After` is within these (`router/admission.py`)."""


class IngressMetrics:
    """Counts and logs requests at one ingress replica."""

    def __init__(self) -> None:
        self._requests = metrics.Counter(
            "step_requests", description="Requests, by how they ended.", tag_keys=("route", "outcome")
        )
        self._tokens = metrics.Counter(
            "step_tokens", description="Tokens: prompt, cached (of the prompt), output.", tag_keys=("kind",)
        )
        self._migrations = metrics.Counter("step_migrations", description="Attempts that took over from a lost one.")
        self._preemptions = metrics.Counter(
            "step_preemptions", description="Attempts that made room for one of a higher class."
        )
        self._routing = metrics.Counter(
            "step_routing_decisions",
            description="Choices of a replica: prefix (none has more of the prompt cached), load (another has, but is "
            "busier), new (none has any), only (there was no other), policy (not by cost).",
            tag_keys=("reason",),
        )
        self._total_s = self._histogram("step_request_duration_seconds", "From the request's arrival to its last byte.")
        self._first_token_s = self._histogram(
            "step_time_to_first_token_seconds",
            "From submission to the dispatcher to the first token back at the ingress.",
        )
        self._retry_after_s = metrics.Histogram(
            "step_retry_after_seconds",
            description="What refused clients were told (`Retry-After`), and whether it was measured or a constant.",
            boundaries=RETRY_BUCKETS_S,
            tag_keys=("outcome", "basis"),
        )
        self._engine_queue_s = self._histogram(
            "step_engine_queue_wait_seconds", "Wait at the replica before the engine got the request."
        )
        self._rate_limited = metrics.Counter(
            "step_rate_limited",
            description="Requests refused because their key had used up a limit, by kind.",
            tag_keys=("kind",),
        )
        self._queue_s = self._histogram("step_routing_wait_seconds", "Wait for a replica to send the request to.")

    @staticmethod
    def _histogram(name: str, description: str) -> metrics.Histogram:
        return metrics.Histogram(name, description=description, boundaries=LATENCY_BUCKETS_S, tag_keys=("route",))

    def request(self, context: RequestContext, route: str, status: int, outcome: Outcome, total_s: float) -> None:
        """See `middleware.AccessLog`."""
        sequences = context.sequences
        times = _times(sequences[0] if sequences else RequestTrace())
        prompt, cached, output = (
            sum(getattr(sequence, name) for sequence in sequences)
            for name in ("prompt_tokens", "cached_tokens", "output_tokens")
        )
        self._count(sequences)
        self._requests.inc(tags={"route": route, "outcome": outcome.value})
        self._total_s.observe(total_s, tags={"route": route})
        for kind, count in (("prompt", prompt), ("cached", cached), ("output", output)):
            if count:
                self._tokens.inc(count, tags={"kind": kind})
        self._observe_refusal(context, outcome)
        self._observe_times(times, route)
        # Probes come every few seconds and would hide the requests; a lost replica is logged elsewhere.
        logger.log(
            logging.DEBUG if route in PROBES else logging.INFO,
            "request",
            extra={
                "id": context.request_id,
                "key": context.key_name,
                "class": context.share.service_class.word,
                **_session_fields(context),
                "route": route,
                "model": context.model,
                "status": status,
                "outcome": outcome.value,
                "prompt_tokens": prompt,
                "cached_tokens": cached,
                "output_tokens": output,
                **{name: _round(value) for name, value in times.items()},
                "total_s": _round(total_s),
                **_path_fields(context),
                "migrations": sum(sequence.migrations for sequence in sequences),
                "preemptions": sum(sequence.preemptions for sequence in sequences),
            },
        )

    def _observe_times(self, times: dict[str, float | None], route: str) -> None:
        histograms = {
            "queue_s": self._queue_s,
            "engine_queue_s": self._engine_queue_s,
            "first_token_s": self._first_token_s,
        }
        for name, histogram in histograms.items():
            if (value := times[name]) is not None:
                histogram.observe(value, tags={"route": route})

    def _count(self, sequences: Sequence[RequestTrace]) -> None:
        for sequence in sequences:
            if sequence.migrations:
                self._migrations.inc(sequence.migrations)
            if sequence.preemptions:
                self._preemptions.inc(sequence.preemptions)
            if sequence.routing is not None:
                self._routing.inc(tags={"reason": sequence.routing.reason.value})

    def _observe_refusal(self, context: RequestContext, outcome: Outcome) -> None:
        error = context.error
        if isinstance(error, RateLimited):
            self._rate_limited.inc(tags={"kind": error.kind.value})
        if error is not None and error.retry_after_s is not None:
            basis = "measured" if error.measured else "constant"
            self._retry_after_s.observe(error.retry_after_s, tags={"outcome": outcome.value, "basis": basis})


class ProcessGauges:
    """What one ingress replica is like at the moment."""

    def __init__(self) -> None:
        self._index_bytes = metrics.Gauge(
            "step_prefix_index_bytes", description="About how much memory the index of the replicas' caches takes."
        )
        self._queued = metrics.Gauge(
            "step_queued_requests",
            description="Requests of all ingresses that wait at the replicas, as this ingress last heard.",
        )
        self._busy_ratio = metrics.Gauge(
            "step_event_loop_busy_ratio",
            description="Share of one core's time that the ingress' event loop used, over ten seconds.",
        )
        self._lag_s = metrics.Gauge(
            "step_event_loop_lag_seconds",
            description="How late the ingress' event loop ran a timer, the worst of ten seconds.",
        )

    def set(self, use: LoopUse, dispatcher: Dispatcher) -> None:
        """What the event loop did in the last period (`event_loop.EventLoopSampler`), and what the dispatcher knows."""
        self._index_bytes.set(dispatcher.index_bytes())
        self._queued.set(dispatcher.queued())
        self._busy_ratio.set(use.busy_ratio)
        self._lag_s.set(use.lag_s)


def _session_fields(context: RequestContext) -> dict[str, object]:
    session = context.session
    return {} if session is None else {"session": session.name, "session_source": session.source}


def _path_fields(context: RequestContext) -> dict[str, object]:
    """What was left out of the request, the replicas of each attempt, what its migrations could not carry exactly, and
    the tokens taken from a broken stream."""
    sequences = context.sequences
    return {
        "ignored": context.ignored[:LOGGED_IGNORED],
        "replica": [replica for sequence in sequences for replica in sequence.replicas],
        "routing": [sequence.routing.reason.value for sequence in sequences if sequence.routing is not None],
        "prefill_tokens": sum(one.routing.missing_tokens for one in sequences if one.routing is not None),
        "inexact": sorted({name for sequence in sequences if sequence.migrations for name in sequence.inexact}),
        "resumed_tokens": sum(sequence.resumed_tokens for sequence in sequences),
    }


def _times(sequence: RequestTrace) -> dict[str, float | None]:
    """The parts of its wait, in seconds; None for what did not happen."""
    submitted_s, dispatched_s, first_token_s = sequence.submitted_s, sequence.dispatched_s, sequence.first_token_s
    return {
        "queue_s": None if dispatched_s is None else dispatched_s - submitted_s,
        "engine_queue_s": sequence.engine_queue_s,
        "first_token_s": None if first_token_s is None else first_token_s - submitted_s,
    }


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
