"""Objectives and assertions: `ttft_p99<3s, tpot_p99<30ms, failed<1%`.

A bound on a percentile is judged with failures as misses: a failed request has no time to first token, so it counts as
one that took forever. So `ttft_p99<3s` says that 99 % of all requests, not of the lucky ones, had a token within 3 s.
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
OPERATORS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


@dataclass(frozen=True)
class Bound:
    """One comparison. `statistic` is mean, max, min or a percentile's number; empty for rates."""

    metric: str
    statistic: str
    sign: str
    limit: float
    text: str

    def value(self, run: RunRecords) -> float:
        """The run's figure, in ms, per second, or as a ratio for `failed`."""
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
        """Whether a figure meets the bound."""
        return bool(OPERATORS[self.sign](value, self.limit))

    def attainment(self, run: RunRecords) -> float | None:
        """Share of requests that by themselves meet the limit; None for rates."""
        if self.metric in RATES:
            return None
        counted = [record for record in run.records if record.ok or record.failed]
        met = [self.holds(float(time)) for time in self.per_request(counted)]
        return sum(met) / len(met) if met else 0.0


@dataclass(frozen=True)
class BoundResult:
    """A bound and what came of it."""

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
        wants = "a statistic, e.g. _p99 or _mean" if metric in TIMES else "no statistic"
        raise UsageError(f"{metric} in {text!r} takes {wants}")
    percentile = (statistic or "").removeprefix("p")
    if percentile != statistic and percentile and float(percentile) > 100:
        raise UsageError(f"{text!r} asks for a percentile above 100", f"Write e.g. {metric}_p99.9")
    return Bound(metric, percentile, sign, float(number) * UNITS[unit or ""], text)


def judge(bounds: Sequence[Bound], run: RunRecords) -> list[BoundResult]:
    """Every bound's verdict on a run."""
    verdicts = []
    for bound in bounds:
        value = bound.value(run)
        verdicts.append(BoundResult(bound, value, bound.holds(value), bound.attainment(run)))
    return verdicts


def joint_attainment(bounds: Sequence[Bound], run: RunRecords) -> float | None:
    """Share of requests that meet all time limits at once; failures meet none."""
    timed = [bound for bound in bounds if bound.metric in TIMES]
    counted = [record for record in run.records if record.ok or record.failed]
    if not timed or not counted:
        return None
    rows = zip(*(bound.per_request(counted) for bound in timed), strict=True)
    met = [all(bound.holds(float(time)) for bound, time in zip(timed, row, strict=True)) for row in rows]
    return sum(met) / len(met)
