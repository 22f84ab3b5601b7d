"""Snapshots of the fleet, and the view over time that is built from them. Pure: no connections here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter_ns

import msgspec

from loadtest.api.record import RunRecords
from loadtest.fleet.prometheus import MetricValues
from loadtest.fleet.view import FleetView, SpecDecode, TimelineEvent, TtftBreakdown

SERVING_STATES = frozenset({"RUNNING", "UPDATING", "RECOVERING", "PENDING_MIGRATION"})
"""States in which a replica takes requests."""
AFTER_RUN_S = 2.0
"""Snapshots and events this long after the run still belong to it: its last requests may have caused them."""


class ServeReplica(msgspec.Struct):
    """One replica."""

    replica_id: str = ""
    state: str = ""


class ScalingDecision(msgspec.Struct):
    """One decision of Serve's autoscaler."""

    timestamp_s: float = 0.0
    reason: str = ""
    prev_num_replicas: int = 0
    curr_num_replicas: int = 0


class AutoscalingDetail(msgspec.Struct):
    """The decisions for a deployment."""

    decisions: list[ScalingDecision] = []


class ServeDeployment(msgspec.Struct):
    """A deployment in Serve's REST API."""

    replicas: list[ServeReplica] = []
    target_num_replicas: int = 0
    status_trigger: str = ""
    autoscaling_detail: AutoscalingDetail | None = None
    """In the schema, but never filled by Ray 2.60: there, a decision appears as a new target."""


class ServeApplication(msgspec.Struct):
    """One application."""

    deployments: dict[str, ServeDeployment] = {}


class ServeStatus(msgspec.Struct):
    """Response of `GET /api/serve/applications/`."""

    applications: dict[str, ServeApplication] = {}


class ScrapeTargets(msgspec.Struct):
    """One group in the response of `GET /api/prometheus/sd`."""

    targets: list[str] = []


@dataclass(frozen=True)
class FleetSnapshot:
    """The fleet at one moment."""

    at_ns: int
    deployments: Mapping[str, ServeDeployment]
    values: MetricValues

    def states(self) -> dict[str, int]:
        """Number of replicas by `deployment STATE`."""
        out: dict[str, int] = {}
        for name, deployment in self.deployments.items():
            for replica in deployment.replicas:
                key = f"{name} {replica.state}"
                out[key] = out.get(key, 0) + 1
        return out

    def target(self) -> float | None:
        """Target number of replicas of all deployments; None where there is no deployment."""
        if not self.deployments:
            return None
        return float(sum(deployment.target_num_replicas for deployment in self.deployments.values()))


def take_snapshot(status: ServeStatus, values: MetricValues) -> FleetSnapshot:
    """A snapshot with the current time. Two applications may have deployments of the same name: both are kept."""
    qualified = len(status.applications) > 1
    deployments = {
        f"{app}/{name}" if qualified else name: deployment
        for app, application in status.applications.items()
        for name, deployment in application.deployments.items()
    }
    return FleetSnapshot(perf_counter_ns(), deployments, values)


def build_view(
    snapshots: Sequence[FleetSnapshot],
    run: RunRecords,
    client_ttft_ms: float,
    events: Sequence[TimelineEvent],
    problem: str,
) -> FleetView:
    """The columns and events of a run. `events` are the caller's own."""
    if not snapshots:
        return FleetView(events=tuple(events), problem=problem or "no snapshot of the fleet was taken")
    inside = [snapshot for snapshot in snapshots if snapshot.at_ns <= run.end_ns + AFTER_RUN_S * 1e9]
    states = [snapshot.states() for snapshot in inside]
    names = sorted({name for counts in states for name in counts})
    return FleetView(
        at_s=[round(max(0.0, (snapshot.at_ns - run.begin_ns) / 1e9), 3) for snapshot in inside],
        replicas={name: [float(counts.get(name, 0)) for counts in states] for name in names},
        target_replicas=[snapshot.target() for snapshot in inside],
        queued=[_queued(snapshot.values) for snapshot in inside],
        kv_usage=[snapshot.values.get("kv_usage") for snapshot in inside],
        acceptance=_acceptance(inside),
        events=tuple(sorted([*events, *_events(snapshots, run)], key=lambda event: event.at_s)),
        ttft_breakdown=_ttft_breakdown(snapshots, client_ttft_ms),
        spec_decode=_spec_decode(snapshots),
        prefix_hit_ratio=_ratio(snapshots, "prefix_hits", "prefix_queries"),
        problem=problem,
    )


def _queued(values: MetricValues) -> float | None:
    """Requests waiting anywhere in the fleet: in an engine, in Serve's handles or in the ingress."""
    reported = _sum(values, "waiting", "queued_in_serve")
    held = values.get("in_ingress")
    if held is None or values.get("ttft_count") is None:  # without engine metrics, the number running is unknown
        return reported
    return max(reported or 0.0, held - (values.get("running") or 0.0))


def _sum(values: MetricValues, *names: str) -> float | None:
    found = [value for name in names if (value := values.get(name)) is not None]
    return sum(found) if found else None


def _acceptance(snapshots: Sequence[FleetSnapshot]) -> list[float | None]:
    """Tokens per step between consecutive snapshots; None while nothing was drafted."""
    out: list[float | None] = [None]
    for before, after in pairwise(snapshots):
        if after.values is before.values:
            out.append(out[-1])  # pages are read less often than snapshots are taken
            continue
        drafts = (after.values.get("drafts") or 0) - (before.values.get("drafts") or 0)
        accepted = (after.values.get("accepted") or 0) - (before.values.get("accepted") or 0)
        out.append(1 + accepted / drafts if drafts > 0 else None)
    return out[: len(snapshots)]


def _events(snapshots: Sequence[FleetSnapshot], run: RunRecords) -> list[TimelineEvent]:
    events = _reported_decisions(snapshots, run)
    for before, after in pairwise(snapshots):
        at_s = (after.at_ns - run.begin_ns) / 1e9
        for name, deployment in after.deployments.items():
            previous = before.deployments.get(name, ServeDeployment())
            events += [TimelineEvent(at_s, text, kind) for text, kind in _changes(name, previous, deployment)]
    return [event for event in events if 0 <= event.at_s <= run.duration_s + AFTER_RUN_S]


def _reported_decisions(snapshots: Sequence[FleetSnapshot], run: RunRecords) -> list[TimelineEvent]:
    """Decisions with the time and reason that Ray gives, each once."""
    reported = {
        (name, decision.timestamp_s): decision
        for snapshot in snapshots
        for name, deployment in snapshot.deployments.items()
        for decision in (deployment.autoscaling_detail.decisions if deployment.autoscaling_detail else [])
    }
    return [
        TimelineEvent(
            timestamp_s - run.wall_start_s,
            f"{name}: {decision.prev_num_replicas} to {decision.curr_num_replicas} replicas ({decision.reason})",
        )
        for (name, timestamp_s), decision in reported.items()
    ]


def _changes(name: str, before: ServeDeployment, after: ServeDeployment) -> Iterator[tuple[str, str]]:
    """The changes of one deployment between two snapshots: a text and the kind of event.

    A replica that stops serving was removed where the target fell, and lost where it did not.
    """
    target, previous_target = after.target_num_replicas, before.target_num_replicas
    if target != previous_target and after.autoscaling_detail is None:
        why = f" ({after.status_trigger.replace('_', ' ').lower()})" if after.status_trigger else ""
        yield f"{name}: target {previous_target} to {target} replicas{why}", "scale"
    serving, previously_serving = _serving(after), _serving(before)
    for replica in sorted(previously_serving - serving):
        yield (
            (f"{name}: replica {replica} was removed", "scale")
            if target < previous_target
            else (f"{name}: replica {replica} was lost", "death")
        )
    for replica in sorted(serving - previously_serving):
        yield f"{name}: replica {replica} is ready", "scale"


def _serving(deployment: ServeDeployment) -> set[str]:
    return {replica.replica_id for replica in deployment.replicas if replica.state in SERVING_STATES}


def _increase(snapshots: Sequence[FleetSnapshot], name: str) -> float:
    """How much a counter rose from the first snapshot to the last."""
    return (snapshots[-1].values.get(name) or 0.0) - (snapshots[0].values.get(name) or 0.0)


def _ratio(snapshots: Sequence[FleetSnapshot], part: str, whole: str) -> float | None:
    total = _increase(snapshots, whole)
    return _increase(snapshots, part) / total if total > 0 else None


def _ttft_breakdown(snapshots: Sequence[FleetSnapshot], client_ttft_ms: float) -> TtftBreakdown | None:
    engine_s = _ratio(snapshots, "ttft_sum_s", "ttft_count")
    fleet_s = _ratio(snapshots, "fleet_ttft_sum_s", "fleet_ttft_count")
    if engine_s is None or not client_ttft_ms:
        return None
    return TtftBreakdown(client_ttft_ms, engine_s * 1e3, fleet_s * 1e3 if fleet_s is not None else None)


def _spec_decode(snapshots: Sequence[FleetSnapshot]) -> SpecDecode | None:
    drafts, tokens = _increase(snapshots, "drafts"), _increase(snapshots, "draft_tokens")
    return SpecDecode(int(drafts), int(tokens), int(_increase(snapshots, "accepted"))) if drafts > 0 else None
