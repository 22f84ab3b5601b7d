"""The policy as Serve's controller runs it: its context in, a number of replicas out, each change said and kept.

The controller asks ten times a second, for every deployment in turn; a decision is made every `DECIDE_EVERY_S`. Serve's
own delays are set to 0: the hysteresis here knows the start time, Serve's does not.

A change is a line in the controller's log, a count and gauges among the metrics, and an entry in Ray's key-value store
(`journal.py`), where every ingress finds it for the status page.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from serve_app.scaling.facts import Bounds, Decision, FleetFacts, Objective, Pace, ScalingState, Settings
from serve_app.scaling.journal import ScaleJournal
from serve_app.scaling.policy import decide
from serve_app.scaling.reports import ArrivalCount, ReplicaReport, StartTime, read_report
from serve_app.scaling.scaling_metrics import ScalingMetrics
from serve_app.scaling.schedule import schedule

DECIDE_EVERY_S = 1.0

logger = logging.getLogger("ray.serve")
"""The controller's own log has no other."""


def settings_of(configured: Mapping[str, Any]) -> Settings:
    """The settings that the application's configuration means (`app.py` writes them, as JSON takes them)."""
    return Settings(
        Objective(**configured["objective"]),
        Bounds(**{**configured["bounds"], "schedule": schedule(configured["bounds"]["schedule"])}),
        Pace(**configured["pace"]),
    )


class SloPolicy:
    """`decide` as Serve's autoscaling policy."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings_of(settings)
        self._state = ScalingState()
        self._arrived = ArrivalCount()
        self._starts = StartTime()
        self._decided_s: float | None = None
        self._failure = ""
        self._journal: ScaleJournal | None = None
        self._metrics: ScalingMetrics | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Serve sends the policy, used as it is, to every replica with the deployment's configuration. Its metrics are
        the controller's: a replica could not make them, for there Serve has a `deployment` label of its own."""
        return {**self.__dict__, "_journal": None, "_metrics": None}

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """The number of replicas wanted, and no state: it is kept here, which lives as long."""
        now_s, target = float(context.current_time), int(context.target_num_replicas)
        if self._decided_s is not None and 0 <= now_s - self._decided_s < DECIDE_EVERY_S:
            return target, {}
        self._decided_s = now_s
        try:
            decision = self.decide(context)
            if decision.target != target:
                self._tell(context, now_s, target, decision)
            self._measure(context, decision)
        except Exception as error:  # it would end every update of the application by the controller
            if self._failure != (failure := f"{type(error).__name__}: {error}"):
                logger.exception("the scaling policy failed; the number of engines stays as it is")
            self._failure = failure
            return target, {}
        self._failure = ""
        return decision.target, {}

    def decide(self, context: Any) -> Decision:
        """The decision for what Serve knows now."""
        reports = read_reports(context)
        self._arrived.add(reports)
        now_s, target = float(context.current_time), int(context.target_num_replicas)
        self._starts.observe(now_s, target, reports.values())
        facts = FleetFacts(
            now_s=now_s,
            replicas=tuple(one.facts for one in reports.values()),
            target=target,
            starting=max(target - len(reports), 0),
            start_s=self._starts.seconds,
            arrived_requests=self._arrived.requests,
            arrived_prefill_tokens=self._arrived.prefill_tokens,
            arrived_prefill_squares=self._arrived.prefill_squares,
        )
        # Serve remembers changes from before a new deployment of the application, which begins with a new policy.
        state = replace(
            self._state,
            last_up_s=_later(self._state.last_up_s, context.last_scale_up_time),
            last_down_s=_later(self._state.last_down_s, context.last_scale_down_time),
        )
        decision, self._state = decide(facts, state, self._bounded(context))
        return decision

    def fewest(self, context: Any) -> int:
        """How many the bounds and the schedule ask for, whatever the load."""
        return self._bounded(context).bounds.fewest(float(context.current_time))

    def _bounded(self, context: Any) -> Settings:
        """With the bounds that Serve applies: `target_capacity` changes them."""
        bounds = self._settings.bounds
        most = min(bounds.maximum, int(context.capacity_adjusted_max_replicas))
        fewest = min(bounds.minimum, int(context.capacity_adjusted_min_replicas))
        return replace(self._settings, bounds=replace(bounds, minimum=fewest, maximum=most))

    def _tell(self, context: Any, now_s: float, before: int, decision: Decision) -> None:
        logger.info("%s: %s.", context.deployment_id, decision.reason)
        if self._journal is None:
            self._journal = ScaleJournal(context.app_name, context.deployment_name)
        self._journal.add(now_s, before, decision.target, decision.reason)

    def _measure(self, context: Any, decision: Decision) -> None:
        if self._metrics is None:
            self._metrics = ScalingMetrics(context.app_name, context.deployment_name)
        self._metrics.set(int(context.target_num_replicas), decision, self._settings.objective)


def read_reports(context: Any) -> dict[str, ReplicaReport]:
    """The newest report of each replica that serves, by its id."""
    numbers: dict[str, dict[str, float]] = {}
    for name, by_replica in (context.raw_metrics or {}).items():
        for replica_id, series in by_replica.items():
            if series:
                numbers.setdefault(str(replica_id), {})[str(name)] = float(series[-1].value)
    found = {name: read_report(one) for name, one in numbers.items()}
    return {name: report for name, report in found.items() if report is not None}


def _later(one: float | None, other: float | None) -> float | None:
    return max((time_s for time_s in (one, other) if time_s is not None), default=None)
