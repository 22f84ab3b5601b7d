"""A closed loop: so many requests, so many at a time, while upgrades roll through and the fleet grows and shrinks.

The rule: nothing is waited for. Each client sends its next request the moment it has its answer, whatever the replicas
are doing. The last fifth is asked by an eighth of the clients, so that a fleet that grew has reason to shrink while
requests still come.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

from serve_app.chaos import choice
from serve_app.chaos.ask import Ask
from serve_app.chaos.load import Load, each, ignore
from serve_app.chaos.options import Options
from serve_app.chaos.service import ENGINE, INGRESS, Service
from serve_app.chaos.verdict import Findings, Streamed
from serve_app.chaos.waves import Say
from serve_app.start.serve_status import StatusUnknown

LOOK_S = 1.0
TELL_S = 10.0
QUIET_SHARE, QUIET_CLIENTS = 5, 8
"""The last fifth of the requests, by an eighth of the clients."""


class Rolling:
    """One run as a closed loop. What it sees goes to `findings` as it happens."""

    def __init__(
        self, options: Options, asks: Sequence[Ask], load: Load, service: Service, findings: Findings, say: Say
    ) -> None:
        self._options = options
        self._asks = asks
        self._load = load
        self._service = service
        self._findings = findings
        self._say = say
        self._requests = options.requests or 0
        self._began_s = asyncio.get_running_loop().time()
        self._upgrades: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """All requests, then the wait for the fleet to be as large as it was before."""
        looking = asyncio.create_task(self._look(), name="replica-count")
        telling = asyncio.create_task(self._tell(), name="progress")
        engines = len((await asyncio.to_thread(self._service.fleet)).running(ENGINE))
        try:
            numbers = iter(range(self._requests))
            busy = self._requests - self._requests // QUIET_SHARE
            await each(self._until(numbers, busy), self._options.concurrency, self._one)
            await each(numbers, max(1, self._options.concurrency // QUIET_CLIENTS), self._one)
            await asyncio.gather(*self._upgrades)
            await self._until_small(engines)
        finally:
            tasks = [looking, telling, *self._upgrades]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    @staticmethod
    def _until(numbers: Iterator[int], end: int) -> Iterator[int]:
        for number in numbers:
            yield number
            if number + 1 >= end:
                return

    async def _one(self, number: int) -> None:
        if number in upgrade_points(self._requests, self._options.upgrades):
            task = asyncio.create_task(self._upgrade(len(self._upgrades)), name="upgrade")
            self._upgrades.add(task)
        heard = await self._load.ask(choice.ask_of(number, self._asks), str(number), ignore)
        self._findings.streams.append(Streamed(number, 0, heard))

    async def _upgrade(self, number: int) -> None:
        try:
            await asyncio.to_thread(self._service.upgrade, f"{self._load.prefix}-{number}")
        except StatusUnknown as error:
            self._findings.problems.append(f"an upgrade was not taken: {error}")
            return
        self._findings.upgrades_s.append(self._now_s())
        self._say(f"{self._now_s():7.1f} s  upgrade {number + 1} of {self._options.upgrades} begins")

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


def upgrade_points(requests: int, upgrades: int) -> list[int]:
    """At which requests an upgrade begins: evenly, neither first nor last. Two: at a third and at two thirds."""
    return [requests * (number + 1) // (upgrades + 1) for number in range(upgrades)]
