"""What a run says: attainment, replica-hours, refusals; as a table for people and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from serve_app.scaling import Objective
from serve_app.simulate.fleet_model import RequestResult, SimulationResult

ASKED_ATTAINMENT = 0.95
"""The share of requests that are to keep the objective."""

ASKED_REPLICA_HOURS = 0.75
"""Of the replica-hours of a static fleet that keeps it."""


@dataclass(frozen=True)
class Figures:
    """A policy on a trace, in figures. `attainment_ratio` is the share of all requests, refused ones too, that kept
    both parts of the objective. `of_static_ratio`: replica-hours over those of the static fleet; None: not known."""

    policy: str
    requests: int
    attainment_ratio: float
    ttft_p50_s: float
    ttft_p95_s: float
    tpot_p95_s: float
    refused: int
    replica_hours: float
    of_static_ratio: float | None
    most_replicas: int
    scale_events: int
    slowest_key_attainment_ratio: float
    """The same of the key with the lowest; 1 where there are no keys."""


def figures(policy: str, result: SimulationResult, objective: Objective, static_hours: float | None = None) -> Figures:
    """The figures of a run. `static_hours` are the replica-hours of the static fleet."""
    answered = [one for one in result.requests if one.ttft_s is not None]
    hours = result.replica_s / 3600
    by_key: dict[str, list[bool]] = {}
    for one in result.requests:
        by_key.setdefault(one.request.key, []).append(keeps(one, objective))
    kept = sum(sum(those) for those in by_key.values())
    return Figures(
        policy,
        len(result.requests),
        kept / max(len(result.requests), 1),
        quantile([one.ttft_s for one in answered if one.ttft_s is not None], 0.5),
        quantile([one.ttft_s for one in answered if one.ttft_s is not None], 0.95),
        quantile([one.tpot_s for one in answered], 0.95),
        len(result.requests) - len(answered),
        hours,
        None if static_hours is None else hours / static_hours,
        result.most_replicas,
        len(result.scale_events),
        min((sum(those) / len(those) for those in by_key.values()), default=1.0),
    )


def keeps(one: RequestResult, objective: Objective) -> bool:
    """Whether a request kept the objective."""
    if one.ttft_s is None:
        return False
    ttft_ok = objective.ttft_p95_s is None or one.ttft_s <= objective.ttft_p95_s
    return ttft_ok and (objective.tpot_p95_s is None or one.tpot_s <= objective.tpot_p95_s)


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which this share is; 0 of none."""
    if not values:
        return 0.0
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


def as_table(title: str, rows: Sequence[Figures]) -> Table:
    """One line for each policy."""
    table = Table("policy", title=title, title_justify="left")
    headings = ("attained", "TTFT p50", "p95", "TPOT p95", "refused", "replica-h", "of static", "most", "changes")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for one in rows:
        table.add_row(
            one.policy,
            f"{one.attainment_ratio:.1%}",
            f"{one.ttft_p50_s:.2f} s",
            f"{one.ttft_p95_s:.1f} s",
            f"{one.tpot_p95_s * 1000:.0f} ms",
            str(one.refused),
            f"{one.replica_hours:.1f}",
            "" if one.of_static_ratio is None else f"{one.of_static_ratio:.0%}",
            str(one.most_replicas),
            str(one.scale_events),
        )
    return table


def verdict(slo: Figures) -> str:
    """Whether the policy does what is asked of it, in a line."""
    cheap = slo.of_static_ratio is not None and slo.of_static_ratio <= ASKED_REPLICA_HOURS
    good = slo.attainment_ratio >= ASKED_ATTAINMENT
    said = "yes" if cheap and good else "no"
    share = "?" if slo.of_static_ratio is None else f"{slo.of_static_ratio:.0%}"
    return (
        f"asked of {slo.policy}: at least {ASKED_ATTAINMENT:.0%} for at most {ASKED_REPLICA_HOURS:.0%} of the static "
        f"fleet's replica-hours: {said} ({slo.attainment_ratio:.1%}, {share})"
    )
