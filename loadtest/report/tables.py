"""The report's tables as plain rows: what the terminal, Markdown and HTML have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from loadtest.figures import Figures
from loadtest.outcome import Outcome
from loadtest.parity import Spread
from loadtest.published import MACHINES
from loadtest.selfcheck import BUSY_RATIO, LAG_WARN_MS
from loadtest.slo import RATES, Verdict


@dataclass(frozen=True)
class Table:
    """A titled table; the first column is text, the others are figures."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = field(default_factory=tuple)


def number(value: float, digits: int = 1) -> str:
    """A figure for people: thousands apart, no false precision."""
    if math.isinf(value):
        return "never" if value > 0 else "-inf"
    if value and abs(value) < 10**-digits:
        return f"{value:.2g}"
    return f"{value:,.{digits}f}"


def tables(figures: Figures) -> list[Table]:
    """All tables that have something to say, in the order of reading."""
    made = [
        _published(figures),
        _objectives(figures),
        _totals(figures),
        _times(figures),
        _hidden(figures),
        _steady(figures),
        _kinds(figures),
        _fleet(figures),
        _failures(figures),
        _client(figures),
    ]
    return [table for table in made if table is not None and table.rows]


def warnings(figures: Figures) -> list[str]:
    """What a reader must know before believing the figures; most important first."""
    parity, strict = figures.parity, figures.strict
    said = []
    if figures.finished.run.interrupted:
        said.append(f"interrupted: {figures.interrupted} requests in flight were dropped, what had ended is reported")
    if not parity.completed:
        said.append("no request succeeded: there are no latency figures")
    if parity.failed:
        total = parity.completed + parity.failed
        said.append(f"{parity.failed} of {total} requests failed; latency figures are of the others only")
    full = [group for group in figures.failures if group.outcome is Outcome.FULL]
    if full:
        wait_s = max(record.retry_after_s for record in full[0].examples)
        asks = f" and asked to come back in {wait_s:g} s" if wait_s else ""
        said.append(f"the server refused {full[0].count} requests as full (429){asks}: nothing was sent again")
    if strict.vllm_completed > parity.completed:
        more = strict.vllm_completed - parity.completed
        said.append(f"vLLM's client would have counted {more} of the failures as successes")
    return said + _doubts(figures)


def _doubts(figures: Figures) -> list[str]:
    """Reasons to read the figures with care even where all went well."""
    parity, strict = figures.parity, figures.strict
    said = []
    if strict.bursts_ratio > 0.1:
        said.append(
            f"{strict.bursts_ratio:.0%} of the tokens came in bursts (several events per read): something batches the "
            "stream, and ITL percentiles mean little; see the read gap"
        )
    cached = figures.cached_ratio
    if cached is not None and cached > 0.01:
        said.append(f"{cached:.0%} of the prompt tokens came from the server's cache: TTFT is flattered")
    if strict.output_drift is not None and strict.output_drift.off_ratio > 0.01 and not parity.failed:
        said.append(f"{strict.output_drift.off_ratio:.0%} of the answers differ in length from what was asked")
    if strict.token_sources.get("chunks"):
        said.append("the server sent no usage for some answers: their tokens are counted in chunks")
    if not all(check.healthy for check in figures.checks):
        said.append(
            f"this client or its machine was busy (limits: {BUSY_RATIO:.0%} of a core, {LAG_WARN_MS:g} ms loop lag): "
            "use --workers or another machine before believing the latencies"
        )
    return said


def _spread_row(name: str, spread: Spread) -> tuple[str, ...]:
    return (name, number(spread.mean), number(spread.median), *(number(v) for v in spread.percentiles.values()))


def _spread_head(figures: Figures) -> tuple[str, ...]:
    return ("ms", "mean", "median", *(f"P{percent:g}" for percent in figures.parity.ttft.percentiles))


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

    def interval(mean: float, half: float, unit: str) -> str:
        return f"{number(mean)} {unit}" if math.isinf(half) else f"{number(mean)} ± {number(half)} {unit}"

    rows = (
        ("window", f"{number(steady.begin_s)} s to {number(steady.end_s)} s"),
        ("output tokens", interval(steady.output_rate.mean, steady.output_rate.half_width, "tok/s")),
        ("requests", f"{number(steady.request_rate, 2)} /s"),
        ("in flight", number(steady.inflight_mean)),
        ("TTFT mean", interval(steady.ttft.mean, steady.ttft.half_width, "ms")),
        ("TPOT mean", interval(steady.tpot.mean, steady.tpot.half_width, "ms")),
    )
    return Table("Steady state", ("without ramp and tail; ± is a 95 % interval", ""), rows)


def _published(figures: Figures) -> Table | None:
    rows, why_not = figures.published()
    if not rows:
        return None
    head = ("", "ours", *(f"{machine.name}{suffix}" for machine in MACHINES for suffix in ("", " ratio")))
    body = []
    for row in rows:
        cells = [row.name, f"{number(row.ours)} {row.unit}"]
        for value, ratio in zip(row.published, row.ratios, strict=True):
            cells += [number(value), f"{ratio:.2f}"]
        body.append(tuple(cells))
    notes = tuple(f"not like for like: {why}" for why in why_not) or ("like for like with the published runs",)
    return Table("Ours beside the published figures (ratio is ours / published)", head, tuple(body), notes)


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


def _failures(figures: Figures) -> Table | None:
    rows = []
    for group in figures.failures:
        first = group.examples[0]
        detail = " ".join(
            (first.body if group.outcome.value.endswith("xx") or "_" in group.outcome.value else "").split()
        )
        rows.append((group.outcome.value, f"{group.count:,}", first.error[:120], detail[:200]))
    return Table("Failures", ("kind", "count", "what was said first", "start of the first body"), tuple(rows))


def _fleet(figures: Figures) -> Table | None:
    fleet = figures.fleet
    if fleet is None:
        return None
    rows = []
    if fleet.split is not None:
        rows.append(("TTFT: seen by the client", f"{number(fleet.split.seen_by_client)} ms"))
        rows.append(("TTFT: in the engine", f"{number(fleet.split.in_engine)} ms"))
        rows.append(("TTFT: everything else", f"{number(fleet.split.elsewhere)} ms"))
        if fleet.split.in_fleet is not None:
            inside = max(0.0, fleet.split.in_fleet - fleet.split.in_engine)
            rows.append(("  of that, between ingress and engine", f"{number(inside)} ms"))
    if fleet.spec_decode is not None and fleet.spec_decode.drafts:
        length = 1 + fleet.spec_decode.accepted_tokens / fleet.spec_decode.drafts
        rows.append(("MTP: tokens per engine step", f"{length:.2f}"))
    if fleet.prefix_hit_ratio is not None:
        rows.append(("prompt tokens found in the engines' caches", f"{fleet.prefix_hit_ratio:.1%}"))
    for state, counts in fleet.replicas.items():
        known = [count for count in counts if count is not None]
        if known:
            rows.append((f"replicas {state}", f"{min(known):g} to {max(known):g}"))
    for at_s, seconds in fleet.recoveries:
        rows.append(
            (
                f"objectives after {at_s:.0f} s",
                f"held again after {seconds:.1f} s" if seconds is not None else "not again",
            )
        )
    notes = tuple(f"{mark.at_s:.1f} s: {mark.what}" for mark in fleet.marks[:40])
    if fleet.problem:
        notes = (fleet.problem, *notes)
    return Table("Fleet", ("", ""), tuple(rows or [("samples", f"{len(fleet.at_s)}")]), notes)


def _client(figures: Figures) -> Table:
    rows = []
    for position, check in enumerate(figures.checks):
        rows.append(
            (
                f"worker {position + 1}" if len(figures.checks) > 1 else "this client",
                f"{check.cpu_ratio:.0%} of a core",
                f"{number(check.loop_lag_p99_ms)} ms",
                f"{number(check.loop_lag_max_ms)} ms",
                "yes" if check.healthy else "NO",
            )
        )
    return Table("Is the client the bottleneck?", ("", "CPU", "loop lag P99", "loop lag max", "fit"), tuple(rows))


def widths(table: Table) -> Sequence[int]:
    """Characters each column needs."""
    columns = zip(table.head, *table.rows, strict=True)
    return [max(len(cell) for cell in column) for column in columns]
