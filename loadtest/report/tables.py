"""The report's tables as plain rows: what the terminal, Markdown and HTML have in common."""

from __future__ import annotations

import math

from loadtest.load.self_check import BUSY_RATIO, LAG_WARN_MS
from loadtest.metrics.slo import RATES, Verdict
from loadtest.metrics.steady_state import Estimate
from loadtest.metrics.summary import Figures
from loadtest.metrics.vllm_metrics import Spread
from loadtest.outcome import Outcome
from loadtest.report.side_tables import client_table, failures_table, fleet_table, projection_table, published_table
from loadtest.report.table import Table, counted, number

LEAST = 0.1
"""The last digit shown: a narrower interval says no more."""
MEDIAN = 50.0
"""Has a column of its own."""


def tables(figures: Figures) -> list[Table]:
    """All tables that have something to say, in the order of reading."""
    made = [
        published_table(figures),
        projection_table(figures),
        _objectives(figures),
        _totals(figures),
        _times(figures),
        _hidden(figures),
        _steady(figures),
        _kinds(figures),
        fleet_table(figures),
        failures_table(figures),
        client_table(figures),
    ]
    return [table for table in made if table is not None and table.rows]


def warnings(figures: Figures) -> list[str]:
    """What a reader must know before believing the figures; most important first."""
    parity, strict = figures.parity, figures.strict
    said = []
    if figures.finished.run.interrupted:
        said.append(
            f"interrupted: {counted(figures.interrupted, 'request')} in flight dropped, what had ended is reported"
        )
    if not parity.completed:
        said.append("no request succeeded: there are no latency figures")
    if parity.failed:
        total = parity.completed + parity.failed
        said.append(f"{parity.failed:,} of {counted(total, 'request')} failed; latency figures are of the others only")
    full = [group for group in figures.failures if group.outcome is Outcome.FULL]
    if full:
        wait_s = max(record.retry_after_s for record in full[0].examples)
        asks = f" and asked to come back in {wait_s:g} s" if wait_s else ""
        said.append(
            f"the server refused {counted(full[0].count, 'request')} as full (429){asks}: nothing was sent again"
        )
    if strict.vllm_completed > parity.completed:
        more = strict.vllm_completed - parity.completed
        said.append(f"vLLM's client would have counted {more} of the failures as successes")
    return said + _doubts(figures)


def _doubts(figures: Figures) -> list[str]:
    """Reasons to read the figures with care even where all went well."""
    parity, strict = figures.parity, figures.strict
    said = []
    healthy = all(check.healthy for check in figures.checks)
    if strict.bursts_ratio > 0.1:
        why = "something batches the stream" if healthy else "this client read late, or something batches the stream"
        said.append(
            f"{strict.bursts_ratio:.0%} of the tokens came in bursts (several events per read): {why}, and ITL "
            "percentiles mean little; see the read gap"
        )
    cached = figures.cached_ratio
    if cached is not None and cached > 0.01:
        said.append(f"{cached:.0%} of the prompt tokens came from the server's cache: TTFT is flattered")
    if strict.output_drift is not None and strict.output_drift.off_ratio > 0.01 and not parity.failed:
        said.append(f"{strict.output_drift.off_ratio:.0%} of the answers differ in length from what was asked")
    if strict.token_sources.get("chunks"):
        said.append("the server sent no usage for some answers: their tokens are counted in chunks")
    if not healthy:
        said.append(
            f"this client or its machine was busy (limits: {BUSY_RATIO:.0%} of a core, {LAG_WARN_MS:g} ms loop lag): "
            "use more --workers or another machine before believing the latencies"
        )
    return said


def _spread_row(name: str, spread: Spread) -> tuple[str, ...]:
    further = (number(value) for percent, value in spread.percentiles.items() if percent != MEDIAN)
    return (name, number(spread.mean), number(spread.median), *further)


def _spread_head(figures: Figures) -> tuple[str, ...]:
    further = (f"P{percent:g}" for percent in figures.parity.ttft.percentiles if percent != MEDIAN)
    return ("ms", "mean", "median", *further)


def _totals(figures: Figures) -> Table:
    parity = figures.parity
    rows = [
        ("requests that succeeded / failed", f"{parity.completed:,} / {parity.failed:,}"),
        ("duration", f"{number(parity.duration_s)} s"),
        ("requests", f"{number(parity.request_throughput, 2)} /s"),
        ("output tokens", f"{number(parity.output_throughput)} tok/s"),
        ("input and output tokens", f"{number(parity.total_token_throughput)} tok/s"),
        ("input / output tokens in all", f"{parity.total_input_tokens:,} / {parity.total_output_tokens:,}"),
        ("most requests in one second", f"{parity.max_concurrent_requests:,}"),
    ]
    if parity.tpot.mean:
        rows.insert(5, ("per user (1000 / mean TPOT)", f"{number(1000 / parity.tpot.mean)} tok/s"))
    if parity.request_goodput is not None:
        rows.insert(3, ("goodput", f"{number(parity.request_goodput, 2)} /s"))
    return Table("Throughput", ("whole run, ramp and tail included", ""), tuple(rows))


def _times(figures: Figures) -> Table | None:
    parity = figures.parity
    if not parity.completed:
        return None
    rows = (
        _spread_row("TTFT, time to first token", parity.ttft),
        _spread_row("TPOT, time per output token after it", parity.tpot),
        _spread_row("ITL, gap between chunks", parity.itl),
        _spread_row("E2EL, whole answer", parity.e2el),
    )
    return Table("Latency as vLLM's benchmark defines it", _spread_head(figures), rows)


def _hidden(figures: Figures) -> Table | None:
    strict = figures.strict
    if not figures.parity.completed:
        return None
    rows = [
        _spread_row("first token with text", strict.first_token),
        _spread_row("gap per token", strict.token_gap),
    ]
    if strict.reasoning_ratio:
        rows.insert(1, _spread_row("first visible content, after reasoning", strict.first_visible))
    if strict.bursts_ratio > 0.01:
        rows.append(_spread_row("gap between reads", strict.read_gap))
    if figures.about.request_rate != math.inf or strict.queue.mean > 0.5:
        rows.append(_spread_row("first token, from the intended send time", strict.first_token_intended))
        rows.append(_spread_row("whole answer, from the intended send time", strict.e2e_intended))
        rows.append(_spread_row("waited in this client", strict.queue))
    if strict.connect.mean:
        rows.append(_spread_row("opening a connection, where one was opened", strict.connect))
    notes = [f"{strict.tokens_per_chunk:.2f} tokens per chunk"]
    for what, drift in (("prompt", strict.prompt_drift), ("answer", strict.output_drift)):
        if drift is not None:
            notes.append(
                f"{what} tokens by the server's count: mean {number(drift.mean)}, {drift.low:,} to {drift.high:,}; "
                f"planned {number(drift.planned_mean)}"
            )
    if strict.cached_ratio is not None:
        notes.append(f"{strict.cached_ratio:.1%} of the prompt tokens came from the server's cache")
    return Table("What those figures hide", _spread_head(figures), tuple(rows), tuple(notes))


def _steady(figures: Figures) -> Table | None:
    steady = figures.steady
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


def _objectives(figures: Figures) -> Table | None:
    rows = tuple(_verdict_row(verdict) for verdict in figures.verdicts)
    joint = figures.joint
    notes = (
        (f"{joint:.1%} of the requests meet all time limits at once; failures meet none",) if joint is not None else ()
    )
    return Table("Objectives, failures counted as misses", ("", "figure", "met", "requests within"), rows, notes)


def _verdict_row(verdict: Verdict) -> tuple[str, ...]:
    unit = "" if verdict.bound.metric in RATES or math.isinf(verdict.value) else " ms"
    value = f"{verdict.value:.2%}" if verdict.bound.metric == "failed" else f"{number(verdict.value)}{unit}"
    within = f"{verdict.attainment:.1%}" if verdict.attainment is not None else ""
    return (verdict.bound.text, value, "yes" if verdict.met else "NO", within)


def _kinds(figures: Figures) -> Table | None:
    rows = [
        (
            name,
            f"{parity.completed:,} / {parity.failed:,}",
            number(parity.output_throughput),
            number(parity.ttft.mean),
            number(parity.ttft.percentiles[99.0]),
            number(parity.tpot.mean),
            number(parity.tpot.percentiles[99.0]),
            number(parity.e2el.mean),
        )
        for name, parity in figures.kinds.items()
    ]
    head = ("class", "ok / failed", "tok/s", "TTFT", "TTFT P99", "TPOT", "TPOT P99", "E2EL (ms)")
    return Table("By class", head, tuple(rows))
