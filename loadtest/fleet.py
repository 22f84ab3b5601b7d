"""Looks at the fleet while the load runs: Ray's dashboard for replicas and decisions, Prometheus pages for the engines.

It needs nothing of Ray but two documented endpoints, `GET /api/serve/applications/` and `GET /api/prometheus/sd`. Where
there is no Ray, the server's own `/metrics` is read, as a bare vLLM serves it. What cannot be read is said once, in the
report; it never disturbs the run, which goes on in other processes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from time import perf_counter_ns
from typing import Self

import msgspec

from loadtest.address import Address, parse_url
from loadtest.errors import LoadTestError
from loadtest.fleet_view import FleetView, Mark, SpecDecode, Split
from loadtest.pool import Endpoint, Pool
from loadtest.prom import Gauges, read_pages
from loadtest.record import Run
from loadtest.target import get, open_endpoint

EVERY_S = 1.0
PAGES_EVERY_S = 5.0
"""Writing a metrics page costs a server some 10 ms of its loop: rarely enough not to be seen in the figures."""
SETTLE_S = 12.0
"""Ray's nodes publish their metrics every 10 s: so long may the last figures be on their way."""


class _Replica(msgspec.Struct):
    replica_id: str = ""
    state: str = ""


class _Decision(msgspec.Struct):
    timestamp_s: float = 0.0
    reason: str = ""
    prev_num_replicas: int = 0
    curr_num_replicas: int = 0


class _Scaling(msgspec.Struct):
    decisions: list[_Decision] = []


class _Deployment(msgspec.Struct):
    replicas: list[_Replica] = []
    recent_dead_replicas: list[_Replica] = []
    target_num_replicas: int | None = None
    autoscaling_detail: _Scaling | None = None


class _Application(msgspec.Struct):
    deployments: dict[str, _Deployment] = {}


class _Applications(msgspec.Struct):
    applications: dict[str, _Application] = {}


class _Targets(msgspec.Struct):
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


@dataclass(frozen=True)
class Where:
    """What to poll, and with which headers."""

    dashboard: str | None
    token: str | None
    metrics: Endpoint | None
    """The server itself, where there is no Ray."""
    headers: Mapping[str, str] = field(default_factory=dict)


class Lookout:
    """Owns the polling connections; `async with` it around the run, then ask for the `view`."""

    def __init__(self, where: Where) -> None:
        self._where = where
        self._dashboard: tuple[Pool, Address] | None = None
        self._pages: list[tuple[Pool, Address]] = []
        self._looks: list[Look] = []
        self._problem = ""
        self._pages_ns = 0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._connect()
        await self._look()
        self._task = asyncio.create_task(self._forever())
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for pool, _ in [*self._pages, *([self._dashboard] if self._dashboard else [])]:
            pool.close()

    async def _connect(self) -> None:
        where = self._where
        if where.dashboard:
            endpoint = await open_endpoint(where.dashboard)
            self._dashboard = (Pool(endpoint), endpoint.address)
        elif where.metrics is not None:
            self._pages = [(Pool(where.metrics), where.metrics.address)]

    async def _forever(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            await self._look()

    async def _look(self) -> None:
        """One sample; a failed one is noted and the next is tried."""
        try:
            serve = await self._serve()
            gauges = await self._gauges()
        except (LoadTestError, msgspec.DecodeError) as failed:
            self._problem = self._problem or str(failed)
            return
        self._looks.append(_look_of(serve, gauges))

    async def _gauges(self) -> Gauges:
        """The pages' figures; those of last time while they are fresh enough."""
        if self._looks and perf_counter_ns() - self._pages_ns < PAGES_EVERY_S * 1e9:
            return self._looks[-1].gauges
        await self._find_pages()
        pages = await asyncio.gather(*(self._page(pool, address) for pool, address in self._pages))
        self._pages_ns = perf_counter_ns()
        return read_pages(pages)

    async def _serve(self) -> _Applications:
        if self._dashboard is None:
            return _Applications()
        body = await self._ask(self._dashboard, "/api/serve/applications/")
        return msgspec.json.decode(body, type=_Applications)

    async def _find_pages(self) -> None:
        """Ray's nodes, asked for anew each time: a node may join while the run goes on."""
        if self._dashboard is None:
            return
        groups = msgspec.json.decode(await self._ask(self._dashboard, "/api/prometheus/sd"), type=list[_Targets])
        wanted = {target for group in groups for target in group.targets}
        known = {address.host_header for _, address in self._pages}
        for target in sorted(wanted - known):
            address = parse_url(target)
            self._pages.append((Pool(Endpoint(address, address.host)), address))

    async def _ask(self, dashboard: tuple[Pool, Address], path: str) -> bytes:
        pool, address = dashboard
        headers = {"Authorization": f"Bearer {self._where.token}"} if self._where.token else {}
        reply = await get(pool, address, path, headers)
        if reply.status in (401, 403):
            raise LoadTestError(
                f"Ray's dashboard at {address.url} wants a token (HTTP {reply.status})",
                "Give --ray-token or set RAY_AUTH_TOKEN",
            )
        if reply.status != 200:
            raise LoadTestError(f"{address.url}{path} answers HTTP {reply.status}", "Is --ray-dashboard right?")
        return reply.body

    async def _page(self, pool: Pool, address: Address) -> str:
        headers = self._where.headers if self._dashboard is None else {}
        try:
            reply = await get(pool, address, "/metrics", headers)
        except LoadTestError as gone:  # a node that died must not blind us to the others
            self._problem = self._problem or str(gone)
            return ""
        return reply.body.decode(errors="replace") if reply.status == 200 else ""

    async def settle(self, completed: int) -> None:
        """Wait until the engines' counters know of all answers, or long enough."""
        begin = perf_counter_ns()
        while (perf_counter_ns() - begin) / 1e9 < (SETTLE_S if self._dashboard else EVERY_S * 2):
            self._pages_ns = 0
            await self._look()
            first, last = (
                self._looks[0].gauges if self._looks else None,
                self._looks[-1].gauges if self._looks else None,
            )
            if first is None or last is None or last.get("ttft_count") is None:
                return
            if (last.get("ttft_count") or 0) - (first.get("ttft_count") or 0) >= completed:
                return
            await asyncio.sleep(EVERY_S)

    def view(self, run: Run, client_ttft_ms: float, events: Sequence[Mark]) -> FleetView:
        """The samples on the run's axis. `events` are the caller's own marks."""
        return as_view(self._looks, run, client_ttft_ms, events, self._problem)


def _look_of(serve: _Applications, gauges: Gauges) -> Look:
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
