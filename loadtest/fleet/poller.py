"""Polls the fleet while the load runs: replicas and scaling from Ray's dashboard, engine metrics from Prometheus
pages.

It uses two documented endpoints of Ray, `GET /api/serve/applications/` and `GET /api/prometheus/sd`. Without Ray it
reads the server's own `/metrics`, as a bare vLLM serves it. The first failure is shown in the report; no failure
affects the run, which goes on in other processes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Self

import msgspec

from loadtest.api.record import RunRecords
from loadtest.errors import LoadTestError
from loadtest.fleet.prometheus import MetricsReader, MetricValues
from loadtest.fleet.snapshots import FleetSnapshot, ScrapeTargets, ServeStatus, build_view, take_snapshot
from loadtest.fleet.view import FleetView, TimelineEvent
from loadtest.http.address import Address, parse_url
from loadtest.http.pool import Endpoint, Pool
from loadtest.http.probe import get, open_endpoint

SNAPSHOT_INTERVAL_S = 1.0
PAGE_INTERVAL_S = 5.0
"""Writing a metrics page blocks a server's event loop for some 10 ms: too rarely to show in the figures."""
PAGE_TIMEOUT_S = 4.0
RAY_COUNTERS_TIMEOUT_S = 12.0
"""Ray's nodes export their metrics every 10 s, so the last values may take that long to appear."""
SERVER_COUNTERS_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class FleetSpec:
    """Where the fleet's state is read, and which commands run during the load."""

    dashboard: str | None = None
    token: str | None = None
    server_metrics: bool = True
    events: tuple[tuple[float, str], ...] = ()
    """Seconds after the start, and a shell command such as one that kills a replica."""
    access_logs: tuple[str, ...] = ()
    """Files with this project's access log, read after the run for the replica of each request."""


@dataclass(frozen=True)
class PollTargets:
    """Which servers to poll, and with which credentials."""

    dashboard: str | None
    token: str | None
    metrics: Endpoint | None
    """The server under test, where there is no Ray."""
    headers: Mapping[str, str] = field(default_factory=dict)


class FleetPoller:
    """Owns the polling connections. Enter it around the run, then call `view`."""

    def __init__(self, targets: PollTargets) -> None:
        self._targets = targets
        self._dashboard: tuple[Pool, Address] | None = None
        self._pages: dict[str, tuple[Pool, Address]] = {}
        self._snapshots: list[FleetSnapshot] = []
        self._metrics_reader = MetricsReader()
        self._values = MetricValues({})
        self._problem = ""
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        await self._connect()
        await self._read_pages()
        await self._snapshot()
        # Two loops: a dead node delays the pages, and that is when the replicas must be watched.
        self._tasks = [
            asyncio.create_task(_repeat(SNAPSHOT_INTERVAL_S, self._snapshot)),
            asyncio.create_task(_repeat(PAGE_INTERVAL_S, self._read_pages)),
        ]
        return self

    async def __aexit__(self, *exc: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for pool, _ in [*self._pages.values(), *([self._dashboard] if self._dashboard else [])]:
            pool.close()

    async def _connect(self) -> None:
        targets = self._targets
        if targets.dashboard:
            endpoint = await open_endpoint(targets.dashboard)
            self._dashboard = (Pool(endpoint), endpoint.address)
        elif targets.metrics is not None:
            address = targets.metrics.address
            self._pages = {address.host_header: (Pool(targets.metrics), address)}

    async def _snapshot(self) -> None:
        """Take one snapshot. A failure is kept for the report, and the next one is tried."""
        try:
            status = await self._serve_status()
        except (LoadTestError, msgspec.DecodeError) as failed:
            self._problem = self._problem or str(failed)
            return
        if self._dashboard is not None and not status.applications:
            self._problem = self._problem or "Ray's dashboard shows no Serve application"
        self._snapshots.append(take_snapshot(status, self._values))

    async def _read_pages(self) -> None:
        """Read the engines' metrics."""
        try:
            await self._discover_pages()
        except (LoadTestError, msgspec.DecodeError) as failed:
            self._problem = self._problem or str(failed)
            return
        pages = await asyncio.gather(*(self._metrics_page(pool, address) for pool, address in self._pages.values()))
        self._values = self._metrics_reader.update(dict(zip(self._pages, pages, strict=True)))

    async def _serve_status(self) -> ServeStatus:
        if self._dashboard is None:
            return ServeStatus()
        body = await self._get(self._dashboard, "/api/serve/applications/")
        return msgspec.json.decode(body, type=ServeStatus)

    async def _discover_pages(self) -> None:
        """Find the metrics pages of Ray's nodes. Repeated in every round, because nodes join and leave during a run."""
        if self._dashboard is None:
            return
        groups = msgspec.json.decode(await self._get(self._dashboard, "/api/prometheus/sd"), type=list[ScrapeTargets])
        wanted = {target for group in groups for target in group.targets}
        for gone in self._pages.keys() - wanted:
            self._pages.pop(gone)[0].close()
        for target in sorted(wanted - self._pages.keys()):
            address = parse_url(target)
            self._pages[target] = (Pool(Endpoint(address, address.host)), address)

    async def _get(self, dashboard: tuple[Pool, Address], path: str) -> bytes:
        pool, address = dashboard
        headers = {"Authorization": f"Bearer {self._targets.token}"} if self._targets.token else {}
        reply = await get(pool, address, path, headers)
        if reply.status in (401, 403):
            raise LoadTestError(
                f"Ray's dashboard at {address.url} requires a token (HTTP {reply.status})",
                "Give --ray-token or set RAY_AUTH_TOKEN",
            )
        if reply.status != 200:
            raise LoadTestError(f"{address.url}{path} answers HTTP {reply.status}", "Check --ray-dashboard")
        return reply.body

    async def _metrics_page(self, pool: Pool, address: Address) -> str:
        headers = self._targets.headers if self._dashboard is None else {}
        try:
            async with asyncio.timeout(PAGE_TIMEOUT_S):
                reply = await get(pool, address, "/metrics", headers)
        except (LoadTestError, TimeoutError) as gone:  # a dead node must not hide the other nodes
            self._problem = self._problem or (
                str(gone) or f"{address.url}/metrics did not answer within {PAGE_TIMEOUT_S:g} s"
            )
            return ""
        if reply.status != 200:
            self._problem = self._problem or f"{address.url}/metrics answers HTTP {reply.status}"
            return ""
        return reply.body.decode(errors="replace")

    async def wait_for_counters(self, completed: int) -> None:
        """Wait until the engines' counters include `completed` requests, or until a time limit."""
        limit_s = RAY_COUNTERS_TIMEOUT_S if self._dashboard else SERVER_COUNTERS_TIMEOUT_S
        begin = perf_counter_ns()
        while (perf_counter_ns() - begin) / 1e9 < limit_s:
            await self._read_pages()
            await self._snapshot()
            counted = self._values.get("ttft_count")
            if counted is None or counted >= completed:
                return
            await asyncio.sleep(SNAPSHOT_INTERVAL_S)

    def view(self, run: RunRecords, client_ttft_ms: float, events: Sequence[TimelineEvent]) -> FleetView:
        """The snapshots on the run's time axis, together with the caller's own `events`."""
        return build_view(self._snapshots, run, client_ttft_ms, events, self._problem)


async def _repeat(seconds: float, act: Callable[[], Awaitable[None]]) -> None:
    while True:
        await asyncio.sleep(seconds)
        await act()
