"""A closed loop of requests while the deployment is changed and the fleet scales out and in.

No client waits for a change. Each keeps one connection for the whole run, as long as the service does, and sends its
next request as soon as it has an answer. Every fourth client pauses between requests, so that its connection is idle
during a change. With autoscaling, an eighth of the clients send the last fifth of the requests, so that a fleet that
has scaled out can scale in while requests still come.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from contextlib import suppress

import httpx

from chaos import sampling
from chaos.analysis import Findings, StreamResult
from chaos.changes import AppliedChange, Change, change_points, is_done
from chaos.client import ChaosClient, ignore_progress, open_client
from chaos.fault_target import FaultTarget, TargetUnreachable
from chaos.fleet import ENGINE, INGRESS, Fleet, Replica
from chaos.node_drain import DrainedNode, is_empty, next_node
from chaos.options import ChaosOptions, Fault
from chaos.request_spec import RequestSpec
from chaos.rounds import WriteLine
from chaos.service import Service
from serve_app.cli.serve_api import StatusUnknown

POLL_S = 1.0
PROGRESS_S = 10.0
SCALE_IN_REQUESTS, SCALE_IN_CLIENTS = 5, 8
"""The last fifth of the requests, by an eighth of the clients."""
PAUSING_CLIENTS = 4
"""Every fourth client pauses between its requests."""


class Rolling:
    """One run as a closed loop. Results are added to `findings` as they come."""

    def __init__(
        self,
        options: ChaosOptions,
        specs: Sequence[RequestSpec],
        client: ChaosClient,
        service: Service,
        target: FaultTarget,
        findings: Findings,
        write_line: WriteLine,
    ) -> None:
        self._options = options
        self._specs = specs
        self._prefix = client.prefix
        self._service = service
        self._target = target
        self._drained: set[str] = set()
        self._findings = findings
        self._write_line = write_line
        self._requests = options.requests or 0
        self._tls = httpx.create_ssl_context()  # created once: this takes longer than a request
        self._change_points = frozenset(change_points(self._requests, len(options.changes)))
        self._due_changes = asyncio.Semaphore(0)
        self._all_sent = asyncio.Event()
        self._start_s = asyncio.get_running_loop().time()

    async def run(self) -> None:
        """Send all requests and make all changes, then wait until the fleet is as small as before."""
        engines = len((await asyncio.to_thread(self._service.fleet)).running(ENGINE))
        changes = asyncio.create_task(self._apply_changes(), name="changes")
        watchers = [asyncio.create_task(self._watch_fleet()), asyncio.create_task(self._report_progress())]
        try:
            numbers = iter(range(self._requests))
            clients = self._options.concurrency
            if self._options.fault is not Fault.ROLLING:
                await self._send_all(
                    self._first(numbers, self._requests - self._requests // SCALE_IN_REQUESTS), clients
                )
                clients = max(1, clients // SCALE_IN_CLIENTS)
            await self._send_all(numbers, clients, last=True)
            await changes
            await self._wait_for_scale_down(engines)
        finally:
            for task in (changes, *watchers):
                task.cancel()
            await asyncio.gather(changes, *watchers, return_exceptions=True)

    @staticmethod
    def _first(numbers: Iterator[int], end: int) -> Iterator[int]:
        for number in numbers:
            yield number
            if number + 1 >= end:
                return

    async def _send_all(self, numbers: Iterator[int], clients: int, *, last: bool = False) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(self._run_client(number, numbers, last=last))

    async def _run_client(self, client_number: int, numbers: Iterator[int], *, last: bool) -> None:
        # Of fewer than four clients none pauses.
        pauses = self._options.pause_s > 0 and client_number % PAUSING_CLIENTS == PAUSING_CLIENTS - 1
        rng = random.Random(f"{self._options.seed}:pause:{client_number}")
        async with open_client(self._options, self._prefix, self._tls) as client:
            for number in numbers:
                await self._send(number, client)
                if pauses:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(rng.uniform(0, self._options.pause_s)):
                            await self._all_sent.wait()
        if last:
            self._all_sent.set()

    async def _send(self, number: int, client: ChaosClient) -> None:
        if number in self._change_points:
            self._due_changes.release()
        recording = await client.send(sampling.spec_of(number, self._specs), str(number), ignore_progress)
        self._findings.streams.append(StreamResult(number, 0, recording))

    # ---- changes -----------------------------------------------------------------------------------------------------

    async def _apply_changes(self) -> None:
        """Make each change when its request is sent and the change before it is done."""
        for number, change in enumerate(self._options.changes):
            await self._due_changes.acquire()
            if self._all_sent.is_set():
                self._findings.problems.append(
                    f"{change.value}: all requests were sent before it. Give more --requests"
                )
                return
            try:
                await self._apply(number, change)
            except (StatusUnknown, TargetUnreachable) as error:
                self._findings.problems.append(f"{change.value} was not applied: {error}")

    async def _apply(self, number: int, change: Change) -> None:
        before = await asyncio.to_thread(self._service.fleet)
        drained = await self._drain(before) if change is Change.DRAIN_NODE else None
        if drained is None:
            await asyncio.to_thread(self._service.change, change, f"{self._prefix}-{number}")
        applied = AppliedChange(change, self._now_s(), asyncio.get_running_loop().time())
        self._findings.changes.append(applied)
        self._write_line(f"{applied.at_s:7.1f} s  {change.value} ({number + 1} of {len(self._options.changes)}) begins")
        while self._now_s() < applied.at_s + self._options.recover_s:
            with suppress(StatusUnknown):
                fleet = await asyncio.to_thread(self._service.fleet)
                if drained is not None and is_empty(fleet, drained.node_id):
                    self._note_empty(drained, applied)
                    return
                if drained is None and is_done(change, before, fleet):
                    return
            await asyncio.sleep(POLL_S)
        self._findings.problems.append(f"{change.value} was not done after {self._options.recover_s:g} s")

    async def _drain(self, fleet: Fleet) -> Replica:
        """Have a node drained. Returns a replica that is on it. Raises `TargetUnreachable`."""
        found = next_node(fleet, self._drained)
        if found is None:
            raise TargetUnreachable("there is no node with an engine to drain beside another one")
        await self._target.drain(found.node_id, self._options.node_deadline_s)
        self._drained.add(found.node_id)
        return found

    def _note_empty(self, drained: Replica, applied: AppliedChange) -> None:
        empty_s = self._now_s() - applied.at_s
        self._findings.drained.append(DrainedNode(drained.node_ip, self._options.node_deadline_s, empty_s))
        self._write_line(f"{self._now_s():7.1f} s  {drained.node_ip} is empty, {empty_s:.0f} s after its drain began")

    # ---- the fleet ---------------------------------------------------------------------------------------------------

    async def _watch_fleet(self) -> None:
        while True:
            try:
                fleet = await asyncio.to_thread(self._service.fleet)
            except StatusUnknown:  # temporary: a dashboard that never answers has ended the run before
                pass
            else:
                states = f"engines {fleet.states(ENGINE)}; ingresses {fleet.states(INGRESS)}"
                timeline = self._findings.timeline
                if not timeline or timeline[-1][1] != states:
                    timeline.append((self._now_s(), states))
                    self._write_line(f"{self._now_s():7.1f} s  {states}")
            await asyncio.sleep(POLL_S)

    async def _report_progress(self) -> None:
        while True:
            await asyncio.sleep(PROGRESS_S)
            results = self._findings.streams
            failed = sum(not result.recording.finished for result in results)
            self._write_line(
                f"{self._now_s():7.1f} s  {len(results):,} of {self._requests:,} requests, {failed} failed"
            )

    async def _wait_for_scale_down(self, engines: int) -> None:
        deadline_s = self._now_s() + self._options.settle_s
        while self._now_s() < deadline_s:
            fleet = await asyncio.to_thread(self._service.fleet)
            if len(fleet.running(ENGINE)) <= engines:
                return
            await asyncio.sleep(POLL_S)

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time() - self._start_s
