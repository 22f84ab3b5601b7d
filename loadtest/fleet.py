"""Looks at the fleet while the load runs: Ray's dashboard for replicas and decisions, Prometheus pages for the engines.

It needs nothing of Ray but two documented endpoints, `GET /api/serve/applications/` and `GET /api/prometheus/sd`. Where
there is no Ray, the server's own `/metrics` is read, as a bare vLLM serves it. What cannot be read is said once, in the
report; it never disturbs the run, which goes on in other processes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Self

import msgspec

from loadtest.address import Address, parse_url
from loadtest.errors import LoadTestError
from loadtest.fleet_view import FleetView, Mark
from loadtest.looks import Applications, Look, Targets, as_view, look_of
from loadtest.pool import Endpoint, Pool
from loadtest.prom import Gauges, read_pages
from loadtest.record import Run
from loadtest.target import get, open_endpoint

EVERY_S = 1.0
PAGES_EVERY_S = 5.0
"""Writing a metrics page costs a server some 10 ms of its loop: rarely enough not to be seen in the figures."""
SETTLE_S = 12.0
"""Ray's nodes publish their metrics every 10 s: so long may the last figures be on their way."""


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
        self._looks.append(look_of(serve, gauges))

    async def _gauges(self) -> Gauges:
        """The pages' figures; those of last time while they are fresh enough."""
        if self._looks and perf_counter_ns() - self._pages_ns < PAGES_EVERY_S * 1e9:
            return self._looks[-1].gauges
        await self._find_pages()
        pages = await asyncio.gather(*(self._page(pool, address) for pool, address in self._pages))
        self._pages_ns = perf_counter_ns()
        return read_pages(pages)

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
