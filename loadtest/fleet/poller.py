"""Looks at the fleet while the load runs: Ray's dashboard for replicas and decisions, Prometheus pages for the engines.

It needs nothing of Ray but two documented endpoints, `GET /api/serve/applications/` and `GET /api/prometheus/sd`. Where
there is no Ray, the server's own `/metrics` is read, as a bare vLLM serves it. What cannot be read is said once, in the
report; it never disturbs the run, which goes on in other processes.
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
from loadtest.fleet.snapshots import Applications, FleetSnapshot, Targets, build_view, take_snapshot
from loadtest.fleet.view import FleetView, Mark
from loadtest.http.address import Address, parse_url
from loadtest.http.pool import Endpoint, Pool
from loadtest.http.probe import get, open_endpoint

EVERY_S = 1.0
PAGES_EVERY_S = 5.0
"""Writing a metrics page costs a server some 10 ms of its loop: rarely enough not to be seen in the figures."""
PAGE_WITHIN_S = 4.0
SETTLE_S = 12.0
"""Ray's nodes publish their metrics every 10 s: so long may the last figures be on their way."""


@dataclass(frozen=True)
class FleetSpec:
    """Where to look at the fleet, and what to do to it."""

    dashboard: str | None = None
    token: str | None = None
    server_metrics: bool = True
    events: tuple[tuple[float, str], ...] = ()
    """Seconds after the start and a shell command, such as one that kills a replica."""


@dataclass(frozen=True)
class PollTargets:
    """What to poll, and with which headers."""

    dashboard: str | None
    token: str | None
    metrics: Endpoint | None
    """The server itself, where there is no Ray."""
    headers: Mapping[str, str] = field(default_factory=dict)


class FleetPoller:
    """Owns the polling connections; `async with` it around the run, then ask for the `view`."""

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
        # Two loops: a node that died keeps its page waiting, and that is when replicas must be watched.
        self._tasks = [
            asyncio.create_task(_every(EVERY_S, self._snapshot)),
            asyncio.create_task(_every(PAGES_EVERY_S, self._read_pages)),
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
        """One sample; a failed one is noted and the next is tried."""
        try:
            serve = await self._serve()
        except (LoadTestError, msgspec.DecodeError) as failed:
            self._problem = self._problem or str(failed)
            return
        if self._dashboard is not None and not serve.applications:
            self._problem = self._problem or "Ray's dashboard shows no Serve application"
        self._snapshots.append(take_snapshot(serve, self._values))

    async def _read_pages(self) -> None:
        """The engines' figures."""
        try:
            await self._find_pages()
        except (LoadTestError, msgspec.DecodeError) as failed:
            self._problem = self._problem or str(failed)
            return
        pages = await asyncio.gather(*(self._metrics_page(pool, address) for pool, address in self._pages.values()))
        self._values = self._metrics_reader.take(dict(zip(self._pages, pages, strict=True)))

    async def _serve(self) -> Applications:
        if self._dashboard is None:
            return Applications()
        body = await self._ask(self._dashboard, "/api/serve/applications/")
        return msgspec.json.decode(body, type=Applications)

    async def _find_pages(self) -> None:
        """Ray's nodes, asked for anew each time: a node may join while the run goes on."""
        if self._dashboard is None:
            return
        groups = msgspec.json.decode(await self._ask(self._dashboard, "/api/prometheus/sd"), type=list[Targets])
        wanted = {target for group in groups for target in group.targets}
        for gone in self._pages.keys() - wanted:
            self._pages.pop(gone)[0].close()
        for target in sorted(wanted - self._pages.keys()):
            address = parse_url(target)
            self._pages[target] = (Pool(Endpoint(address, address.host)), address)

    async def _ask(self, dashboard: tuple[Pool, Address], path: str) -> bytes:
        pool, address = dashboard
        headers = {"Authorization": f"Bearer {self._targets.token}"} if self._targets.token else {}
        reply = await get(pool, address, path, headers)
        if reply.status in (401, 403):
            raise LoadTestError(
                f"Ray's dashboard at {address.url} wants a token (HTTP {reply.status})",
                "Give --ray-token or set RAY_AUTH_TOKEN",
            )
        if reply.status != 200:
            raise LoadTestError(f"{address.url}{path} answers HTTP {reply.status}", "Is --ray-dashboard right?")
        return reply.body

    async def _metrics_page(self, pool: Pool, address: Address) -> str:
        headers = self._targets.headers if self._dashboard is None else {}
        try:
            async with asyncio.timeout(PAGE_WITHIN_S):
                reply = await get(pool, address, "/metrics", headers)
        except (LoadTestError, TimeoutError) as gone:  # a node that died must not blind us to the others
            self._problem = self._problem or (str(gone) or f"no metrics page from {address.url} in time")
            return ""
        return reply.body.decode(errors="replace") if reply.status == 200 else ""

    async def settle(self, completed: int) -> None:
        """Wait until the engines' counters know of all answers, or long enough."""
        begin = perf_counter_ns()
        while (perf_counter_ns() - begin) / 1e9 < (SETTLE_S if self._dashboard else EVERY_S * 2):
            await self._read_pages()
            await self._snapshot()
            counted = self._values.get("ttft_count")
            if counted is None or counted >= completed:
                return
            await asyncio.sleep(EVERY_S)

    def view(self, run: RunRecords, client_ttft_ms: float, events: Sequence[Mark]) -> FleetView:
        """The samples on the run's axis. `events` are the caller's own marks."""
        return build_view(self._snapshots, run, client_ttft_ms, events, self._problem)


async def _every(seconds: float, act: Callable[[], Awaitable[None]]) -> None:
    while True:
        await asyncio.sleep(seconds)
        await act()
