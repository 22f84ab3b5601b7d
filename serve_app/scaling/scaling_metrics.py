"""The metrics of the scaling policy, from Serve's controller. Labels are names of the configuration, and an enum's."""

from __future__ import annotations

from ray.serve import metrics

from serve_app.scaling.facts import Cause, Decision, Objective

LABELS = ("application", "deployment")


class ScalingMetrics:
    """What the policy of one deployment exports."""

    def __init__(self, application: str, deployment: str) -> None:
        self._tags = {"application": application, "deployment": deployment}
        self._ttft_s = _gauge(
            "step_scaling_ttft_p95_forecast_seconds",
            "TTFT of one request in 20, forecast for the engines that there are, a start time ahead.",
        )
        self._tpot_s = _gauge("step_scaling_tpot_p95_forecast_seconds", "The same for the time per output token.")
        self._objective_s = _gauge("step_scaling_ttft_p95_objective_seconds", "`slo.ttft_p95_s`.")
        self._needed = _gauge(
            "step_scaling_needed_engines", "Engines that would keep the objective, whatever the bounds."
        )
        self._horizon_s = _gauge("step_scaling_horizon_seconds", "How far ahead is forecast: an engine's start time.")
        self._decisions = metrics.Counter(
            "step_scaling_decisions",
            description="Changes of the number of engines, by what was short or spare.",
            tag_keys=(*LABELS, "direction", "cause"),
        )
        for direction in ("up", "down"):
            for cause in Cause:
                if cause is not Cause.NONE:
                    tags = {**self._tags, "direction": direction, "cause": cause.value}
                    self._decisions._record(0, tags=tags)  # noqa: SLF001  # `inc` refuses 0

    def set(self, before: int, decision: Decision, objective: Objective) -> None:
        """It is decided so, with `before` as the target until now."""
        if decision.ttft_p95_forecast_s is not None:
            self._ttft_s.set(decision.ttft_p95_forecast_s, tags=self._tags)
        if decision.tpot_p95_forecast_s is not None:
            self._tpot_s.set(decision.tpot_p95_forecast_s, tags=self._tags)
        if objective.ttft_p95_s is not None:
            self._objective_s.set(objective.ttft_p95_s, tags=self._tags)
        self._needed.set(decision.needed, tags=self._tags)
        self._horizon_s.set(decision.horizon_s, tags=self._tags)
        if decision.target != before:
            direction = "up" if decision.target > before else "down"
            self._decisions.inc(tags={**self._tags, "direction": direction, "cause": decision.cause.value})


def _gauge(name: str, description: str) -> metrics.Gauge:
    return metrics.Gauge(name, description=description, tag_keys=LABELS)
