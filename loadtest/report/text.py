"""Reports as text: a run for the terminal and for Markdown, and the steps and result of a search."""

from __future__ import annotations

from loadtest.errors import RequestOutcome
from loadtest.load.self_check import BUSY_RATIO, LAG_WARN_MS
from loadtest.metrics.load_search import SearchResult, SearchStep
from loadtest.metrics.summary import Summary
from loadtest.report.table import counted, markdown_table, number, text_table
from loadtest.report.tables import tables

BAR_WIDTH = 32
MANY_BURSTS, SOME_CACHED, SOME_DIFFER = 0.1, 0.01, 0.01
"""Shares above which a warning is shown."""


def title(summary: Summary) -> str:
    """One line: which model at which server, under which load."""
    info = summary.run_info
    load = f"{info.max_concurrency} at a time" if info.max_concurrency else f"{info.request_rate:g} requests/s"
    name = f"{info.label}: {info.model}" if info.label else info.model
    return f"{name} at {info.url}, {counted(len(summary.result.run.records), 'request')}, {load}"


def as_text(summary: Summary) -> str:
    """For the terminal."""
    parts = [title(summary), *(f"! {warning}" for warning in warnings(summary)), ""]
    parts += [text_table(table) for table in tables(summary)]
    return "\n".join(parts)


def as_markdown(summary: Summary) -> str:
    """For a pull request or a wiki."""
    parts = [f"# Load test: {title(summary)}", ""]
    parts += [f"> **Note:** {warning}\n" for warning in warnings(summary)]
    parts += [markdown_table(table) for table in tables(summary)]
    return "\n".join(parts)


def warnings(summary: Summary) -> list[str]:
    """What a reader must know before using the figures, most important first."""
    vllm_metrics = summary.vllm_metrics
    out = []
    if summary.result.run.interrupted:
        out.append(
            f"interrupted: {counted(summary.interrupted, 'request')} in flight dropped; completed requests are reported"
        )
    if not vllm_metrics.completed:
        out.append("no request succeeded: there are no latency figures")
    if vllm_metrics.failed:
        total = vllm_metrics.completed + vllm_metrics.failed
        out.append(f"{vllm_metrics.failed:,} of {counted(total, 'request')} failed; latency figures exclude them")
    full = [group for group in summary.failures if group.outcome is RequestOutcome.FULL]
    if full:
        wait_s = max(record.retry_after_s for record in full[0].examples)
        retry = f", with Retry-After {wait_s:g} s" if wait_s else ""
        out.append(
            f"the server rejected {counted(full[0].count, 'request')} as full (429){retry}: no request is retried"
        )
    more = summary.extended_metrics.vllm_completed - vllm_metrics.completed
    if more > 0:
        out.append(f"vLLM's client would have counted {more} of the failures as successes")
    return out + _quality_warnings(summary)


def _quality_warnings(summary: Summary) -> list[str]:
    """Reasons to doubt the figures of a run without failures."""
    extended_metrics, cached_ratio = summary.extended_metrics, summary.cached_ratio
    out = []
    healthy = all(check.healthy for check in summary.checks)
    if extended_metrics.bursts_ratio > MANY_BURSTS:
        cause = "something batches the stream" if healthy else "this client read late, or something batches the stream"
        out.append(
            f"{extended_metrics.bursts_ratio:.0%} of the tokens arrived in bursts (several events per read): {cause}. "
            "ITL percentiles mean little; see the gap between reads"
        )
    if cached_ratio is not None and cached_ratio > SOME_CACHED and summary.agents is None:
        out.append(f"{cached_ratio:.0%} of the prompt tokens came from the server's cache, which lowers TTFT")
    drift = extended_metrics.output_drift
    if drift is not None and drift.off_ratio > SOME_DIFFER and not summary.vllm_metrics.failed:
        out.append(f"{drift.off_ratio:.0%} of the answers have another length than requested")
    if extended_metrics.token_sources.get("chunks"):
        out.append("the server sent no usage for some answers: their tokens are counted in chunks")
    if not healthy:
        out.append(
            f"this client or its machine was busy (limits: {BUSY_RATIO:.0%} of a core, {LAG_WARN_MS:g} ms loop lag): "
            "use more --workers or another machine before trusting the latencies"
        )
    return out


def step_line(step: SearchStep, what: str) -> str:
    """One line for a completed step of a search."""
    metrics = step.vllm_metrics
    outcome = "met" if step.passed else "overloaded" if step.saturated else "missed"
    missed = ", ".join(f"{r.bound.text} is {number(r.value)}" for r in step.bound_results if not r.met)
    return (
        f"{step.load:>8g} {_unit(what)}: {number(metrics.output_throughput)} tok/s, TTFT P99 "
        f"{number(metrics.ttft.percentiles[99.0])} ms, TPOT P99 {number(metrics.tpot.percentiles[99.0])} ms, "
        f"{metrics.failed} failed: {outcome}" + (f" ({missed})" if missed else "")
    )


def search_text(result: SearchResult, what: str) -> str:
    """The result of a search, with output over load."""
    top = max((step.vllm_metrics.output_throughput for step in result.steps), default=0.0) or 1.0
    lines = ["", f"output over load (requests {_unit(what)})"]
    for step in result.steps:
        output, tpot_ms = step.vllm_metrics.output_throughput, step.vllm_metrics.tpot.mean
        bar = "#" * max(1, round(output / top * BAR_WIDTH))
        lines.append(
            f"  {step.load:>8g}  {'met   ' if step.passed else 'missed'}  {bar:<{BAR_WIDTH}} {number(output)} tok/s, "
            f"{number(1000 / tpot_ms if tpot_ms else 0.0)} per user{'  <- knee' if step is result.knee else ''}"
        )
    return "\n".join([*lines, _search_answer(result, what)])


def _search_answer(result: SearchResult, what: str) -> str:
    if not result.steps:
        return "no load was tried"
    if result.best is None:
        return f"no load meets the objectives, not even {_load(result.steps[0], what)}"
    more = ""
    if result.interrupted:
        more = " among those tried: the search was interrupted"
    elif result.exhausted:
        more = ", the upper limit of the search: raise --to"
    return f"highest load that meets the objectives: {_load(result.best, what)}{more}"


def _load(step: SearchStep, what: str) -> str:
    return f"{step.load:g} request{'' if step.load == 1 else 's'} {_unit(what)}"


def _unit(what: str) -> str:
    return "at a time" if what == "concurrency" else "per second"
