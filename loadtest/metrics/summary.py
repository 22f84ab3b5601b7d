"""All metrics of a run in one object, from which every report is written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from loadtest.api.record import Record
from loadtest.errors import RequestOutcome
from loadtest.fleet.view import FleetView
from loadtest.load.runner import RunResult
from loadtest.load.self_check import SelfCheck
from loadtest.metrics.agent_metrics import AgentMetrics
from loadtest.metrics.extended_metrics import ExtendedMetrics, extended_metrics_of
from loadtest.metrics.projection import Projection, project
from loadtest.metrics.reference_results import (
    PROMPTS,
    BenchmarkSettings,
    ComparisonRow,
    comparison_with_published,
    differences,
)
from loadtest.metrics.slo import BoundResult, evaluate_bounds, joint_attainment, parse_bounds
from loadtest.metrics.steady_state import SteadyState, find_steady_state
from loadtest.metrics.time_series import TimeSeries, time_series_of
from loadtest.metrics.vllm_metrics import RunInfo, VllmMetrics, compute_vllm_metrics

EXAMPLES = 3
"""Failures of each kind that are shown in full."""


@dataclass(frozen=True)
class SummarySpec:
    """Which metrics to compute."""

    percentiles: tuple[float, ...] = (50.0, 90.0, 95.0, 99.0)
    goodput_ms: Mapping[str, float] = field(default_factory=dict)
    """Limits of vLLM's goodput, by metric: ttft, tpot, e2el."""
    slo: str | None = None
    """Objectives, in the syntax of `slo.parse_bounds`."""
    window_s: float = 60.0
    """Length of the windows in which sessions of coding agents are shown over time."""


@dataclass(frozen=True)
class FailureGroup:
    """Failures with the same outcome."""

    outcome: RequestOutcome
    count: int
    examples: tuple[Record, ...]


@dataclass(frozen=True)
class Summary:
    """All metrics of a run."""

    run_info: RunInfo
    result: RunResult
    vllm_metrics: VllmMetrics
    extended_metrics: ExtendedMetrics
    steady_state: SteadyState | None
    time_series: TimeSeries
    per_class: dict[str, VllmMetrics]
    """Per class of a mix; empty where there is only one."""
    failures: tuple[FailureGroup, ...]
    interrupted: int
    """Requests in flight when the user ended the run."""
    bound_results: tuple[BoundResult, ...]
    joint_attainment: float | None
    benchmark: BenchmarkSettings | None
    """Set where the run is to be compared with the published one."""
    fleet: FleetView | None = None
    agents: AgentMetrics | None = None
    """Of sessions of coding agents."""
    projection: Projection | None = None
    """Estimate for the length of the published run, where this run was shorter."""

    @property
    def checks(self) -> Sequence[SelfCheck]:
        """CPU and event-loop lag of the client's workers."""
        return self.result.checks

    @property
    def cached_ratio(self) -> float | None:
        """Share of prompt tokens from a cache, from the answers' usage or else from the engines' metrics."""
        if self.extended_metrics.cached_ratio is not None or self.fleet is None:
            return self.extended_metrics.cached_ratio
        return self.fleet.prefix_hit_ratio

    def published(self) -> tuple[list[ComparisonRow], list[str]]:
        """The comparison with the published results, and the reasons why it may not be valid."""
        if self.benchmark is None:
            return [], []
        return comparison_with_published(self.vllm_metrics), differences(
            self.benchmark, self.vllm_metrics, self.extended_metrics, self.cached_ratio
        )


def summarize(
    run_info: RunInfo,
    result: RunResult,
    spec: SummarySpec,
    *,
    benchmark: BenchmarkSettings | None,
    varying: bool = False,
) -> Summary:
    """Compute all metrics from the records. A load that is `varying` by design has no steady state."""
    run = result.run
    percentiles = sorted({*spec.percentiles, 99.0})
    classes = sorted({record.kind for record in run.records})
    bounds = parse_bounds(spec.slo or "")
    slots = run_info.max_concurrency if math.isinf(run_info.request_rate) else None
    steady_state = None if varying else find_steady_state(run, slots=slots)
    return Summary(
        run_info=run_info,
        result=result,
        vllm_metrics=compute_vllm_metrics(run.records, run.duration_s, percentiles, spec.goodput_ms),
        extended_metrics=extended_metrics_of(run.records, percentiles),
        steady_state=steady_state,
        time_series=time_series_of(run),
        per_class={
            name: compute_vllm_metrics(
                [r for r in run.records if r.kind == name], run.duration_s, percentiles, spec.goodput_ms
            )
            for name in (classes if len(classes) > 1 else [])
        },
        failures=tuple(_failure_groups(run.records)),
        interrupted=sum(record.outcome is RequestOutcome.INTERRUPTED for record in run.records),
        bound_results=tuple(evaluate_bounds(bounds, run)),
        joint_attainment=joint_attainment(bounds, run),
        benchmark=benchmark,
        projection=project(run, steady_state, PROMPTS, slots) if benchmark is not None and slots else None,
    )


def _failure_groups(records: Sequence[Record]) -> list[FailureGroup]:
    groups: dict[RequestOutcome, list[Record]] = {}
    for record in records:
        if record.failed:
            groups.setdefault(record.outcome, []).append(record)
    found = [FailureGroup(outcome, len(some), tuple(some[:EXAMPLES])) for outcome, some in groups.items()]
    return sorted(found, key=lambda group: -group.count)
