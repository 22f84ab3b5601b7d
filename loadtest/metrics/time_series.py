"""The run over time, for plots: offered load, requests in flight, throughput and latency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loadtest.api.record import Record, RunRecords, tpot_s
from loadtest.metrics.steady_state import inflight, tokens_in

MAX_POINTS = 150
"""More points would not be visible on a page."""
LATENCY_POINTS = 30
"""Percentiles need several requests per step, so their steps are wider."""
STEPS_S = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)

Column = list[float | None]


@dataclass(frozen=True)
class TimeSeries:
    """Columns of equal length; `at_s` is the middle of each step. None where there is no value."""

    step_s: float
    at_s: list[float]
    offered_rate: Column
    started_rate: Column
    finished_rate: Column
    failed_rate: Column
    inflight: Column
    output_rate: Column
    latency_at_s: list[float]
    """The axis of the four columns below, in wider steps."""
    ttft_p50_ms: Column
    ttft_p99_ms: Column
    tpot_p50_ms: Column
    tpot_p99_ms: Column


def time_series_of(run: RunRecords) -> TimeSeries:
    """The columns of a run. A TTFT belongs to the step of the first token, a TPOT to that of the last one."""
    step_s, edges = _steps(run, MAX_POINTS)
    wide_s, wide = _steps(run, LATENCY_POINTS)
    good = [record for record in run.records if record.ok]
    failed = [record for record in run.records if record.failed]

    def rate(times: Sequence[int]) -> Column:
        counts, _ = np.histogram(np.asarray(times, dtype=np.float64), bins=edges)
        return [float(value) / step_s for value in counts]

    firsts = [(r.first_token_ns, (r.first_token_ns - r.start_ns) / 1e6) for r in good if r.first_token_ns]
    tpots = [(r.last_chunk_ns, tpot_s(r) * 1e3) for r in good if r.output_tokens > 1]
    return TimeSeries(
        step_s=step_s,
        at_s=_middles(step_s, edges),
        offered_rate=rate([record.intended_ns for record in run.records]),
        started_rate=rate([record.start_ns for record in run.records]),
        finished_rate=rate([record.end_ns for record in good]),
        failed_rate=rate([record.end_ns for record in failed]),
        inflight=_level(run.records, edges),
        output_rate=[float(value) / step_s for value in tokens_in(good, edges)],
        latency_at_s=_middles(wide_s, wide),
        ttft_p50_ms=_percentile(firsts, wide, 50),
        ttft_p99_ms=_percentile(firsts, wide, 99),
        tpot_p50_ms=_percentile(tpots, wide, 50),
        tpot_p99_ms=_percentile(tpots, wide, 99),
    )


def _steps(run: RunRecords, points: int) -> tuple[float, np.ndarray[tuple[int], np.dtype[np.float64]]]:
    step_s = next((step for step in STEPS_S if run.duration_s / step <= points), STEPS_S[-1])
    count = max(1, int(np.ceil(run.duration_s / step_s)))
    return step_s, run.begin_ns + np.arange(count + 1, dtype=np.float64) * step_s * 1e9


def _middles(step_s: float, edges: np.ndarray[tuple[int], np.dtype[np.float64]]) -> list[float]:
    return [round((index + 0.5) * step_s, 4) for index in range(len(edges) - 1)]


def _level(records: Sequence[Record], edges: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Column:
    """Mean number of requests in flight in each step."""
    if not records:
        return [0.0] * (len(edges) - 1)
    times, level = inflight([record for record in records if record.end_ns])
    area_at = np.concatenate([[0.0], np.cumsum(level[:-1] * np.diff(times))])
    # The integral of a step function is piecewise linear: interpolate it at the edges.
    area = np.interp(edges, times, area_at)
    return [float(value) for value in np.diff(area) / np.diff(edges)]


def _percentile(
    points: Sequence[tuple[int, float]], edges: np.ndarray[tuple[int], np.dtype[np.float64]], percent: float
) -> Column:
    out: Column = [None] * (len(edges) - 1)
    if not points:
        return out
    times, values = np.asarray(points, dtype=np.float64).T
    places = np.digitize(times, edges) - 1
    for place in np.unique(places):
        if 0 <= place < len(out):
            out[int(place)] = float(np.percentile(values[places == place], percent))
    return out
