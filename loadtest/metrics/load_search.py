"""The highest load that keeps its objectives: double until it breaks, then halve the gap, and show the knee.

Each step is a run of its own with other prompts, so that no step profits from another's prefix cache. Between steps the
server gets time to empty its queue. A step ends early when it is hopeless: when the share of requests that miss can no
longer come back below what the objectives allow.
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


@dataclass(frozen=True)
class SearchStep:
    """One load that was tried."""

    load: float
    """Requests at a time, or per second."""
    vllm_metrics: VllmMetrics
    verdicts: tuple[BoundResult, ...]
    saturated: bool
    """Ended early, or its latency grew all through the run: the queue had no end."""
    run: RunRecords

    @property
    def holds(self) -> bool:
        """Whether all objectives were met."""
        return (
            not self.saturated and bool(self.vllm_metrics.completed) and all(verdict.met for verdict in self.verdicts)
        )


@dataclass(frozen=True)
class SearchResult:
    """A search's outcome. `best` is None where even the lowest load misses."""

    steps: tuple[SearchStep, ...]
    best: SearchStep | None
    knee: SearchStep | None
    """Where more load stopped to bring proportionally more output."""
    exhausted: bool
    """The upper limit of the search still held."""
    interrupted: bool = False
    """The user ended it: the answer may not be the highest."""


class SearchEnded(Exception):
    """The user has had enough; the steps that were complete count."""


@dataclass(frozen=True)
class SearchRange:
    """What to search. Whole numbers for concurrency."""

    low: float
    high: float
    whole: bool
    precision: float = 0.05
    """Stop when the gap is this share of the load."""


async def search(span: SearchRange, try_load: Callable[[float], Awaitable[SearchStep]]) -> SearchResult:
    """Try loads until the highest that holds is known to the range's precision."""
    if not 0 < span.low <= span.high:
        raise UsageError("--from must be above 0 and at most --to")
    steps: list[SearchStep] = []
    good: float | None = None
    bad: float | None = None
    load = span.low
    interrupted = False
    while len(steps) < MAX_STEPS:
        try:
            step = await try_load(load)
        except SearchEnded:
            interrupted = True
            break
        steps.append(step)
        if step.holds:
            good = load
        else:
            bad = load
        following = next_load(span, good, bad)
        if following is None:
            break
        load = following
    held = [step for step in steps if step.holds]
    best = max(held, key=lambda step: step.load) if held else None
    ordered = tuple(sorted(steps, key=lambda step: step.load))
    return SearchResult(ordered, best, find_knee(ordered), bad is None and not interrupted, interrupted)


def next_load(span: SearchRange, good: float | None, bad: float | None) -> float | None:
    """The load to try next, None when the answer is precise enough. Pure, so that its path can be tested."""
    if bad is None:
        return None if good is None or good >= span.high else min(good * 2, span.high)
    if good is None:
        # Even the start was too much: go down, but not below a single request or a hundredth of the start.
        lower = bad / 2
        least = 1.0 if span.whole else span.low / 100
        return (float(math.floor(lower)) if span.whole else lower) if lower >= least else None
    if span.whole:
        middle = float((good + bad) // 2)
        return middle if good < middle < bad and bad - good > max(1.0, span.precision * good) else None
    return (good + bad) / 2 if bad - good > span.precision * good else None


def find_knee(steps: Sequence[SearchStep]) -> SearchStep | None:
    """The step after which a further request brings less than half of what the first ones did."""
    useful = [step for step in steps if step.vllm_metrics.completed]
    if len(useful) < 3:
        return None
    first = useful[0].vllm_metrics.output_throughput / useful[0].load
    for earlier, later in pairwise(useful):
        gain = (later.vllm_metrics.output_throughput - earlier.vllm_metrics.output_throughput) / (
            later.load - earlier.load
        )
        if gain < first / 2:
            return earlier
    return None


class EarlyStopRule:
    """Watches a step's requests: is it certain by now that it misses?"""

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
        """Count a request; True once the objectives cannot be met any more, however the rest turns out."""
        self._failed += not ok
        for place, (metric, limit, _) in enumerate(self._limits):
            value = ttft_ms if metric == "ttft" else tpot_ms
            self._misses[place] += not ok or value > limit
        # One more than allowed, as a percentile falls between two requests.
        lost = any(
            misses > share * self._total + 1 for misses, (*_, share) in zip(self._misses, self._limits, strict=True)
        )
        return lost or self._failed > self._failures_allowed * self._total + 1


def grew_all_through(run: RunRecords) -> bool:
    """Whether an open loop was over-saturated: TTFT rose steadily, so that a longer run would only look worse.

    Kendall's rank correlation of start time and TTFT over the successful requests; above 0.6 a queue was growing.
    """
    points = [(r.start_ns, r.first_token_ns - r.intended_ns) for r in run.records if r.ok and r.first_token_ns]
    points = sorted(points)[:: max(1, len(points) // 200)]
    pairs = agree = 0
    for place, (_, early) in enumerate(points):
        for _, late in points[place + 1 :]:
            pairs += 1
            agree += (late > early) - (late < early)
    return len(points) >= 20 and agree / pairs > 0.6


def needs_slo(bounds: Sequence[Bound]) -> None:
    """Raise where there is nothing to search for."""
    if not any(bound.metric not in RATES or bound.metric == "failed" for bound in bounds):
        raise UsageError("search needs objectives", "Give e.g. --slo 'ttft_p99<3s,tpot_p99<30ms'")
