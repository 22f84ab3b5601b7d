"""What was seen of the fleet at single moments, and how it becomes a picture over time; no connection in here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter_ns

import msgspec

from loadtest.fleet_view import FleetView, Mark, SpecDecode, Split
from loadtest.prom import Gauges
from loadtest.record import Run


class Replica(msgspec.Struct):
    """One replica."""

    replica_id: str = ""
    state: str = ""


class Decision(msgspec.Struct):
    """One scaling decision."""

    timestamp_s: float = 0.0
    reason: str = ""
    prev_num_replicas: int = 0
    curr_num_replicas: int = 0


class Scaling(msgspec.Struct):
    """A deployment's decisions."""

    decisions: list[Decision] = []


class Deployment(msgspec.Struct):
    """A deployment as Serve's REST API shows it."""

    replicas: list[Replica] = []
    recent_dead_replicas: list[Replica] = []
    target_num_replicas: int | None = None
    autoscaling_detail: Scaling | None = None


class Application(msgspec.Struct):
    """One application."""

    deployments: dict[str, Deployment] = {}


class Applications(msgspec.Struct):
    """`GET /api/serve/applications/`."""

    applications: dict[str, Application] = {}


class Targets(msgspec.Struct):
    """One group of `GET /api/prometheus/sd`."""

    targets: list[str] = []


@dataclass(frozen=True)
class Look:
    """One moment of the fleet."""

    at_ns: int
    states: Mapping[str, int]
    """`deployment STATE` to replicas."""
    target: int | None
    alive: frozenset[str]
    dead: frozenset[str]
    decisions: tuple[tuple[float, str], ...]
    """Unix time and words."""
    gauges: Gauges


def look_of(serve: Applications, gauges: Gauges) -> Look:
    """The moment's picture."""
    states: dict[str, int] = {}
    alive: set[str] = set()
    dead: set[str] = set()
    decisions: list[tuple[float, str]] = []
    target = 0
    deployments = [item for app in serve.applications.values() for item in app.deployments.items()]
    for name, deployment in deployments:
        for replica in deployment.replicas:
            key = f"{name} {replica.state}"
            states[key] = states.get(key, 0) + 1
        alive |= {replica.replica_id for replica in deployment.replicas}
        dead |= {replica.replica_id for replica in deployment.recent_dead_replicas}
        target += deployment.target_num_replicas or 0
        decisions += [
            (d.timestamp_s, f"{name}: {d.prev_num_replicas} to {d.curr_num_replicas} replicas ({d.reason})")
            for d in (deployment.autoscaling_detail.decisions if deployment.autoscaling_detail else [])
        ]
    return Look(
        perf_counter_ns(),
        states,
        target if deployments else None,
        frozenset(alive),
        frozenset(dead),
        tuple(decisions),
        gauges,
    )


def as_view(looks: Sequence[Look], run: Run, client_ttft_ms: float, events: Sequence[Mark], problem: str) -> FleetView:
    """Columns and marks from looks. Pure."""
    if not looks:
        return FleetView(marks=tuple(events), problem=problem or "the fleet could not be seen")
    names = sorted({name for look in looks for name in look.states})
    inside = [look for look in looks if look.at_ns <= run.end_ns + 2e9]
    return FleetView(
        at_s=[round(max(0.0, (look.at_ns - run.begin_ns) / 1e9), 3) for look in inside],
        replicas={name: [float(look.states.get(name, 0)) for look in inside] for name in names},
        target_replicas=[None if look.target is None else float(look.target) for look in inside],
        queued=[_sum(look.gauges, "waiting", "queued_in_serve") for look in inside],
        kv_usage=[look.gauges.get("kv_usage") for look in inside],
        acceptance=_acceptance(inside),
        marks=tuple(sorted([*events, *_marks(looks, run)], key=lambda mark: mark.at_s)),
        split=_split(looks, client_ttft_ms),
        spec_decode=_spec_decode(looks),
        prefix_hit_ratio=_ratio(looks, "prefix_hits", "prefix_queries"),
        problem=problem,
    )


def _sum(gauges: Gauges, *names: str) -> float | None:
    found = [value for name in names if (value := gauges.get(name)) is not None]
    return sum(found) if found else None


def _acceptance(looks: Sequence[Look]) -> list[float | None]:
    """Between one look and the next; None while nothing was drafted."""
    out: list[float | None] = [None]
    for before, after in pairwise(looks):
        if after.gauges is before.gauges:
            out.append(out[-1])
            continue
        drafts = (after.gauges.get("drafts") or 0) - (before.gauges.get("drafts") or 0)
        accepted = (after.gauges.get("accepted") or 0) - (before.gauges.get("accepted") or 0)
        out.append(1 + accepted / drafts if drafts > 0 else None)
    return out[: len(looks)]


def _marks(looks: Sequence[Look], run: Run) -> list[Mark]:
    marks = []
    seen: set[tuple[float, str]] = set(looks[0].decisions)
    for before, after in pairwise(looks):
        at_s = (after.at_ns - run.begin_ns) / 1e9
        for moment, words in after.decisions:
            if (moment, words) not in seen:
                seen.add((moment, words))
                marks.append(Mark(moment - run.wall_start_s, words, "scale"))
        for replica in sorted(before.alive - after.alive):
            how = "died or was stopped" if replica in after.dead else "is gone"
            marks.append(Mark(at_s, f"replica {replica} {how}", "death"))
        marks += [Mark(at_s, f"replica {replica} was added", "scale") for replica in sorted(after.alive - before.alive)]
    return [mark for mark in marks if 0 <= mark.at_s <= run.duration_s + 2]


def _grown(looks: Sequence[Look], name: str) -> float:
    """What a counter gained from the first look to the last."""
    return (looks[-1].gauges.get(name) or 0.0) - (looks[0].gauges.get(name) or 0.0)


def _ratio(looks: Sequence[Look], part: str, whole: str) -> float | None:
    total = _grown(looks, whole)
    return _grown(looks, part) / total if total > 0 else None


def _split(looks: Sequence[Look], client_ttft_ms: float) -> Split | None:
    mean_s = _ratio(looks, "ttft_sum_s", "ttft_count")
    return Split(client_ttft_ms, mean_s * 1e3) if mean_s is not None and client_ttft_ms else None


def _spec_decode(looks: Sequence[Look]) -> SpecDecode | None:
    drafts, tokens = _grown(looks, "drafts"), _grown(looks, "draft_tokens")
    return SpecDecode(int(drafts), int(tokens), int(_grown(looks, "accepted"))) if drafts > 0 else None
