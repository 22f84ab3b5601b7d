"""Compares result files with the first one, and says which differences chance could explain.

The ratio of a mean or a 99th percentile gets a bootstrap interval from per-request times, and that of a throughput one
from its slices over the run. A difference counts as real only where the interval excludes 1. Where a file has no such
times, the ratio is shown without an interval and a note gives the reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from loadtest.metrics.result_files import METRICS, Floats, ResultFile
from loadtest.metrics.steady_state import Estimate

RESAMPLES = 2000
MIN_SAMPLES = 8
"""Fewer requests give no interval."""
MAX_DRAW = 4096
"""Requests in one resample: more would cost memory and barely narrow the interval."""


def _mean(samples: Floats) -> Floats:
    return np.asarray(samples.mean(axis=1))


def _p99(samples: Floats) -> Floats:
    return np.asarray(np.percentile(samples, 99, axis=1))


BOOTSTRAPPED: dict[str, tuple[str, Callable[[Floats], Floats]]] = {
    "mean_ttft_ms": ("ttft", _mean),
    "mean_tpot_ms": ("tpot", _mean),
    "mean_e2el_ms": ("e2el", _mean),
    "p99_ttft_ms": ("ttft", _p99),
    "p99_tpot_ms": ("tpot", _p99),
}


@dataclass(frozen=True)
class Change:
    """One metric of one file compared with the base."""

    value: float
    ratio: float
    low: float
    high: float
    """95 % interval of the ratio; NaN where the files do not allow one."""
    better: bool | None
    """None where chance could explain the difference, or where there is no interval."""


def changes(base: ResultFile, other: ResultFile) -> dict[str, Change]:
    """Every metric that both files have."""
    out = {}
    rng = np.random.default_rng(0)
    for key, _, higher_is_better in METRICS:
        if key not in base.values or key not in other.values:
            continue
        low, high = _interval(key, base, other, rng)
        ratio = other.values[key] / base.values[key] if base.values[key] else math.nan
        significant = not math.isnan(low) and not low <= 1 <= high
        out[key] = Change(other.values[key], ratio, low, high, (ratio > 1) == higher_is_better if significant else None)
    return out


def _interval(key: str, base: ResultFile, other: ResultFile, rng: np.random.Generator) -> tuple[float, float]:
    """The 95 % interval of a metric's ratio; NaN where the files have no times for it."""
    if key in base.slices and key in other.slices:
        return _rate_interval(key, base, other)
    name, statistic = BOOTSTRAPPED.get(key, ("", _mean))
    samples = [result.samples.get(name) for result in (other, base)]
    draws = []
    for times in samples:
        if times is None or len(times) < MIN_SAMPLES:
            return math.nan, math.nan
        draws.append(statistic(times[rng.integers(0, len(times), size=(RESAMPLES, min(len(times), MAX_DRAW)))]))
    low, high = np.percentile(draws[0] / draws[1], [2.5, 97.5])
    return float(low), float(high)


def _rate_interval(key: str, base: ResultFile, other: ResultFile) -> tuple[float, float]:
    """The interval of the ratio of two throughputs, from the spread of their slices, on a logarithmic scale."""
    ratio = other.values[key] / base.values[key] if base.values[key] else math.nan
    estimates = [Estimate.of(result.slices[key]) for result in (base, other)]
    half = math.hypot(*(estimate.half_width / estimate.mean for estimate in estimates))
    return ratio * math.exp(-half), ratio * math.exp(half)


def comparison_rows(results: Sequence[ResultFile]) -> list[tuple[str, ...]]:
    """Table rows: name, base value, then value, ratio and interval of every other file."""
    base, others = results[0], results[1:]
    compared = [changes(base, other) for other in others]
    rows = []
    for key, title, _ in METRICS:
        if key not in base.values:
            continue
        cells = [title, f"{base.values[key]:,.2f}"]
        for change in (found.get(key) for found in compared):
            cells += _cells(change)
        rows.append(tuple(cells))
    return rows


def _cells(change: Change | None) -> list[str]:
    if change is None:
        return ["", "", ""]
    interval = ""
    if not math.isnan(change.low):
        meaning = {True: "better", False: "worse", None: "within chance"}[change.better]
        interval = f"{change.low:.3f} to {change.high:.3f}, {meaning}"
    ratio = "" if math.isnan(change.ratio) else f"{change.ratio:.3f}"
    return [f"{change.value:,.2f}", ratio, interval]


def comparison_notes(results: Sequence[ResultFile]) -> list[str]:
    """Differences between the runs' configurations, and what the intervals do and do not cover."""
    notes = []
    for key in sorted({key for result in results for key in result.settings}):
        values = {result.name: result.settings.get(key) for result in results if key in result.settings}
        if len(set(values.values())) > 1:
            notes.append(f"{key} differs: " + ", ".join(f"{name} {value}" for name, value in values.items()))
    notes += [
        f"{result.name}: no interval for throughput, because {_no_slices_reason(result)}"
        for result in results
        if not result.slices
    ]
    if sum(bool(result.slices) for result in results) > 1:
        notes.append("the intervals cover the variation within a run; two runs of the same server can differ by more")
    if any(result.source == "aiperf" for result in results):
        notes.append("aiperf's per-request inter-token latency is compared with TPOT, its inter-chunk latency with ITL")
    return notes


def _no_slices_reason(result: ResultFile) -> str:
    return {
        "ours": "the run was too short",
        "vLLM": "vLLM writes times only with --save-detailed",
        "aiperf": "its summary has no times",
    }[result.source]
