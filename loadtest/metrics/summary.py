"""All figures of a run in one object: what every report is written from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from loadtest.api.record import Record
from loadtest.errors import RequestOutcome
from loadtest.fleet.view import FleetView
from loadtest.load.run import RunResult
from loadtest.load.self_check import SelfCheck
from loadtest.metrics.extended_metrics import ExtendedMetrics, extended_metrics_of
from loadtest.metrics.projection import Projection, project
from loadtest.metrics.reference_results import PROMPTS, BenchmarkSettings, ComparisonRow, differences, side_by_side
from loadtest.metrics.slo import BoundResult, joint_attainment, judge, parse_bounds
from loadtest.metrics.steady_state import SteadyState, find_steady_state
from loadtest.metrics.time_series import TimeSeries, over_time
from loadtest.metrics.vllm_metrics import VllmMetrics, compute_vllm_metrics
from loadtest.metrics.vllm_result import RunInfo

EXAMPLES = 3
"""Failures of a kind that are shown in full."""


@dataclass(frozen=True)
class SummarySpec:
    """Which figures to compute."""

    percentiles: tuple[float, ...] = (50.0, 90.0, 95.0, 99.0)
    goodput_ms: Mapping[str, float] = field(default_factory=dict)
    """Limits of vLLM's goodput, by metric: ttft, tpot, e2el."""
    slo: str | None = None
    """Objectives in the form of `slo.parse_bounds`."""


@dataclass(frozen=True)
class FailureGroup:
    """Failures that ended alike."""

    outcome: RequestOutcome
    count: int
    examples: tuple[Record, ...]


@dataclass(frozen=True)
class Summary:
    """Everything there is to say about a run."""

    about: RunInfo
    finished: RunResult
    vllm_metrics: VllmMetrics
    extended_metrics: ExtendedMetrics
    steady: SteadyState | None
    series: TimeSeries
    kinds: dict[str, VllmMetrics]
    """Per class of a mix; empty where there is only one."""
    failures: tuple[FailureGroup, ...]
    interrupted: int
    verdicts: tuple[BoundResult, ...]
    joint: float | None
    setting: BenchmarkSettings | None
    """Set where the run is to be compared with the published one."""
    fleet: FleetView | None = None
    projection: Projection | None = None
    """The published run's length, where this one was shorter."""

    @property
    def checks(self) -> Sequence[SelfCheck]:
        """What the client's workers cost."""
        return self.finished.checks

    @property
    def cached_ratio(self) -> float | None:
        """Share of prompt tokens from a cache, as the answers or else the engines tell it."""
        if self.extended_metrics.cached_ratio is not None or self.fleet is None:
            return self.extended_metrics.cached_ratio
        return self.fleet.prefix_hit_ratio

    def published(self) -> tuple[list[ComparisonRow], list[str]]:
        """The comparison and why it may not be like for like."""
        if self.setting is None:
            return [], []
        return side_by_side(self.vllm_metrics), differences(
            self.setting, self.vllm_metrics, self.extended_metrics, self.cached_ratio
        )


def summarize(
    about: RunInfo,
    finished: RunResult,
    spec: SummarySpec,
    *,
    setting: BenchmarkSettings | None,
    varying: bool = False,
) -> Summary:
    """Compute everything from the records. A load that is `varying` by design has no steady state."""
    run = finished.run
    percentiles = sorted({*spec.percentiles, 99.0})
    names = sorted({record.kind for record in run.records})
    bounds = parse_bounds(spec.slo or "")
    slots = about.max_concurrency if about.request_rate == float("inf") else None
    steady = None if varying else find_steady_state(run, slots=slots)
    return Summary(
        about=about,
        finished=finished,
        vllm_metrics=compute_vllm_metrics(run.records, run.duration_s, percentiles, spec.goodput_ms),
        extended_metrics=extended_metrics_of(run.records, percentiles),
        steady=steady,
        series=over_time(run),
        kinds={
            name: compute_vllm_metrics(
                [r for r in run.records if r.kind == name], run.duration_s, percentiles, spec.goodput_ms
            )
            for name in (names if len(names) > 1 else [])
        },
        failures=tuple(_groups(run.records)),
        interrupted=sum(record.outcome is RequestOutcome.INTERRUPTED for record in run.records),
        verdicts=tuple(judge(bounds, run)),
        joint=joint_attainment(bounds, run),
        setting=setting,
        projection=project(run, steady, PROMPTS, slots) if setting is not None and slots else None,
    )


def _groups(records: Sequence[Record]) -> list[FailureGroup]:
    groups: dict[RequestOutcome, list[Record]] = {}
    for record in records:
        if record.failed:
            groups.setdefault(record.outcome, []).append(record)
    found = [FailureGroup(outcome, len(some), tuple(some[:EXAMPLES])) for outcome, some in groups.items()]
    return sorted(found, key=lambda group: -group.count)
