"""The steady state of a run, without ramp and tail, and the uncertainty of its metrics.

A closed loop is steady from the first to the last moment at which 95 % of its slots are busy (as in vLLM's Rust
client). An open loop is steady from when the first requests could have ended until the last one is sent. The
confidence interval of a throughput comes from batch means: the window is cut into ten slices, and their spread shows
how much a run of this length varies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loadtest.api.record import Record, RunRecords, tpot_s, ttft_s
from loadtest.metrics.extended_metrics import tokens_per_event

BUSY_RATIO = 0.95
SLICES = 10
T95 = {3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228, 15: 2.131, 20: 2.086, 30: 2.042}
"""Student's t for 95 %, by degrees of freedom."""


@dataclass(frozen=True)
class Estimate:
    """A mean and half the width of its 95 % interval, in the unit of the values."""

    mean: float
    half_width: float
    count: int

    @staticmethod
    def of(values: Sequence[float] | NDArray[np.float64]) -> Estimate:
        """From values, which are treated as independent."""
        data = np.asarray(values, dtype=np.float64)
        if len(data) < 2:
            return Estimate(float(data.mean()) if len(data) else 0.0, math.inf, len(data))
        spread = float(data.std(ddof=1)) / math.sqrt(len(data))
        return Estimate(float(data.mean()), student_t(len(data) - 1) * spread, len(data))


def student_t(freedom: int) -> float:
    """The 95 % quantile for the nearest tabulated degrees of freedom at or below."""
    if freedom > 30:
        return 1.96 + 2.4 / freedom
    return {1: 12.706, 2: 4.303}.get(freedom) or T95[max(known for known in T95 if known <= freedom)]


@dataclass(frozen=True)
class SteadyState:
    """Metrics of the steady window. Rates per second, times in ms."""

    begin_s: float
    end_s: float
    requests: int
    """Requests that started and ended within it."""
    output_rate: Estimate
    request_rate: float
    ttft: Estimate
    tpot: Estimate
    inflight_mean: float

    @property
    def seconds(self) -> float:
        """Length of the window."""
        return self.end_s - self.begin_s


def find_steady_state(run: RunRecords, *, slots: int | None) -> SteadyState | None:
    """Metrics of the steady window; None where the run is too short to have one."""
    good = [record for record in run.records if record.ok and len(record.chunk_ns)]
    if len(good) < 4:
        return None
    window = _closed_window(run.records, slots) if slots else _open_window(good)
    if window is None or window[1] - window[0] < 1e6:
        return None
    begin, end = window
    inside = [r for r in good if r.start_ns >= begin and r.last_chunk_ns <= end]
    edges = np.linspace(begin, end, SLICES + 1)
    rates = tokens_in(good, edges) / (np.diff(edges) / 1e9)
    seconds = (end - begin) / 1e9
    busy_ns = sum(max(0, min(r.end_ns, end) - max(r.start_ns, begin)) for r in run.records)
    return SteadyState(
        begin_s=(begin - run.begin_ns) / 1e9,
        end_s=(end - run.begin_ns) / 1e9,
        requests=len(inside),
        output_rate=Estimate.of(rates),
        request_rate=sum(begin <= r.last_chunk_ns <= end for r in good) / seconds,
        ttft=Estimate.of([ttft_s(r) * 1e3 for r in good if begin <= r.start_ns <= end]),
        tpot=Estimate.of([tpot_s(r) * 1e3 for r in inside if r.output_tokens > 1]),
        inflight_mean=busy_ns / 1e9 / seconds,
    )


def tokens_in(records: Sequence[Record], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Output tokens between consecutive edges (ns); the tokens of an answer are spread evenly over its chunks."""
    out = np.zeros(len(edges) - 1)
    for record in records:
        counts, _ = np.histogram(record.chunk_ns[record.chunk_has_token], bins=edges)
        out += counts * tokens_per_event(record)
    return out


def inflight(records: Sequence[Record]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Times (ns) at which the number of requests in flight changes, and the number from then on."""
    starts = np.array([record.start_ns for record in records], dtype=np.int64)
    ends = np.array([record.end_ns for record in records], dtype=np.int64)
    times = np.concatenate([starts, ends])
    steps = np.concatenate([np.ones(len(starts), dtype=np.int64), -np.ones(len(ends), dtype=np.int64)])
    order = np.lexsort((-steps, times))  # at equal times, starts come before ends
    return times[order], np.cumsum(steps[order])


def _closed_window(records: Sequence[Record], slots: int) -> tuple[int, int] | None:
    times, level = inflight([record for record in records if record.end_ns])
    busy = np.flatnonzero(level >= math.ceil(BUSY_RATIO * min(slots, int(level.max()))))
    if not len(busy):
        return None
    last = min(int(busy[-1]) + 1, len(times) - 1)
    return int(times[busy[0]]), int(times[last])


def _open_window(good: Sequence[Record]) -> tuple[int, int] | None:
    first = min(record.start_ns for record in good)
    settle = float(np.percentile([record.end_ns - record.start_ns for record in good], 90))
    last = max(record.start_ns for record in good)
    return (int(first + settle), last) if last > first + settle else None
