"""The data of the page's plots; `page.js` draws them. Every axis has a name and a unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from loadtest.api.record import itl_s, latency_s, tpot_s, ttft_s
from loadtest.metrics.extended_metrics import token_gaps_s
from loadtest.metrics.summary import Summary
from loadtest.metrics.time_series import Column

POINTS = 160
"""Points of a distribution curve."""
MAX_LANES = 200
"""Rows of the swim-lane plot: requests in flight at once that it can show."""
MAX_BARS = 4000
"""Requests in the swim-lane plot: a page with more gets slow."""
TARGET_COLOUR = 6
"""Grey, which no replica state has."""


@dataclass(frozen=True)
class ChartLine:
    """One curve."""

    name: str
    y: Column
    colour: int
    """Index into the palette of `page.css`."""
    x: list[float] | None = None
    """The line's own x values, where they differ from the chart's."""
    fill: bool = False
    stack: bool = False
    step: bool = False
    dash: bool = False


@dataclass(frozen=True)
class Chart:
    """One plot."""

    title: str
    x: list[float]
    x_label: str
    y_label: str
    lines: tuple[ChartLine, ...]
    hint: str = ""
    shade: tuple[float, float] | None = None
    """The steady state."""
    marks: tuple[dict[str, object], ...] = field(default_factory=tuple)
    log_x: bool = False
    percent: bool = False
    timed: bool = True


def time_charts(summary: Summary) -> list[Chart]:
    """The plots over time, all on one axis."""
    series, steady = summary.time_series, summary.steady_state
    shade = (steady.begin_s, steady.end_s) if steady else None
    marks = tuple(
        {"at": event.at_s, "what": event.what, "kind": event.kind}
        for event in (summary.fleet.events if summary.fleet else ())
    )

    def chart(title: str, y_label: str, x: list[float], *lines: ChartLine, hint: str = "") -> Chart:
        return Chart(title, x, "seconds since the start", y_label, lines, hint, shade, marks)

    charts = [
        chart("Output", "tokens per second", series.at_s, ChartLine("output tokens", series.output_rate, 0, fill=True),
            hint="mean of each step"),
        chart(
            "In flight", "requests", series.at_s, ChartLine("in flight", series.inflight, 1, fill=True),
            hint="mean of each step",
        ),
        chart(
            "Time to first token", "milliseconds", series.latency_at_s,
            ChartLine("P99", series.ttft_p99_ms, 3), ChartLine("median", series.ttft_p50_ms, 0),
            hint="of the requests whose first token arrived in each step",
        ),
        chart(
            "Time per output token", "milliseconds", series.latency_at_s,
            ChartLine("P99", series.tpot_p99_ms, 3), ChartLine("median", series.tpot_p50_ms, 0),
            hint="of the requests that ended in each step",
        ),
    ]  # fmt: skip
    if summary.run_info.request_rate != float("inf") or any(rate for rate in series.failed_rate):
        lines = [ChartLine("succeeded", series.finished_rate, 0), ChartLine("failed", series.failed_rate, 3, fill=True)]
        if summary.run_info.request_rate != float("inf"):
            lines.insert(0, ChartLine("offered", series.offered_rate, 4, step=True))
        charts.append(chart("Rate", "requests per second", series.at_s, *lines, hint="by the end of the request"))
    return [*charts, *_fleet_charts(summary, shade, marks)]


def _fleet_charts(
    summary: Summary, shade: tuple[float, float] | None, marks: tuple[dict[str, object], ...]
) -> list[Chart]:
    fleet = summary.fleet
    if fleet is None or not fleet.at_s:
        return []
    x_label = "seconds since the start"
    states = [
        ChartLine(state.lower(), counts, number % TARGET_COLOUR, stack=True, step=True)
        for number, (state, counts) in enumerate(fleet.replicas.items())
    ]
    target = (
        [ChartLine("target", fleet.target_replicas, TARGET_COLOUR, step=True, dash=True)]
        if any(v is not None for v in fleet.target_replicas)
        else []
    )
    found = []
    if states:
        found.append(Chart("Replicas", fleet.at_s, x_label, "count", (*states, *target), "by state", shade, marks))
    if any(value is not None for value in fleet.queued):
        found.append(
            Chart(
                "Queue",
                fleet.at_s,
                x_label,
                "requests",
                (ChartLine("waiting in the fleet", fleet.queued, 4, fill=True),),
                "",
                shade,
                marks,
            )
        )
    if any(value is not None for value in fleet.kv_usage):
        line = ChartLine("KV blocks in use", fleet.kv_usage, 2, fill=True)
        found.append(Chart("KV cache", fleet.at_s, x_label, "share in use", (line,), "", shade, marks, percent=True))
    if any(value is not None for value in fleet.acceptance):
        line = ChartLine("tokens per step", fleet.acceptance, 5)
        found.append(Chart("MTP acceptance", fleet.at_s, x_label, "tokens per step", (line,), "", shade, marks))
    return found


def distribution_charts(summary: Summary) -> list[Chart]:
    """Cumulative distributions of the latencies."""
    good = [record for record in summary.result.run.records if record.ok]
    if not good:
        return []
    gaps = np.concatenate([itl_s(record) for record in good])
    token_gaps = np.concatenate([token_gaps_s(record) for record in good])
    return [
        _curve("Time to first token", [("TTFT", np.array([ttft_s(r) for r in good]), 0)]),
        _curve("Time per output token", [("TPOT", np.array([tpot_s(r) for r in good if r.output_tokens > 1]), 0)]),
        _curve("Gaps", [("between chunks (ITL)", gaps, 3), ("per token", token_gaps, 0)]),
        _curve("Whole answer", [("E2EL", np.array([latency_s(r) for r in good]), 0)]),
    ]


def _curve(title: str, columns: Sequence[tuple[str, NDArray[np.float64], int]]) -> Chart:
    lines = []
    spread = 1.0
    for name, seconds, colour in columns:
        if not len(seconds):
            continue
        shares = np.unique(np.concatenate([np.linspace(0, 1, POINTS), [0.95, 0.99, 0.995, 0.999]]))
        values = np.quantile(seconds, shares) * 1e3
        spread = max(spread, float(values[-1] / max(np.quantile(values, 0.05), 1e-3)))
        lines.append(ChartLine(name, [float(s) for s in shares], colour, x=[float(v) for v in values]))
    return Chart(
        title, [], "milliseconds", "share of " + ("gaps" if title == "Gaps" else "requests"), tuple(lines),
        log_x=spread > 30, percent=True, timed=False,
    )  # fmt: skip


def swim_lanes(summary: Summary) -> dict[str, object]:
    """Every request as a bar in the lowest free lane: start, first token, end and outcome."""
    run = summary.result.run
    free_at_ns: list[int] = []
    rows = []
    for record in sorted(run.records, key=lambda record: record.start_ns)[:MAX_BARS]:
        lane = next((lane for lane, free in enumerate(free_at_ns) if free <= record.start_ns), len(free_at_ns))
        end_ns = max(record.end_ns, record.start_ns)
        if lane < MAX_LANES:
            if lane == len(free_at_ns):
                free_at_ns.append(0)
            free_at_ns[lane] = end_ns
            first = round((record.first_token_ns - run.begin_ns) / 1e9, 4) if record.first_token_ns else None
            state = 1 if record.failed else 0 if record.ok else 2
            start = round((record.start_ns - run.begin_ns) / 1e9, 4)
            end = round((end_ns - run.begin_ns) / 1e9, 4)
            rows.append([start, first, end, state, record.index, record.outcome.value, record.output_tokens, lane])
    return {"rows": rows, "all": len(run.records), "end": run.duration_s, "lanes": len(free_at_ns)}
