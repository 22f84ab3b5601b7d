"""Objectives and assertions such as `ttft_p99<3s, tpot_p99<30ms, failed<1%`, and the recovery after a disturbance.

Failures count as misses: a failed request has no time to first token, so its time is infinite. `ttft_p99<3s` therefore
says that 99 % of all requests, not of the successful ones, had a token within 3 s.

A run has recovered from a disturbance at the first request from which on, for the next five seconds of starts, enough
requests meet every time limit. "Enough" is the objective's own percentile.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from loadtest.api.record import Record, RunRecords, latency_s, tpot_s, ttft_s
from loadtest.errors import UsageError
from loadtest.metrics.extended_metrics import token_gaps_s

UNITS = {"": 1.0, "ms": 1.0, "s": 1000.0, "%": 0.01}
TIMES: dict[str, Callable[[Record], float]] = {
    "ttft": lambda record: ttft_s(record) * 1e3,
    "tpot": lambda record: tpot_s(record) * 1e3,
    "e2el": lambda record: latency_s(record) * 1e3,
    "gap": lambda record: float(token_gaps_s(record).max() * 1e3) if len(record.chunk_ns) > 1 else 0.0,
    "ttft_intended": lambda record: (record.first_token_ns - record.intended_ns) / 1e6,
    "e2el_intended": lambda record: (record.last_chunk_ns - record.intended_ns) / 1e6,
    "visible": lambda record: (
        (record.first_visible_ns - record.start_ns) / 1e6 if record.first_visible_ns else math.inf
    ),
}
"""Per-request times in ms; `gap` is a request's longest gap per token."""
RATES = ("output_rate", "request_rate", "failed")
RECOVERY_WINDOW_S = 5.0
OPERATORS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


@dataclass(frozen=True)
class Bound:
    """One comparison. `statistic` is mean, max, min or a percentile's number, and empty for rates."""

    metric: str
    statistic: str
    sign: str
    limit: float
    text: str

    def value(self, run: RunRecords) -> float:
        """The run's value: in ms, per second, or a ratio for `failed`."""
        counted = [record for record in run.records if record.ok or record.failed]
        good = [record for record in counted if record.ok]
        if self.metric == "failed":
            return (len(counted) - len(good)) / len(counted) if counted else 0.0
        if self.metric == "request_rate":
            return len(good) / run.duration_s
        if self.metric == "output_rate":
            return sum(record.output_tokens for record in good) / run.duration_s
        return self._time(counted)

    def _time(self, counted: Sequence[Record]) -> float:
        times = self.per_request(counted)
        if not len(times):
            return math.inf
        if self.statistic in ("mean", "max", "min"):
            return float(getattr(np, self.statistic)(times))
        # "higher" never interpolates between a time and infinity.
        return float(
            np.percentile(times, float(self.statistic), method="higher" if np.isinf(times).any() else "linear")
        )

    def per_request(self, counted: Sequence[Record]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Each request's time in ms, infinity for failures."""
        read = TIMES[self.metric]
        return np.asarray([read(record) if record.ok else math.inf for record in counted], dtype=np.float64)

    def holds(self, value: float) -> bool:
        """Whether a value meets the bound."""
        return bool(OPERATORS[self.sign](value, self.limit))

    def attainment(self, run: RunRecords) -> float | None:
        """Share of requests that meet the limit individually; None for rates."""
        if self.metric in RATES:
            return None
        counted = [record for record in run.records if record.ok or record.failed]
        met = [self.holds(float(time)) for time in self.per_request(counted)]
        return sum(met) / len(met) if met else 0.0


@dataclass(frozen=True)
class BoundResult:
    """A bound, and whether a run met it."""

    bound: Bound
    value: float
    met: bool
    attainment: float | None


def parse_bounds(text: str) -> list[Bound]:
    """Comma-separated bounds."""
    return [_bound(part.strip()) for part in text.split(",") if part.strip()]


def _bound(text: str) -> Bound:
    match = re.fullmatch(
        r"([a-z0-9_]+?)(?:_(mean|max|min|p\d+(?:\.\d+)?))?\s*(<=|>=|<|>)\s*(\d+(?:\.\d+)?)\s*(ms|s|%)?", text
    )
    known = [*TIMES, *RATES]
    if match is None or match[1] not in known:
        raise UsageError(f"not a bound: {text!r}", f"Write e.g. ttft_p99<3s; metrics are {', '.join(known)}")
    metric, statistic, sign, number, unit = match.groups()
    if (metric in TIMES) != bool(statistic):
        raise UsageError(*_statistic_error(metric, text))
    percentile = (statistic or "").removeprefix("p")
    if percentile != statistic and percentile and float(percentile) > 100:
        raise UsageError(f"{text!r} asks for a percentile above 100", f"Write e.g. {metric}_p99.9")
    return Bound(metric, percentile, sign, float(number) * UNITS[unit or ""], text)


def _statistic_error(metric: str, text: str) -> tuple[str, str]:
    if metric in TIMES:
        return f"{metric} in {text!r} needs a statistic", f"Write e.g. {metric}_p99 or {metric}_mean"
    return f"{metric} in {text!r} takes no statistic", f"Write {metric} alone"


def evaluate_bounds(bounds: Sequence[Bound], run: RunRecords) -> list[BoundResult]:
    """The result of every bound for a run."""
    results = []
    for bound in bounds:
        value = bound.value(run)
        results.append(BoundResult(bound, value, bound.holds(value), bound.attainment(run)))
    return results


def joint_attainment(bounds: Sequence[Bound], run: RunRecords) -> float | None:
    """Share of requests that meet all time limits at once; a failed request meets none."""
    timed = [bound for bound in bounds if bound.metric in TIMES]
    counted = [record for record in run.records if record.ok or record.failed]
    if not timed or not counted:
        return None
    rows = zip(*(bound.per_request(counted) for bound in timed), strict=True)
    met = [all(bound.holds(float(time)) for bound, time in zip(timed, row, strict=True)) for row in rows]
    return sum(met) / len(met)


def recoveries(
    run: RunRecords, bounds: Sequence[Bound], moments_s: Sequence[float]
) -> tuple[tuple[float, float | None], ...]:
    """Seconds from each moment until recovery: 0 where nothing was missed, None where it never came."""
    timed = [bound for bound in bounds if bound.metric in TIMES]
    records = sorted((r for r in run.records if r.ok or r.failed), key=lambda record: record.start_ns)
    if not timed or not records:
        return ()
    starts = np.array([(record.start_ns - run.begin_ns) / 1e9 for record in records])
    met = np.array([_meets(record, timed) for record in records])
    share = min(_required_share(bound) for bound in timed)
    return tuple((moment, _recovery_s(starts, met, share, moment)) for moment in moments_s)


def _meets(record: Record, bounds: Sequence[Bound]) -> bool:
    return record.ok and all(bound.holds(TIMES[bound.metric](record)) for bound in bounds)


def _required_share(bound: Bound) -> float:
    """Share of requests that must meet the limit: 0.99 for a P99, one half for a mean."""
    return float(bound.statistic) / 100 if bound.statistic.replace(".", "", 1).isdigit() else 0.5


def _recovery_s(
    starts: np.ndarray[tuple[int], np.dtype[np.float64]],
    met: np.ndarray[tuple[int], np.dtype[np.bool_]],
    share: float,
    moment: float,
) -> float | None:
    # Requests in flight at the moment are affected too: if one of them missed, the search starts with them.
    before = (starts >= moment - RECOVERY_WINDOW_S) & (starts < moment)
    first = int(np.searchsorted(starts, moment if met[before].all() else moment - RECOVERY_WINDOW_S))
    for place in range(first, len(starts)):
        window = met[place : int(np.searchsorted(starts, starts[place] + RECOVERY_WINDOW_S))]
        if window.mean() >= share:
            return 0.0 if place == first else max(0.0, float(starts[place]) - moment)
    return None
