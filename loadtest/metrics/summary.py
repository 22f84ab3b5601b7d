"""All figures of a run in one object: what every report is written from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loadtest.api.record import Record
from loadtest.cli.options import OutputOptions
from loadtest.fleet.view import FleetView
from loadtest.load.run import Finished
from loadtest.load.self_check import SelfCheck
from loadtest.metrics.extended_metrics import Strict, look_closer
from loadtest.metrics.projection import Projection, project
from loadtest.metrics.reference_results import PROMPTS, Row, Setting, differences, side_by_side
from loadtest.metrics.slo import Verdict, joint_attainment, judge, parse_bounds
from loadtest.metrics.steady_state import Steady, find_steady
from loadtest.metrics.time_series import Series, over_time
from loadtest.metrics.vllm_metrics import Parity, measure
from loadtest.metrics.vllm_result import About
from loadtest.outcome import Outcome

EXAMPLES = 3
"""Failures of a kind that are shown in full."""


@dataclass(frozen=True)
class FailureGroup:
    """Failures that ended alike."""

    outcome: Outcome
    count: int
    examples: tuple[Record, ...]


@dataclass(frozen=True)
class Figures:
    """Everything there is to say about a run."""

    about: About
    finished: Finished
    parity: Parity
    strict: Strict
    steady: Steady | None
    series: Series
    kinds: dict[str, Parity]
    """Per class of a mix; empty where there is only one."""
    failures: tuple[FailureGroup, ...]
    interrupted: int
    verdicts: tuple[Verdict, ...]
    joint: float | None
    setting: Setting | None
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
        if self.strict.cached_ratio is not None or self.fleet is None:
            return self.strict.cached_ratio
        return self.fleet.prefix_hit_ratio

    def published(self) -> tuple[list[Row], list[str]]:
        """The comparison and why it may not be like for like."""
        if self.setting is None:
            return [], []
        return side_by_side(self.parity), differences(self.setting, self.parity, self.strict, self.cached_ratio)


def figure_out(
    about: About, finished: Finished, output: OutputOptions, *, setting: Setting | None, varying: bool = False
) -> Figures:
    """Compute everything from the records. A load that is `varying` by design has no steady state."""
    run = finished.run
    percentiles = sorted({*output.percentiles, 99.0})
    names = sorted({record.kind for record in run.records})
    bounds = parse_bounds(output.slo or "")
    slots = about.max_concurrency if about.request_rate == float("inf") else None
    steady = None if varying else find_steady(run, slots=slots)
    return Figures(
        about=about,
        finished=finished,
        parity=measure(run.records, run.duration_s, percentiles, output.goodput_ms),
        strict=look_closer(run.records, percentiles),
        steady=steady,
        series=over_time(run),
        kinds={
            name: measure([r for r in run.records if r.kind == name], run.duration_s, percentiles, output.goodput_ms)
            for name in (names if len(names) > 1 else [])
        },
        failures=tuple(_groups(run.records)),
        interrupted=sum(record.outcome is Outcome.INTERRUPTED for record in run.records),
        verdicts=tuple(judge(bounds, run)),
        joint=joint_attainment(bounds, run),
        setting=setting,
        projection=project(run, steady, PROMPTS, slots) if setting is not None and slots else None,
    )


def _groups(records: Sequence[Record]) -> list[FailureGroup]:
    groups: dict[Outcome, list[Record]] = {}
    for record in records:
        if record.failed:
            groups.setdefault(record.outcome, []).append(record)
    found = [FailureGroup(outcome, len(some), tuple(some[:EXAMPLES])) for outcome, some in groups.items()]
    return sorted(found, key=lambda group: -group.count)
