"""The metrics of an engine replica, beside vLLM's own, which are not repeated here (`engine/vllm_metrics.py`).

Set with every heartbeat: Ray exports a gauge only in the intervals in which it was set. Every label is an enum's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ray.serve import metrics

from serve_app.engine.figures import ReplicaFigures
from serve_app.engine.key_costs import KeyCosts
from serve_app.engine.watchdog import EngineState


class TotalCounter(metrics.Counter):  # type: ignore[misc]  # Ray is not read by mypy
    """A counter that is told totals. It is there from the first total on, also at 0: Prometheus' `increase` does not
    see the step of a series that begins above it."""

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...] = ()) -> None:
        super().__init__(name, description=description, tag_keys=tag_keys)
        self._totals: dict[tuple[tuple[str, str], ...], float] = {}

    def set_total(self, total: float, tags: Mapping[str, str] | None = None) -> None:
        """It is `total` now; it never falls."""
        key = tuple(sorted((tags or {}).items()))
        before = self._totals.get(key)
        if before is None or total > before:
            self._totals[key] = total
            self._record(total - (before or 0), tags=dict(tags or {}))  # `inc` refuses 0


def start_at_zero(counter: metrics.Counter, series: Iterable[Mapping[str, str]]) -> None:
    """Have these series of a counter there before their first count, for the same reason."""
    for tags in series:
        counter._record(0, tags=dict(tags))  # noqa: SLF001  # `inc` refuses 0


class ReplicaMetrics:
    """What one engine replica exports."""

    def __init__(self, costs: KeyCosts) -> None:
        self._costs = costs
        self._inflight = _gauge("step_replica_inflight_requests", "Sequences in the engine.", "class")
        self._inflight_tokens = _gauge(
            "step_replica_inflight_tokens", "Tokens of the sequences in the engine, as they came to it.", "class"
        )
        self._queued = _gauge("step_replica_queued_requests", "Sequences that wait in front of the engine.", "class")
        self._queued_tokens = _gauge("step_replica_queued_tokens", "Tokens of those that wait.", "class")
        self._prefill = _gauge(
            "step_replica_queued_prefill_tokens",
            "Prompt tokens that are yet to be computed, in the engine or in front of it.",
        )
        self._state = _gauge(
            "step_watchdog_state",
            "1 for the state in which the watchdog finds the engine, 0 for the others (docs/watchdog.md).",
            "state",
        )
        self._silence_s = _gauge(
            "step_engine_silence_seconds", "Since the engine's last step, while it has work; 0 where it has none."
        )
        self._start_s = _gauge("step_engine_start_seconds", "How long each phase of the engine's start took.", "phase")
        self._frames = TotalCounter("step_frames_sent", "Messages to ingresses: tokens, load and cache changes.")
        self._bytes = TotalCounter("step_frame_bytes_sent", "Their bytes.")
        self._unsent = _gauge(
            "step_unsent_deltas", "Deltas (a step's tokens of one sequence) that wait for the slowest connection."
        )
        self._lag_s = _gauge(
            "step_replica_event_loop_lag_seconds", "How late the replica's event loop ran its last timer."
        )

    def set(self, figures: ReplicaFigures) -> None:
        """The replica is like this now. Called in the event loop."""
        self._costs.set_totals(figures.engine_s)
        for service_class, load in figures.load.items():
            tags = {"class": service_class.word}
            self._inflight.set(load.inflight, tags=tags)
            self._inflight_tokens.set(load.inflight_tokens, tags=tags)
            self._queued.set(load.queued, tags=tags)
            self._queued_tokens.set(load.queued_tokens, tags=tags)
        self._prefill.set(figures.queued_prefill_tokens)
        set_state(self._state, figures.state)
        self._silence_s.set(figures.silence_s)
        for phase, seconds in figures.start_s.items():
            self._start_s.set(seconds, tags={"phase": phase.value})
        self._frames.set_total(figures.sent.frames)
        self._bytes.set_total(figures.sent.size_bytes)
        self._unsent.set(figures.unsent_deltas)
        self._lag_s.set(figures.lag_s)


def set_state(gauge: metrics.Gauge, state: EngineState) -> None:
    """1 for this state, 0 for the others."""
    for one in EngineState:
        gauge.set(float(one is state), tags={"state": one.value})


def _gauge(name: str, description: str, *tag_keys: str) -> metrics.Gauge:
    return metrics.Gauge(name, description=description, tag_keys=tag_keys)


Declared = Any
"""A metric of Ray's."""


def declared(*owners: object) -> list[Declared]:
    """The metrics that these objects hold, in the order of their declaration."""
    kinds = (metrics.Counter, metrics.Gauge, metrics.Histogram)
    return [one for owner in owners for one in vars(owner).values() if isinstance(one, kinds)]
