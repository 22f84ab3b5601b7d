"""Search for the highest load that meets the objectives: double until one is missed, then halve the gap.

Each step is a run of its own with its own prompts, so that no step profits from another's prefix cache. Between steps
the server gets time to drain its queue. A step is stopped early once so many requests have missed that the objectives
cannot be met any more.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from loadtest.api.record import RunRecords
from loadtest.errors import UsageError
from loadtest.metrics.slo import RATES, Bound, BoundResult
from loadtest.metrics.vllm_metrics import VllmMetrics

MAX_STEPS = 24
GROWING_CORRELATION = 0.6
MIN_GROWTH_REQUESTS = 20
MAX_GROWTH_REQUESTS = 200
"""The correlation compares all pairs, so more requests are thinned out to about this number."""


@dataclass(frozen=True)
class SearchStep:
    """A run at one load."""

    load: float
    """Concurrent requests, or requests per second."""
    vllm_metrics: VllmMetrics
    bound_results: tuple[BoundResult, ...]
    saturated: bool
    """Stopped early, or with a TTFT that grew throughout the run: the server could not keep up."""
    run: RunRecords

    @property
    def passed(self) -> bool:
        """Whether all objectives were met."""
        met = all(result.met for result in self.bound_results)
        return met and not self.saturated and bool(self.vllm_metrics.completed)


@dataclass(frozen=True)
class SearchResult:
    """The outcome of a search. `best` is None where no load met the objectives."""

    steps: tuple[SearchStep, ...]
    best: SearchStep | None
    knee: SearchStep | None
    """The load beyond which output no longer grows in proportion."""
    exhausted: bool
    """The highest load of the range met the objectives, too."""
    interrupted: bool = False
    """The user ended the search, so a higher load may pass."""


class SearchInterrupted(Exception):
    """The user ended the search. Completed steps are reported."""


@dataclass(frozen=True)
class SearchRange:
    """The loads to search."""

    low: float
    high: float
    integral: bool
    """Whole numbers only, as for concurrency."""
    precision: float = 0.05
    """The search stops once the gap is at most this share of the load."""


async def find_highest_load(
    search_range: SearchRange, run_step: Callable[[float], Awaitable[SearchStep]]
) -> SearchResult:
    """Run steps until the highest load that passes is known to the precision of the range."""
    if not 0 < search_range.low <= search_range.high:
        raise UsageError("--from is above --to", "Give a --from that is at most --to")
    steps: list[SearchStep] = []
    passing: float | None = None
    failing: float | None = None
    load: float | None = search_range.low
    interrupted = False
    while load is not None and len(steps) < MAX_STEPS:
        try:
            step = await run_step(load)
        except SearchInterrupted:
            interrupted = True
            break
        steps.append(step)
        if step.passed:
            passing = load
        else:
            failing = load
        load = next_load(search_range, passing, failing)
    best = max((step for step in steps if step.passed), key=lambda step: step.load, default=None)
    ordered = tuple(sorted(steps, key=lambda step: step.load))
    return SearchResult(ordered, best, find_knee(ordered), failing is None and not interrupted, interrupted)


def next_load(search_range: SearchRange, passing: float | None, failing: float | None) -> float | None:
    """The next load, from the highest that passed and the lowest that failed; None once they are close enough."""
    if failing is None:
        return None if passing is None or passing >= search_range.high else min(passing * 2, search_range.high)
    if passing is None:
        # The first load was too high already. Go down, but not below one request or a hundredth of the start.
        half = float(math.floor(failing / 2)) if search_range.integral else failing / 2
        return half if half >= (1.0 if search_range.integral else search_range.low / 100) else None
    gap = failing - passing
    if search_range.integral:
        middle = float((passing + failing) // 2)
        return middle if passing < middle < failing and gap > max(1.0, search_range.precision * passing) else None
    return (passing + failing) / 2 if gap > search_range.precision * passing else None


def find_knee(steps: Sequence[SearchStep]) -> SearchStep | None:
    """The last step before additional load yields less than half the output per request of the lowest load."""
    completed = [step for step in steps if step.vllm_metrics.completed]
    if len(completed) < 3:
        return None
    first_gain = completed[0].vllm_metrics.output_throughput / completed[0].load
    for earlier, later in pairwise(completed):
        gain = (later.vllm_metrics.output_throughput - earlier.vllm_metrics.output_throughput) / (
            later.load - earlier.load
        )
        if gain < first_gain / 2:
            return earlier
    return None


class EarlyStopRule:
    """Decides during a step whether its objectives can still be met."""

    def __init__(self, bounds: Sequence[Bound], total: int) -> None:
        self._total = total
        self._limits = [
            (bound.metric, bound.limit, 1 - float(bound.statistic) / 100)
            for bound in bounds
            if bound.metric in ("ttft", "tpot") and bound.statistic.replace(".", "", 1).isdigit() and "<" in bound.sign
        ]
        self._failures_allowed = min(
            (b.limit for b in bounds if b.metric == "failed" and "<" in b.sign), default=math.inf
        )
        self._misses = [0] * len(self._limits)
        self._failed = 0

    def add(self, *, ok: bool, ttft_ms: float, tpot_ms: float) -> bool:
        """Count a request. True once the objectives cannot be met any more, whatever the remaining requests do."""
        self._failed += not ok
        for place, (metric, limit, _) in enumerate(self._limits):
            value = ttft_ms if metric == "ttft" else tpot_ms
            self._misses[place] += not ok or value > limit
        # One more than the share allows, because a percentile is interpolated between two requests.
        exceeded = any(
            misses > share * self._total + 1 for misses, (*_, share) in zip(self._misses, self._limits, strict=True)
        )
        return exceeded or self._failed > self._failures_allowed * self._total + 1


def ttft_grew_throughout(run: RunRecords) -> bool:
    """Whether an open loop overloaded the server: TTFT rose with the start time, so a longer run would be worse.

    Uses Kendall's rank correlation of start time and TTFT over the successful requests.
    """
    points = [(r.start_ns, r.first_token_ns - r.intended_ns) for r in run.records if r.ok and r.first_token_ns]
    points = sorted(points)[:: max(1, len(points) // MAX_GROWTH_REQUESTS)]
    pairs = concordance = 0
    for place, (_, early) in enumerate(points):
        for _, late in points[place + 1 :]:
            pairs += 1
            concordance += (late > early) - (late < early)
    return len(points) >= MIN_GROWTH_REQUESTS and concordance / pairs > GROWING_CORRELATION


def require_objectives(bounds: Sequence[Bound]) -> None:
    """Raise where no bound limits a time or the share of failures."""
    if not any(bound.metric not in RATES or bound.metric == "failed" for bound in bounds):
        raise UsageError("search needs objectives", "Give e.g. --slo 'ttft_p99<3s,tpot_p99<30ms'")
