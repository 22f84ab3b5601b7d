"""The tables of a report as rows of text: the terminal, Markdown and the HTML page show the same ones."""

from __future__ import annotations

import math

from loadtest.fleet.view import FleetView
from loadtest.metrics.projection import IntervalEstimate
from loadtest.metrics.reference_results import REFERENCE_MACHINES
from loadtest.metrics.slo import RATES, BoundResult
from loadtest.metrics.steady_state import Estimate
from loadtest.metrics.summary import Summary
from loadtest.metrics.vllm_metrics import Stats
from loadtest.report.agents import agent_tables
from loadtest.report.failures import failures_table
from loadtest.report.table import Table, number

MIN_SHOWN = 0.1
"""The last digit shown: a narrower interval is shown as below it."""
MEDIAN = 50.0
"""Has a column of its own."""
MAX_EVENTS = 40
MIN_CHUNKS = 1000
"""With fewer chunks, the CPU of a chunk would mostly be that of starting and ending the run."""
MACHINE_COLUMNS = tuple(f"{machine.name}{suffix}" for machine in REFERENCE_MACHINES for suffix in ("", " ratio"))


def tables(summary: Summary) -> list[Table]:
    """All tables with content, in reading order."""
    made = [
        _published_table(summary),
        _projection_table(summary),
        _objectives_table(summary),
        _throughput_table(summary),
        _vllm_latency_table(summary),
        _extended_latency_table(summary),
        *agent_tables(summary.agents),
        _steady_state_table(summary),
        _class_table(summary),
        _fleet_table(summary),
        failures_table(summary),
        _client_table(summary),
    ]
    return [table for table in made if table is not None and table.rows]


def _published_table(summary: Summary) -> Table | None:
    rows, differences = summary.published()
    if not rows:
        return None
    body = []
    for row in rows:
        cells = [row.name, f"{number(row.ours)} {row.unit}"]
        for value, ratio in zip(row.published, row.ratios, strict=True):
            cells += [number(value), f"{ratio:.2f}"]
        body.append(tuple(cells))
    notes = tuple(f"not comparable: {reason}" for reason in differences) or ("comparable with the published runs",)
    return Table(
        "Published results (ratio: measured / published)", ("", "measured", *MACHINE_COLUMNS), tuple(body), notes
    )


def _projection_table(summary: Summary) -> Table | None:
    projection = summary.projection
    if projection is None:
        return None
    rows = (
        ("output tok/s", "tok/s", projection.output_rate, [machine.output_rate for machine in REFERENCE_MACHINES]),
        ("total tok/s", "tok/s", projection.total_rate, [machine.total_rate for machine in REFERENCE_MACHINES]),
        ("TTFT mean", "ms", projection.ttft_mean, [machine.ttft_mean for machine in REFERENCE_MACHINES]),
        ("TPOT mean", "ms", projection.tpot_mean, [machine.tpot_mean for machine in REFERENCE_MACHINES]),
    )
    method = (
        "an estimate, not a measurement: this run's ramp and tail as measured, and its steady state for the rest of "
        f"{projection.prompts} prompts. Such a run would take about {_duration(projection.seconds.mean)}"
    )
    notes = (
        method,
        "the reasons above for not being comparable apply here too, except the number of prompts",
    )
    return Table(
        f"Estimate for the full run of {projection.prompts} prompts",
        ("", "estimate", "95 % interval", *MACHINE_COLUMNS),
        tuple(_estimate_row(*row) for row in rows),
        notes,
    )


def _estimate_row(name: str, unit: str, estimate: IntervalEstimate, published: list[float]) -> tuple[str, ...]:
    cells = [name, f"{number(estimate.mean)} {unit}", f"{number(estimate.low)} to {number(estimate.high)}"]
    for value in published:
        cells += [number(value), f"{estimate.mean / value:.2f}"]
    return tuple(cells)


def _duration(seconds: float) -> str:
    return f"{number(seconds / 60)} minutes" if seconds >= 90 else f"{number(seconds)} s"


def _objectives_table(summary: Summary) -> Table:
    joint = summary.joint_attainment
    notes = (
        [f"{joint:.1%} of the requests meet all time limits at once; failed requests meet none"]
        if joint is not None
        else []
    )
    return Table(
        "Objectives, failures counted as misses",
        ("", "value", "met", "requests within"),
        tuple(_objective_row(result) for result in summary.bound_results),
        tuple(notes),
    )


def _objective_row(result: BoundResult) -> tuple[str, ...]:
    unit = "" if result.bound.metric in RATES or math.isinf(result.value) else " ms"
    value = f"{result.value:.2%}" if result.bound.metric == "failed" else f"{number(result.value)}{unit}"
    within = f"{result.attainment:.1%}" if result.attainment is not None else ""
    return (result.bound.text, value, "yes" if result.met else "NO", within)


def _stats_row(name: str, stats: Stats) -> tuple[str, ...]:
    others = (number(value) for percent, value in stats.percentiles.items() if percent != MEDIAN)
    return (name, number(stats.mean), number(stats.median), *others)


def _stats_head(summary: Summary) -> tuple[str, ...]:
    others = (f"P{percent:g}" for percent in summary.vllm_metrics.ttft.percentiles if percent != MEDIAN)
    return ("ms", "mean", "median", *others)


def _throughput_table(summary: Summary) -> Table:
    metrics = summary.vllm_metrics
    rows = [
        ("requests that succeeded / failed", f"{metrics.completed:,} / {metrics.failed:,}"),
        ("duration", f"{number(metrics.duration_s)} s"),
        ("requests", f"{number(metrics.request_throughput, 2)} /s"),
        ("output tokens", f"{number(metrics.output_throughput)} tok/s"),
        ("input and output tokens", f"{number(metrics.total_token_throughput)} tok/s"),
        ("input / output tokens, total", f"{metrics.total_input_tokens:,} / {metrics.total_output_tokens:,}"),
        ("most requests in one second", f"{metrics.max_concurrent_requests:,}"),
    ]
    if metrics.tpot.mean:
        rows.insert(5, ("per user (1000 / mean TPOT)", f"{number(1000 / metrics.tpot.mean)} tok/s"))
    if metrics.request_goodput is not None:
        rows.insert(3, ("goodput", f"{number(metrics.request_goodput, 2)} /s"))
    return Table("Throughput", ("whole run, ramp and tail included", ""), tuple(rows))


def _vllm_latency_table(summary: Summary) -> Table | None:
    metrics = summary.vllm_metrics
    if not metrics.completed:
        return None
    rows = (
        _stats_row("TTFT, time to first token", metrics.ttft),
        _stats_row("TPOT, time per output token after it", metrics.tpot),
        _stats_row("ITL, gap between chunks", metrics.itl),
        _stats_row("E2EL, whole answer", metrics.e2el),
    )
    return Table("Latency as vLLM's benchmark defines it", _stats_head(summary), rows)


def _extended_latency_table(summary: Summary) -> Table | None:
    extended = summary.extended_metrics
    if not summary.vllm_metrics.completed:
        return None
    rows = [
        _stats_row("first token with text", extended.first_token),
        _stats_row("gap per token", extended.token_gap),
    ]
    if extended.reasoning_ratio:
        rows.insert(1, _stats_row("first visible content, after reasoning", extended.first_visible))
    if extended.bursts_ratio > 0.01:
        rows.append(_stats_row("gap between reads", extended.read_gap))
    if summary.run_info.request_rate != math.inf or extended.queue.mean > 0.5:
        rows.append(_stats_row("first token, from the scheduled send time", extended.first_token_intended))
        rows.append(_stats_row("whole answer, from the scheduled send time", extended.e2e_intended))
        rows.append(_stats_row("wait in this client", extended.queue))
    if extended.connect.mean:
        rows.append(_stats_row("opening a connection, where needed", extended.connect))
    notes = [f"{extended.tokens_per_chunk:.2f} tokens per chunk"]
    for what, drift in (("prompt", extended.prompt_drift), ("answer", extended.output_drift)):
        if drift is not None:
            notes.append(
                f"{what} tokens as counted by the server: mean {number(drift.mean)}, {drift.low:,} to {drift.high:,}; "
                f"planned {number(drift.planned_mean)}"
            )
    if extended.cached_ratio is not None:
        notes.append(f"{extended.cached_ratio:.1%} of the prompt tokens came from the server's cache")
    return Table("Latency beyond those definitions", _stats_head(summary), tuple(rows), tuple(notes))


def _steady_state_table(summary: Summary) -> Table | None:
    steady = summary.steady_state
    if steady is None:
        return None

    def interval(estimate: Estimate, unit: str) -> str:
        if not estimate.count:
            return "-"
        if math.isinf(estimate.half_width):
            return f"{number(estimate.mean)} {unit}"
        half = number(estimate.half_width) if estimate.half_width >= MIN_SHOWN else f"<{MIN_SHOWN}"
        return f"{number(estimate.mean)} ± {half} {unit}"

    rows = (
        ("window", f"{steady.begin_s:.1f} s to {number(steady.end_s)} s"),
        ("output tokens", interval(steady.output_rate, "tok/s")),
        ("requests", f"{number(steady.request_rate, 2)} /s"),
        ("in flight", number(steady.inflight_mean)),
        ("TTFT mean", interval(steady.ttft, "ms")),
        ("TPOT mean", interval(steady.tpot, "ms")),
    )
    return Table("Steady state", ("without ramp and tail; ± is a 95 % interval", ""), rows)


def _class_table(summary: Summary) -> Table:
    rows = [
        (
            name,
            f"{metrics.completed:,} / {metrics.failed:,}",
            number(metrics.output_throughput),
            number(metrics.ttft.mean),
            number(metrics.ttft.percentiles[99.0]),
            number(metrics.tpot.mean),
            number(metrics.tpot.percentiles[99.0]),
            number(metrics.e2el.mean),
        )
        for name, metrics in summary.per_class.items()
    ]
    head = ("class", "ok / failed", "tok/s", "TTFT", "TTFT P99", "TPOT", "TPOT P99", "E2EL (ms)")
    return Table("By class", head, tuple(rows))


def _fleet_table(summary: Summary) -> Table | None:
    fleet = summary.fleet
    if fleet is None:
        return None
    rows = _ttft_rows(fleet)
    if fleet.spec_decode is not None and fleet.spec_decode.drafts:
        length = 1 + fleet.spec_decode.accepted_tokens / fleet.spec_decode.drafts
        rows.append(("MTP: tokens per engine step", f"{length:.2f}"))
    if fleet.prefix_hit_ratio is not None:
        rows.append(("prompt tokens found in the engines' caches", f"{fleet.prefix_hit_ratio:.1%}"))
    for state, counts in fleet.replicas.items():
        known = [count for count in counts if count is not None]
        if known:
            rows.append((f"replicas {state}", f"{min(known):g} to {max(known):g}"))
    for at_s, recovery_s in fleet.recoveries:
        outcome = "not met again" if recovery_s is None else f"met again after {recovery_s:.1f} s"
        rows.append((f"objectives after {at_s:.0f} s", "never missed" if recovery_s == 0 else outcome))
    notes = [f"{event.at_s:.1f} s: {event.what}" for event in fleet.events[:MAX_EVENTS]]
    if fleet.problem:
        notes.insert(0, fleet.problem)
    return Table("Fleet", ("", ""), tuple(rows or [("samples", f"{len(fleet.at_s)}")]), tuple(notes))


def _ttft_rows(fleet: FleetView) -> list[tuple[str, str]]:
    breakdown = fleet.ttft_breakdown
    if breakdown is None:
        return []
    rows = [
        ("TTFT: seen by the client", f"{number(breakdown.seen_by_client)} ms"),
        ("TTFT: in the engine", f"{number(breakdown.in_engine)} ms"),
        ("TTFT: everything else", f"{number(breakdown.outside_engine)} ms"),
    ]
    if breakdown.in_fleet is not None:
        between_ms = max(0.0, breakdown.in_fleet - breakdown.in_engine)
        rows.append(("  of that, between ingress and engine", f"{number(between_ms)} ms"))
    return rows


def _client_table(summary: Summary) -> Table:
    rows = [
        (
            f"worker {position}" if len(summary.checks) > 1 else "this client",
            f"{check.cpu_ratio:.0%} of a core",
            f"{number(check.loop_lag_p99_ms)} ms",
            f"{number(check.loop_lag_max_ms)} ms",
            "yes" if check.healthy else "NO",
        )
        for position, check in enumerate(summary.checks, start=1)
    ]
    chunks = sum(len(record.chunk_ns) for record in summary.result.run.records)
    wall_s = max(check.wall_s for check in summary.checks)
    notes = [summary.run_info.worker_count] if summary.run_info.worker_count else []
    if chunks >= MIN_CHUNKS and wall_s:
        cpu_us = sum(check.cpu_s for check in summary.checks) / chunks * 1e6
        notes.append(
            f"{number(chunks / wall_s, 0)} chunks/s, {number(cpu_us)} us of CPU per chunk, start and end included"
        )
    head = ("", "CPU", "loop lag P99", "loop lag max", "within limits")
    return Table("Is the client the bottleneck?", head, tuple(rows), tuple(notes))
