"""The report's tables as plain rows: what the terminal, Markdown and HTML have in common."""

from __future__ import annotations

import math

from loadtest.errors import RequestOutcome
from loadtest.load.self_check import BUSY_RATIO, LAG_WARN_MS
from loadtest.metrics.slo import RATES, BoundResult
from loadtest.metrics.steady_state import Estimate
from loadtest.metrics.summary import Summary
from loadtest.metrics.vllm_metrics import Stats
from loadtest.report.side_tables import client_table, failures_table, fleet_table, projection_table, published_table
from loadtest.report.table import Table, counted, number

LEAST = 0.1
"""The last digit shown: a narrower interval says no more."""
MEDIAN = 50.0
"""Has a column of its own."""


def tables(summary: Summary) -> list[Table]:
    """All tables that have something to say, in the order of reading."""
    made = [
        published_table(summary),
        projection_table(summary),
        _objectives(summary),
        _totals(summary),
        _times(summary),
        _hidden(summary),
        _steady(summary),
        _kinds(summary),
        fleet_table(summary),
        failures_table(summary),
        client_table(summary),
    ]
    return [table for table in made if table is not None and table.rows]


def warnings(summary: Summary) -> list[str]:
    """What a reader must know before believing the figures; most important first."""
    vllm_metrics, extended_metrics = summary.vllm_metrics, summary.extended_metrics
    said = []
    if summary.finished.run.interrupted:
        said.append(
            f"interrupted: {counted(summary.interrupted, 'request')} in flight dropped, what had ended is reported"
        )
    if not vllm_metrics.completed:
        said.append("no request succeeded: there are no latency figures")
    if vllm_metrics.failed:
        total = vllm_metrics.completed + vllm_metrics.failed
        said.append(
            f"{vllm_metrics.failed:,} of {counted(total, 'request')} failed; latency figures are of the others only"
        )
    full = [group for group in summary.failures if group.outcome is RequestOutcome.FULL]
    if full:
        wait_s = max(record.retry_after_s for record in full[0].examples)
        asks = f" and asked to come back in {wait_s:g} s" if wait_s else ""
        said.append(
            f"the server refused {counted(full[0].count, 'request')} as full (429){asks}: nothing was sent again"
        )
    if extended_metrics.vllm_completed > vllm_metrics.completed:
        more = extended_metrics.vllm_completed - vllm_metrics.completed
        said.append(f"vLLM's client would have counted {more} of the failures as successes")
    return said + _doubts(summary)


def _doubts(summary: Summary) -> list[str]:
    """Reasons to read the figures with care even where all went well."""
    vllm_metrics, extended_metrics = summary.vllm_metrics, summary.extended_metrics
    said = []
    healthy = all(check.healthy for check in summary.checks)
    if extended_metrics.bursts_ratio > 0.1:
        why = "something batches the stream" if healthy else "this client read late, or something batches the stream"
        said.append(
            f"{extended_metrics.bursts_ratio:.0%} of the tokens came in bursts (several events per read): {why}, and "
            "ITL percentiles mean little; see the read gap"
        )
    cached = summary.cached_ratio
    if cached is not None and cached > 0.01:
        said.append(f"{cached:.0%} of the prompt tokens came from the server's cache: TTFT is flattered")
    if (
        extended_metrics.output_drift is not None
        and extended_metrics.output_drift.off_ratio > 0.01
        and not vllm_metrics.failed
    ):
        said.append(
            f"{extended_metrics.output_drift.off_ratio:.0%} of the answers differ in length from what was asked"
        )
    if extended_metrics.token_sources.get("chunks"):
        said.append("the server sent no usage for some answers: their tokens are counted in chunks")
    if not healthy:
        said.append(
            f"this client or its machine was busy (limits: {BUSY_RATIO:.0%} of a core, {LAG_WARN_MS:g} ms loop lag): "
            "use more --workers or another machine before believing the latencies"
        )
    return said


def _spread_row(name: str, spread: Stats) -> tuple[str, ...]:
    further = (number(value) for percent, value in spread.percentiles.items() if percent != MEDIAN)
    return (name, number(spread.mean), number(spread.median), *further)


def _spread_head(summary: Summary) -> tuple[str, ...]:
    further = (f"P{percent:g}" for percent in summary.vllm_metrics.ttft.percentiles if percent != MEDIAN)
    return ("ms", "mean", "median", *further)


def _totals(summary: Summary) -> Table:
    vllm_metrics = summary.vllm_metrics
    rows = [
        ("requests that succeeded / failed", f"{vllm_metrics.completed:,} / {vllm_metrics.failed:,}"),
        ("duration", f"{number(vllm_metrics.duration_s)} s"),
        ("requests", f"{number(vllm_metrics.request_throughput, 2)} /s"),
        ("output tokens", f"{number(vllm_metrics.output_throughput)} tok/s"),
        ("input and output tokens", f"{number(vllm_metrics.total_token_throughput)} tok/s"),
        ("input / output tokens in all", f"{vllm_metrics.total_input_tokens:,} / {vllm_metrics.total_output_tokens:,}"),
        ("most requests in one second", f"{vllm_metrics.max_concurrent_requests:,}"),
    ]
    if vllm_metrics.tpot.mean:
        rows.insert(5, ("per user (1000 / mean TPOT)", f"{number(1000 / vllm_metrics.tpot.mean)} tok/s"))
    if vllm_metrics.request_goodput is not None:
        rows.insert(3, ("goodput", f"{number(vllm_metrics.request_goodput, 2)} /s"))
    return Table("Throughput", ("whole run, ramp and tail included", ""), tuple(rows))


def _times(summary: Summary) -> Table | None:
    vllm_metrics = summary.vllm_metrics
    if not vllm_metrics.completed:
        return None
    rows = (
        _spread_row("TTFT, time to first token", vllm_metrics.ttft),
        _spread_row("TPOT, time per output token after it", vllm_metrics.tpot),
        _spread_row("ITL, gap between chunks", vllm_metrics.itl),
        _spread_row("E2EL, whole answer", vllm_metrics.e2el),
    )
    return Table("Latency as vLLM's benchmark defines it", _spread_head(summary), rows)


def _hidden(summary: Summary) -> Table | None:
    extended_metrics = summary.extended_metrics
    if not summary.vllm_metrics.completed:
        return None
    rows = [
        _spread_row("first token with text", extended_metrics.first_token),
        _spread_row("gap per token", extended_metrics.token_gap),
    ]
    if extended_metrics.reasoning_ratio:
        rows.insert(1, _spread_row("first visible content, after reasoning", extended_metrics.first_visible))
    if extended_metrics.bursts_ratio > 0.01:
        rows.append(_spread_row("gap between reads", extended_metrics.read_gap))
    if summary.about.request_rate != math.inf or extended_metrics.queue.mean > 0.5:
        rows.append(_spread_row("first token, from the intended send time", extended_metrics.first_token_intended))
        rows.append(_spread_row("whole answer, from the intended send time", extended_metrics.e2e_intended))
        rows.append(_spread_row("waited in this client", extended_metrics.queue))
    if extended_metrics.connect.mean:
        rows.append(_spread_row("opening a connection, where one was opened", extended_metrics.connect))
    notes = [f"{extended_metrics.tokens_per_chunk:.2f} tokens per chunk"]
    for what, drift in (("prompt", extended_metrics.prompt_drift), ("answer", extended_metrics.output_drift)):
        if drift is not None:
            notes.append(
                f"{what} tokens by the server's count: mean {number(drift.mean)}, {drift.low:,} to {drift.high:,}; "
                f"planned {number(drift.planned_mean)}"
            )
    if extended_metrics.cached_ratio is not None:
        notes.append(f"{extended_metrics.cached_ratio:.1%} of the prompt tokens came from the server's cache")
    return Table("What those figures hide", _spread_head(summary), tuple(rows), tuple(notes))


def _steady(summary: Summary) -> Table | None:
    steady = summary.steady
    if steady is None:
        return None

    def interval(found: Estimate, unit: str) -> str:
        if not found.count:
            return "-"
        if math.isinf(found.half_width):
            return f"{number(found.mean)} {unit}"
        half = number(found.half_width) if found.half_width >= LEAST else f"<{LEAST}"
        return f"{number(found.mean)} ± {half} {unit}"

    rows = (
        ("window", f"{steady.begin_s:.1f} s to {number(steady.end_s)} s"),
        ("output tokens", interval(steady.output_rate, "tok/s")),
        ("requests", f"{number(steady.request_rate, 2)} /s"),
        ("in flight", number(steady.inflight_mean)),
        ("TTFT mean", interval(steady.ttft, "ms")),
        ("TPOT mean", interval(steady.tpot, "ms")),
    )
    return Table("Steady state", ("without ramp and tail; ± is a 95 % interval", ""), rows)


def _objectives(summary: Summary) -> Table | None:
    rows = tuple(_verdict_row(verdict) for verdict in summary.verdicts)
    joint = summary.joint
    notes = (
        (f"{joint:.1%} of the requests meet all time limits at once; failures meet none",) if joint is not None else ()
    )
    return Table("Objectives, failures counted as misses", ("", "figure", "met", "requests within"), rows, notes)


def _verdict_row(verdict: BoundResult) -> tuple[str, ...]:
    unit = "" if verdict.bound.metric in RATES or math.isinf(verdict.value) else " ms"
    value = f"{verdict.value:.2%}" if verdict.bound.metric == "failed" else f"{number(verdict.value)}{unit}"
    within = f"{verdict.attainment:.1%}" if verdict.attainment is not None else ""
    return (verdict.bound.text, value, "yes" if verdict.met else "NO", within)


def _kinds(summary: Summary) -> Table | None:
    rows = [
        (
            name,
            f"{vllm_metrics.completed:,} / {vllm_metrics.failed:,}",
            number(vllm_metrics.output_throughput),
            number(vllm_metrics.ttft.mean),
            number(vllm_metrics.ttft.percentiles[99.0]),
            number(vllm_metrics.tpot.mean),
            number(vllm_metrics.tpot.percentiles[99.0]),
            number(vllm_metrics.e2el.mean),
        )
        for name, vllm_metrics in summary.kinds.items()
    ]
    head = ("class", "ok / failed", "tok/s", "TTFT", "TTFT P99", "TPOT", "TPOT P99", "E2EL (ms)")
    return Table("By class", head, tuple(rows))
