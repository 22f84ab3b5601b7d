"""A closed loop: so many requests, so many at a time, while an operator makes changes and the fleet grows and shrinks.

The rule: no client waits for a change. Each has one connection for the whole run, keeps it as long as the service
does, and sends its next request the moment it has its answer; every fourth rests in between, so that its connection
outlives a change. Where the fleet follows its load, the last fifth is asked by an eighth of the clients, so that a
fleet that grew has reason to shrink while requests still come.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from contextlib import suppress

import httpx

from chaos import sampling
from chaos.analysis import Findings, Streamed
from chaos.changes import Change, Made, change_points, is_done
from chaos.fleet import ENGINE, INGRESS
from chaos.load import Load, ignore, open_load
from chaos.options import Fault, Options
from chaos.request_spec import RequestSpec
from chaos.rounds import Say
from chaos.service import Service
from serve_app.cli.serve_status import StatusUnknown

LOOK_S = 1.0
TELL_S = 10.0
QUIET_SHARE, QUIET_CLIENTS = 5, 8
"""The last fifth of the requests, by an eighth of the clients."""
RESTS_EVERY = 4
"""One client in so many rests between its requests."""


class Rolling:
    """One run as a closed loop. What it sees goes to `findings` as it happens."""

    def __init__(
        self, options: Options, asks: Sequence[RequestSpec], load: Load, service: Service, findings: Findings, say: Say
    ) -> None:
        self._options = options
        self._asks = asks
        self._prefix = load.prefix
        self._service = service
        self._findings = findings
        self._say = say
        self._requests = options.requests or 0
        self._tls = httpx.create_ssl_context()  # once: it takes longer than a request
        self._points = frozenset(change_points(self._requests, len(options.changes)))
        self._due = asyncio.Semaphore(0)
        self._all_sent = asyncio.Event()
        self._began_s = asyncio.get_running_loop().time()

    async def run(self) -> None:
        """All requests and changes, then the wait for the fleet to be as large as it was before."""
        engines = len((await asyncio.to_thread(self._service.fleet)).running(ENGINE))
        changing = asyncio.create_task(self._make_changes(), name="changes")
        watching = [asyncio.create_task(self._look()), asyncio.create_task(self._tell())]
        try:
            numbers = iter(range(self._requests))
            clients = self._options.concurrency
            if self._options.fault is not Fault.ROLLING:
                await self._ask_all(self._until(numbers, self._requests - self._requests // QUIET_SHARE), clients)
                clients = max(1, clients // QUIET_CLIENTS)
            await self._ask_all(numbers, clients, last=True)
            await changing
            await self._until_small(engines)
        finally:
            for task in (changing, *watching):
                task.cancel()
            await asyncio.gather(changing, *watching, return_exceptions=True)

    @staticmethod
    def _until(numbers: Iterator[int], end: int) -> Iterator[int]:
        for number in numbers:
            yield number
            if number + 1 >= end:
                return

    async def _ask_all(self, numbers: Iterator[int], clients: int, *, last: bool = False) -> None:
        async with asyncio.TaskGroup() as group:
            for client in range(clients):
                group.create_task(self._client(client, numbers, last=last))

    async def _client(self, client: int, numbers: Iterator[int], *, last: bool) -> None:
        rests = self._options.rest_s > 0 and client % RESTS_EVERY == 0
        rng = random.Random(f"{self._options.seed}:rest:{client}")
        async with open_load(self._options, self._prefix, self._tls) as load:
            for number in numbers:
                await self._one(number, load)
                if rests:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(rng.uniform(0, self._options.rest_s)):
                            await self._all_sent.wait()
        if last:
            self._all_sent.set()

    async def _one(self, number: int, load: Load) -> None:
        if number in self._points:
            self._due.release()
        heard = await load.ask(sampling.ask_of(number, self._asks), str(number), ignore)
        self._findings.streams.append(Streamed(number, 0, heard))

    # ---- changes -----------------------------------------------------------------------------------------------------

    async def _make_changes(self) -> None:
        """Each when it is due and the one before is done."""
        for number, change in enumerate(self._options.changes):
            await self._due.acquire()
            if self._all_sent.is_set():
                self._findings.problems.append(f"{change.value}: no request was left for it. Give more --requests")
                return
            try:
                await self._make(number, change)
            except StatusUnknown as error:
                self._findings.problems.append(f"{change.value} was not made: {error}")

    async def _make(self, number: int, change: Change) -> None:
        before = await asyncio.to_thread(self._service.fleet)
        await asyncio.to_thread(self._service.change, change, f"{self._prefix}-{number}")
        made = Made(change, self._now_s(), asyncio.get_running_loop().time())
        self._findings.changes.append(made)
        self._say(f"{made.at_s:7.1f} s  {change.value} ({number + 1} of {len(self._options.changes)}) begins")
        while self._now_s() < made.at_s + self._options.recover_s:
            with suppress(StatusUnknown):
                if is_done(change, before, await asyncio.to_thread(self._service.fleet)):
                    return
            await asyncio.sleep(LOOK_S)
        self._findings.problems.append(f"{change.value} was not done after {self._options.recover_s:g} s")

    # ---- looking -----------------------------------------------------------------------------------------------------

    async def _look(self) -> None:
        while True:
            try:
                fleet = await asyncio.to_thread(self._service.fleet)
            except StatusUnknown:  # between two looks; a dashboard that never answers has ended the run before
                pass
            else:
                states = f"engines {fleet.states(ENGINE)}; ingresses {fleet.states(INGRESS)}"
                timeline = self._findings.timeline
                if not timeline or timeline[-1][1] != states:
                    timeline.append((self._now_s(), states))
                    self._say(f"{self._now_s():7.1f} s  {states}")
            await asyncio.sleep(LOOK_S)

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(TELL_S)
            done = self._findings.streams
            failed = sum(not one.heard.finished for one in done)
            self._say(f"{self._now_s():7.1f} s  {len(done):,} of {self._requests:,} requests, {failed} failed")

    async def _until_small(self, engines: int) -> None:
        deadline_s = self._now_s() + self._options.settle_s
        while self._now_s() < deadline_s:
            fleet = await asyncio.to_thread(self._service.fleet)
            if len(fleet.running(ENGINE)) <= engines:
                return
            await asyncio.sleep(LOOK_S)

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time() - self._began_s
