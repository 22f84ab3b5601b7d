"""What was seen of the fleet at single moments, and how it becomes a picture over time; no connection in here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter_ns

import msgspec

from loadtest.api.record import RunRecords
from loadtest.fleet.prometheus import MetricValues
from loadtest.fleet.view import FleetView, Mark, SpecDecode, TtftBreakdown

SERVING = frozenset({"RUNNING", "UPDATING", "RECOVERING", "PENDING_MIGRATION"})
"""States in which a replica takes requests; in the others it does not yet, or not any more."""


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
    target_num_replicas: int = 0
    status_trigger: str = ""
    autoscaling_detail: Scaling | None = None
    """Part of the schema that Ray 2.60 never fills: there, a decision shows as a new target."""


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
class FleetSnapshot:
    """One moment of the fleet."""

    at_ns: int
    deployments: Mapping[str, Deployment]
    values: MetricValues

    def states(self) -> dict[str, int]:
        """`deployment STATE` to replicas."""
        out: dict[str, int] = {}
        for name, deployment in self.deployments.items():
            for replica in deployment.replicas:
                key = f"{name} {replica.state}"
                out[key] = out.get(key, 0) + 1
        return out

    def target(self) -> float | None:
        """Replicas wanted in all; None where no deployment is to be seen."""
        if not self.deployments:
            return None
        return float(sum(deployment.target_num_replicas for deployment in self.deployments.values()))


def take_snapshot(serve: Applications, values: MetricValues) -> FleetSnapshot:
    """The moment's picture. Two applications may each have a deployment of one name."""
    several = len(serve.applications) > 1
    deployments = {
        f"{app}/{name}" if several else name: deployment
        for app, application in serve.applications.items()
        for name, deployment in application.deployments.items()
    }
    return FleetSnapshot(perf_counter_ns(), deployments, values)


def build_view(
    snapshots: Sequence[FleetSnapshot], run: RunRecords, client_ttft_ms: float, events: Sequence[Mark], problem: str
) -> FleetView:
    """Columns and marks from looks. Pure."""
    if not snapshots:
        return FleetView(marks=tuple(events), problem=problem or "the fleet could not be seen")
    inside = [snapshot for snapshot in snapshots if snapshot.at_ns <= run.end_ns + 2e9]
    states = [snapshot.states() for snapshot in inside]
    names = sorted({name for counts in states for name in counts})
    return FleetView(
        at_s=[round(max(0.0, (snapshot.at_ns - run.begin_ns) / 1e9), 3) for snapshot in inside],
        replicas={name: [float(counts.get(name, 0)) for counts in states] for name in names},
        target_replicas=[snapshot.target() for snapshot in inside],
        queued=[_queued(snapshot.values) for snapshot in inside],
        kv_usage=[snapshot.values.get("kv_usage") for snapshot in inside],
        acceptance=_acceptance(inside),
        marks=tuple(sorted([*events, *_marks(snapshots, run)], key=lambda mark: mark.at_s)),
        split=_split(snapshots, client_ttft_ms),
        spec_decode=_spec_decode(snapshots),
        prefix_hit_ratio=_ratio(snapshots, "prefix_hits", "prefix_queries"),
        problem=problem,
    )


def _queued(values: MetricValues) -> float | None:
    """Requests that wait anywhere in the fleet: in an engine, at Serve's doors, or in the ingress."""
    reported = _sum(values, "waiting", "queued_in_serve")
    held = values.get("in_ingress")
    if held is None or values.get("ttft_count") is None:  # without an engine's figures nobody knows what runs
        return reported
    return max(reported or 0.0, held - (values.get("running") or 0.0))


def _sum(values: MetricValues, *names: str) -> float | None:
    found = [value for name in names if (value := values.get(name)) is not None]
    return sum(found) if found else None


def _acceptance(snapshots: Sequence[FleetSnapshot]) -> list[float | None]:
    """Between one look and the next; None while nothing was drafted."""
    out: list[float | None] = [None]
    for before, after in pairwise(snapshots):
        if after.values is before.values:
            out.append(out[-1])
            continue
        drafts = (after.values.get("drafts") or 0) - (before.values.get("drafts") or 0)
        accepted = (after.values.get("accepted") or 0) - (before.values.get("accepted") or 0)
        out.append(1 + accepted / drafts if drafts > 0 else None)
    return out[: len(snapshots)]


def _marks(snapshots: Sequence[FleetSnapshot], run: RunRecords) -> list[Mark]:
    marks = _reported_decisions(snapshots, run)
    for before, after in pairwise(snapshots):
        at_s = (after.at_ns - run.begin_ns) / 1e9
        for name, deployment in after.deployments.items():
            known = before.deployments.get(name, Deployment())
            marks += [Mark(at_s, words, kind) for words, kind in _changes(name, known, deployment)]
    return [mark for mark in marks if 0 <= mark.at_s <= run.duration_s + 2]


def _reported_decisions(snapshots: Sequence[FleetSnapshot], run: RunRecords) -> list[Mark]:
    """Decisions with Ray's own time and reason, each once."""
    reported = {
        (name, decision.timestamp_s): decision
        for snapshot in snapshots
        for name, deployment in snapshot.deployments.items()
        for decision in (deployment.autoscaling_detail.decisions if deployment.autoscaling_detail else [])
    }
    return [
        Mark(
            moment - run.wall_start_s,
            f"{name}: {decision.prev_num_replicas} to {decision.curr_num_replicas} replicas ({decision.reason})",
        )
        for (name, moment), decision in reported.items()
    ]


def _changes(name: str, before: Deployment, after: Deployment) -> Iterator[tuple[str, str]]:
    """What became of one deployment between two looks, in words, each with its kind of mark.

    A replica that stops serving while the target stands was lost; where the target fell, it was let go.
    """
    wanted, was_wanted = after.target_num_replicas, before.target_num_replicas
    if wanted != was_wanted and after.autoscaling_detail is None:
        why = f" ({after.status_trigger.replace('_', ' ').lower()})" if after.status_trigger else ""
        yield f"{name}: target {was_wanted} to {wanted} replicas{why}", "scale"
    serving, served = _serving(after), _serving(before)
    for replica in sorted(served - serving):
        yield (
            (f"{name}: replica {replica} was let go", "scale")
            if wanted < was_wanted
            else (f"{name}: replica {replica} was lost", "death")
        )
    for replica in sorted(serving - served):
        yield f"{name}: replica {replica} is ready", "scale"


def _serving(deployment: Deployment) -> set[str]:
    return {replica.replica_id for replica in deployment.replicas if replica.state in SERVING}


def _grown(snapshots: Sequence[FleetSnapshot], name: str) -> float:
    """What a counter gained from the first look to the last."""
    return (snapshots[-1].values.get(name) or 0.0) - (snapshots[0].values.get(name) or 0.0)


def _ratio(snapshots: Sequence[FleetSnapshot], part: str, whole: str) -> float | None:
    total = _grown(snapshots, whole)
    return _grown(snapshots, part) / total if total > 0 else None


def _split(snapshots: Sequence[FleetSnapshot], client_ttft_ms: float) -> TtftBreakdown | None:
    engine_s = _ratio(snapshots, "ttft_sum_s", "ttft_count")
    fleet_s = _ratio(snapshots, "fleet_ttft_sum_s", "fleet_ttft_count")
    if engine_s is None or not client_ttft_ms:
        return None
    return TtftBreakdown(client_ttft_ms, engine_s * 1e3, fleet_s * 1e3 if fleet_s is not None else None)


def _spec_decode(snapshots: Sequence[FleetSnapshot]) -> SpecDecode | None:
    drafts, tokens = _grown(snapshots, "drafts"), _grown(snapshots, "draft_tokens")
    return SpecDecode(int(drafts), int(tokens), int(_grown(snapshots, "accepted"))) if drafts > 0 else None
