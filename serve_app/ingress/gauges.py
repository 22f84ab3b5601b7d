"""What an ingress is like at the moment: its requests, the replicas as it sees them, its decisions, its event loop.

Set once a second by the sampler of the event loop (`ingress/event_loop.py`): Ray exports a gauge only in the intervals
in which it was set. Every label is an enum's.
"""

from __future__ import annotations

from ray.serve import metrics

from serve_app.engine.metrics import TotalCounter
from serve_app.ingress.event_loop import LoopUse
from serve_app.router.admission_control import AdmissionDecision
from serve_app.router.attempts import LOST
from serve_app.router.dispatcher import Dispatcher


class ProcessGauges:
    """What one ingress exports of itself."""

    def __init__(self) -> None:
        self._inflight = _gauge("step_inflight_requests", "Sequences that this ingress has taken and not completed.")
        self._inflight_tokens = _gauge("step_inflight_tokens", "Their tokens: prompts, and answers so far.")
        self._queued = _gauge(
            "step_queued_requests", "Requests of all ingresses that wait at the replicas, as this ingress last heard."
        )
        self._replicas = _gauge(
            "step_replicas",
            "Engine replicas, as this ingress sees them: up, connecting (no frame yet), leaving (its node is "
            "about to go), draining (stopping, or its engine is dead), refused (another version).",
            "state",
        )
        self._admission = TotalCounter(
            "step_admission_decisions",
            "Requests, by the decision: admitted, admitted_by_share (all is full, but its client has less than its "
            "share), queue_full, replicas_full (each has refused it), no_replica, too_many_sequences.",
            ("decision",),
        )
        self._migrations = TotalCounter(
            "step_migrations",
            "Attempts that took over from a lost one, by how that was lost: died (its engine died or hung), named (the "
            "same, and the evidence points at the request), beside (and points at another), cut (the connection), "
            "moved (its replica was stopping).",
            ("cause",),
        )
        self._lateness_s = _gauge(
            "step_frame_lateness_seconds",
            "How late a message of a replica came (one is due every half second), the worst of ten seconds.",
        )
        self._index_bytes = _gauge(
            "step_prefix_index_bytes", "About how much memory the index of the replicas' caches takes."
        )
        self._busy_ratio = _gauge(
            "step_event_loop_busy_ratio",
            "Share of one core's time that the ingress' event loop used, over ten seconds.",
        )
        self._lag_s = _gauge(
            "step_event_loop_lag_seconds", "How late the ingress' event loop ran a timer, the worst of ten seconds."
        )

    def set(self, use: LoopUse, dispatcher: Dispatcher) -> None:
        """What the event loop did in the last period (`event_loop.EventLoopSampler`), and what the dispatcher knows."""
        self._inflight.set(dispatcher.in_flight)
        self._inflight_tokens.set(dispatcher.inflight_tokens())
        self._queued.set(dispatcher.queued())
        for state, count in dispatcher.replicas_by_state().items():
            self._replicas.set(count, tags={"state": state.value})
        decisions = dispatcher.admission_decisions()
        for decision in AdmissionDecision:
            self._admission.set_total(decisions.get(decision, 0), tags={"decision": decision.value})
        for cause in LOST:
            self._migrations.set_total(dispatcher.migrations_by_cause[cause], tags={"cause": cause.value})
        self._lateness_s.set(dispatcher.frame_lateness_s())
        self._index_bytes.set(dispatcher.index_bytes())
        self._busy_ratio.set(use.busy_ratio)
        self._lag_s.set(use.lag_s)


def _gauge(name: str, description: str, *tag_keys: str) -> metrics.Gauge:
    return metrics.Gauge(name, description=description, tag_keys=tag_keys)
