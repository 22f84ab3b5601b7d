"""Tables about what stands beside the run: the published figures, the fleet, the failures and this client."""

from __future__ import annotations

from loadtest.metrics.projection import IntervalEstimate
from loadtest.metrics.reference_results import REFERENCE_MACHINES
from loadtest.metrics.summary import Summary
from loadtest.report.failures import hint_for
from loadtest.report.table import Table, number


def published_table(summary: Summary) -> Table | None:
    rows, why_not = summary.published()
    if not rows:
        return None
    head = ("", "ours", *(f"{machine.name}{suffix}" for machine in REFERENCE_MACHINES for suffix in ("", " ratio")))
    body = []
    for row in rows:
        cells = [row.name, f"{number(row.ours)} {row.unit}"]
        for value, ratio in zip(row.published, row.ratios, strict=True):
            cells += [number(value), f"{ratio:.2f}"]
        body.append(tuple(cells))
    notes = tuple(f"not like for like: {why}" for why in why_not) or ("like for like with the published runs",)
    return Table("Ours beside the published figures (ratio is ours / published)", head, tuple(body), notes)


def projection_table(summary: Summary) -> Table | None:
    """A shorter run, drawn out to the published one's length."""
    projection = summary.projection
    if projection is None:
        return None
    rows = (
        ("output tok/s", "tok/s", projection.output_rate, [machine.output_rate for machine in REFERENCE_MACHINES]),
        ("total tok/s", "tok/s", projection.total_rate, [machine.total_rate for machine in REFERENCE_MACHINES]),
        ("TTFT mean", "ms", projection.ttft_mean, [machine.ttft_mean for machine in REFERENCE_MACHINES]),
        ("TPOT mean", "ms", projection.tpot_mean, [machine.tpot_mean for machine in REFERENCE_MACHINES]),
    )
    body = [_guess_row(name, unit, guess, published) for name, unit, guess, published in rows]
    head = (
        "",
        "estimate",
        "95 % interval",
        *(f"{m.name}{suffix}" for m in REFERENCE_MACHINES for suffix in ("", " ratio")),
    )
    estimated = (
        "an estimate, not a measurement: this run's ramp and tail, and its steady state for the rest of "
        f"{projection.prompts} prompts; it would take about {_duration(projection.seconds.mean)}"
    )
    notes = (
        estimated,
        "the reasons above why figures are not like for like hold here too, but for the number of prompts",
    )
    return Table(f"Estimate for the whole run of {projection.prompts} prompts", head, tuple(body), notes)


def _guess_row(name: str, unit: str, guess: IntervalEstimate, published: list[float]) -> tuple[str, ...]:
    cells = [name, f"{number(guess.mean)} {unit}", f"{number(guess.low)} to {number(guess.high)}"]
    for value in published:
        cells += [number(value), f"{guess.mean / value:.2f}"]
    return tuple(cells)


def failures_table(summary: Summary) -> Table | None:
    rows = []
    for group in summary.failures:
        first = group.examples[0]
        detail = " ".join(
            (first.body if group.outcome.value.endswith("xx") or "_" in group.outcome.value else "").split()
        )
        rows.append((group.outcome.value, f"{group.count:,}", first.error[:120], detail[:200]))
    notes = tuple(f"{group.outcome.value}: {hint_for(group.examples[0])}" for group in summary.failures)
    return Table(
        "Failures", ("kind", "count", "what was said first", "start of the first body"), tuple(rows), notes, words=True
    )


def _duration(seconds: float) -> str:
    return f"{number(seconds / 60)} minutes" if seconds >= 90 else f"{number(seconds)} s"


def fleet_table(summary: Summary) -> Table | None:
    fleet = summary.fleet
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
                "not again" if seconds is None else f"held again after {seconds:.1f} s" if seconds else "never broken",
            )
        )
    notes = tuple(f"{mark.at_s:.1f} s: {mark.what}" for mark in fleet.marks[:40])
    if fleet.problem:
        notes = (fleet.problem, *notes)
    return Table("Fleet", ("", ""), tuple(rows or [("samples", f"{len(fleet.at_s)}")]), notes)


FAIR = 1000
"""Fewer chunks would mostly tell what starting and ending a run costs."""


def client_table(summary: Summary) -> Table:
    rows = []
    for position, check in enumerate(summary.checks):
        rows.append(
            (
                f"worker {position + 1}" if len(summary.checks) > 1 else "this client",
                f"{check.cpu_ratio:.0%} of a core",
                f"{number(check.loop_lag_p99_ms)} ms",
                f"{number(check.loop_lag_max_ms)} ms",
                "yes" if check.healthy else "NO",
            )
        )
    chunks = sum(len(record.chunk_ns) for record in summary.finished.run.records)
    wall_s = max(check.wall_s for check in summary.checks)
    notes = [summary.about.worker_count] if summary.about.worker_count else []
    if chunks >= FAIR and wall_s:
        spent_us = sum(check.cpu_s for check in summary.checks) / chunks * 1e6
        notes.append(
            f"{number(chunks / wall_s, 0)} chunks/s, {number(spent_us)} us of CPU for each, start and end included"
        )
    head = ("", "CPU", "loop lag P99", "loop lag max", "fit")
    return Table("Is the client the bottleneck?", head, tuple(rows), tuple(notes))
