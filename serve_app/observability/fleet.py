"""The answer of `GET /status/fleet`: replicas, ingresses, queue, migrations, scale decisions, keys. Pure.

The ingress that is asked has a connection to every replica, so replicas are as it sees them. What only another ingress
knows comes in its `IngressReport`; what only Serve knows (nodes, replicas that are starting, targets) in `ServeView`.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import msgspec

from serve_app.observability.explain import sentence
from serve_app.observability.records import RequestRecord
from serve_app.observability.search import ExplainedRecord
from serve_app.observability.usage import KeyUsage, summed
from serve_app.router.attempts import ReplicaConnection
from serve_app.router.fleet_state import FleetFacts
from serve_app.router.request_context import Migration

SHOWN_REQUESTS = 20
SHOWN_EVENTS = 50
SHOWN_KEYS = 100


class ScaleDecision(msgspec.Struct, frozen=True):
    """A deployment's target has changed. It was decided at `at_unix_s`, or noticed where no policy says when."""

    at_unix_s: float
    deployment: str
    before: int
    after: int
    reason: str


class ReportQuery(msgspec.Struct, frozen=True):
    """What an ingress is asked for: everything, or with `only_key` set what concerns the key `key`."""

    key: str | None = None
    only_key: bool = False


class IngressReport(msgspec.Struct, frozen=True):
    """What one ingress says of itself. `busy_ratio` and `lag_s` are of its event loop, None in its first seconds."""

    ingress_id: str
    node: str
    started_unix_s: float
    in_flight: int
    busy_ratio: float | None = None
    lag_s: float | None = None
    migrations: list[Migration] = []
    scale: list[ScaleDecision] = []
    keys: list[KeyUsage] = []
    slowest: list[RequestRecord] = []
    waiting: int = 0
    """Requests that wait for an engine, where none is up."""
    asked_s_ago: float | None = None
    """How long ago one of its requests asked for an engine; None if none did, or there is one."""
    start_s: float | None = None
    """How long the last start of an engine took, as far as it has seen one."""


class ServeReplica(msgspec.Struct, frozen=True):
    """A replica as Serve knows it, in Serve's words; `starting`: what it says of its start."""

    replica_id: str
    state: str
    node: str = ""
    started_unix_s: float = 0.0
    starting: str = ""


class Deployment(msgspec.Struct, frozen=True):
    """A deployment as Serve knows it. `autoscaled`: policies set its target."""

    name: str
    status: str
    target: int
    message: str = ""
    autoscaled: bool = False
    replicas: list[ServeReplica] = []


class ServeView(msgspec.Struct, frozen=True):
    """The application in Serve. `problem`: why it is not known, or not fresh."""

    deployments: list[Deployment] = []
    problem: str = ""


class ReplicaView(msgspec.Struct, frozen=True):
    """An engine replica. `state` is the engine's (`ReplicaActivity`), else the connection's or Serve's. `start_phases`
    are the seconds of each phase of its start; of one that is starting, `under_way` is the phase.

    Of its `slots`, and of `capacity` with those that wait, `unfinished` are taken; `queued` of these wait."""

    replica_id: str
    node: str
    state: str
    takes_work: bool = False
    version: str = ""
    note: str = ""
    under_way: str = ""
    unfinished: int = 0
    queued: int = 0
    slots: int = 0
    capacity: int | None = None
    own_requests: int = 0
    kv_usage_ratio: float = 0.0
    kv_cache_tokens: int = 0
    queued_prefill_tokens: int = 0
    prefill_tokens_per_s: float | None = None
    tokens_per_step: float | None = None
    acceptance_ratio: float | None = None
    start_s: float | None = None
    start_phases: dict[str, float] = {}
    started_unix_s: float | None = None
    pool: str = ""


class CanaryView(msgspec.Struct, frozen=True):
    """The trial of a canary: its `state` (trying, promoted, rolled_back) and why, its share of the sessions, for how
    long it has been tried, and how many requests there were in each arm."""

    trial: str
    state: str
    reason: str
    share: float
    tried_s: float
    canary_requests: int
    stable_requests: int


class Fleet(msgspec.Struct, frozen=True):
    """The whole answer. With `only_key`, migrations, keys and requests are only those of the key that asked."""

    now_unix_s: float
    model: str
    engine: str
    only_key: bool
    replicas: list[ReplicaView]
    ingresses: list[IngressReport]
    deployments: list[Deployment]
    queued: int
    in_flight: int
    migrations: list[Migration]
    scale: list[ScaleDecision]
    keys: list[KeyUsage]
    slowest: list[ExplainedRecord]
    silent_ingresses: int = 0
    problem: str = ""
    state: str = ""
    """Of all engines together (`FleetState`)."""
    state_text: str = ""
    waiting: int = 0
    """Requests that wait for an engine, where none is up."""
    left_s: float | None = None
    """About how long until one is up; None if there is nothing to tell it from."""
    canary: CanaryView | None = None


def merged_state(own: FleetFacts, reports: Sequence[IngressReport]) -> FleetFacts:
    """What all ingresses know together: one may have asked for the engine, and one may have seen the last start."""
    asked = [one.asked_s_ago for one in reports if one.asked_s_ago is not None]
    starts = [one.start_s for one in reports if one.start_s is not None]
    waiting = sum(one.waiting for one in reports)
    start_s, elapsed_s = max(starts, default=own.start_s), max(asked, default=own.elapsed_s)
    return replace(own, start_s=start_s, elapsed_s=None if own.is_up else elapsed_s, waiting=waiting)


def replica_views(
    connections: Iterable[ReplicaConnection], refused: Mapping[str, str], serve: Sequence[ServeReplica]
) -> list[ReplicaView]:
    """Every replica that an ingress or Serve knows, by node and id."""
    known = {one.replica_id: one for one in serve}
    views = {one.replica_id: _connected(one, known.get(one.replica_id)) for one in connections}
    for name, why in refused.items():
        views[name] = ReplicaView(name, known[name].node if name in known else "", "refused", note=why)
    for one in serve:
        if one.replica_id not in views:
            state = one.state.lower()
            views[one.replica_id] = ReplicaView(
                one.replica_id,
                one.node,
                "not connected" if state == "running" else state,
                under_way=one.starting,
                started_unix_s=one.started_unix_s or None,
            )
    return sorted(views.values(), key=lambda view: (view.node, view.replica_id))


def _connected(connection: ReplicaConnection, serve: ServeReplica | None) -> ReplicaView:
    load, capacity, info = connection.load, connection.capacity, connection.info
    activity = info.activity if info is not None else None
    address = info.data_channel if info is not None else None
    node = serve.node if serve is not None and serve.node else (address.host if address is not None else "")
    return ReplicaView(
        replica_id=connection.replica_id,
        node=node,
        state=_state(connection, activity.state if activity is not None else ""),
        takes_work=connection.takes_work,
        version=info.vllm_version if info is not None else "",
        under_way=activity.under_way if activity is not None else "",
        unfinished=load.unfinished,
        queued=load.queued,
        slots=load.max_num_seqs,
        capacity=capacity.max_unfinished,
        own_requests=len(connection.attempts),
        kv_usage_ratio=load.kv_usage_ratio,
        kv_cache_tokens=capacity.kv_cache_tokens,
        queued_prefill_tokens=load.queued_prefill_tokens,
        prefill_tokens_per_s=load.prefill_tokens_per_s,
        tokens_per_step=activity.tokens_per_step if activity is not None else None,
        acceptance_ratio=activity.acceptance_ratio if activity is not None else None,
        start_s=capacity.start_s,
        start_phases=capacity.start_phases,
        started_unix_s=serve.started_unix_s if serve is not None and serve.started_unix_s else None,
        pool=connection.label.pool,
    )


def _state(connection: ReplicaConnection, engine_state: str) -> str:
    if engine_state in ("dead", "stopping"):
        return engine_state
    if connection.draining:
        return "draining"
    if not connection.up:
        return "connecting"
    if connection.leaves_at_s is not None:
        return "leaving"
    if engine_state == "idle" and connection.load.unfinished:  # the listing is a second old, the load is not
        return "working"
    return engine_state or "up"


def failed_starts(deployments: Sequence[Deployment]) -> str:
    """That Serve has counted three failed starts of an engine in a row, and none runs; else empty. Why is in its
    message, which is not for clients."""
    for one in deployments:
        failed = one.name == "engine" and one.status in ("unhealthy", "deploy_failed") and one.target > 0
        if failed and not any(replica.state == "RUNNING" for replica in one.replicas):
            return "its engine fails to start"
    return ""


def zero_reason(before: int, after: int) -> str:
    """Why a deployment has gone to zero or has come back; empty for other changes."""
    if after == 0:
        return "no engine has had a request for replicas.idle_to_zero_s"
    return "a request waited for an engine" if before == 0 else ""


def scale_reason(deployment: Deployment, loads: Sequence[float], target_load: float) -> str:
    """Why a target may have changed, where the policy does not say: its inputs as this ingress sees them."""
    if not deployment.autoscaled:
        return "the configuration asks for it"
    if not loads:
        return "no load is known yet"
    each = ", ".join(f"{load:.0%}" for load in loads[:8]) + (" ..." if len(loads) > 8 else "")
    mean = sum(loads) / len(loads)
    return f"load {mean:.0%} on average ({each}), to be held at {target_load:.0%}"


def newest(found: Iterable[Migration]) -> list[Migration]:
    """The last migrations of all ingresses, the newest first."""
    return heapq.nlargest(SHOWN_EVENTS, found, key=lambda one: one.at_unix_s)


def longest_history(reports: Sequence[IngressReport]) -> list[ScaleDecision]:
    """Every ingress notices the same changes of targets: those of the one that has watched the longest, the newest
    first."""
    if not reports:
        return []
    return min(reports, key=lambda one: one.started_unix_s).scale[::-1][:SHOWN_EVENTS]


def merged_usage(reports: Sequence[IngressReport]) -> list[KeyUsage]:
    """The usage of each key over all ingresses."""
    return summed(usage for report in reports for usage in report.keys)[:SHOWN_KEYS]


def explained(records: Iterable[RequestRecord]) -> list[ExplainedRecord]:
    """The slowest of the records, each with its sentence."""
    slowest = heapq.nlargest(SHOWN_REQUESTS, records, key=lambda one: one.total_s)
    return [ExplainedRecord(sentence(record), record) for record in slowest]


def without_lists(report: IngressReport) -> IngressReport:
    """What the list of ingresses shows: the rest is merged."""
    return msgspec.structs.replace(report, migrations=[], scale=[], keys=[], slowest=[])
