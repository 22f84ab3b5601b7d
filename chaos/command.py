"""`python -m chaos`: from the flags to the exit status.

    look at the fleet -> every request undisturbed -> waves, or a closed loop -> look again -> report

Whatever ends it (Ctrl-C, a fleet that stays broken), what was stopped is undone and what was measured is reported.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack

from chaos import report
from chaos.analysis import Findings, analyze, first_difference, passed
from chaos.client import ChaosClient, failures, open_client
from chaos.fault_injector import FaultInjector
from chaos.fault_target import FaultTarget, TargetUnreachable, find_ray
from chaos.fleet import ENGINE, INGRESS, Fleet, describe
from chaos.options import IN_CLOSED_LOOP, BadOptions, ChaosOptions, Fault, read
from chaos.procs import NoEngineProcess
from chaos.request_spec import RequestRules, RequestSpec, draw_requests
from chaos.rolling import Rolling
from chaos.rounds import FleetNotRecovered, Rounds, WriteLine
from chaos.sampling import NoFaultTime
from chaos.service import Service
from serve_app.cli.serve_api import StatusUnknown

SETTLE_S = 15.0
"""Ray publishes metrics every ten seconds; a log line and a freed slot take less."""

LOG_LINES_SPARE = 2000
"""Lines of other requests, probes and warnings that may stand among ours at the end of an ingress' log."""


def run(given: argparse.Namespace, write_line: WriteLine) -> int:
    """The whole command. 0: the promise held; 1: it did not, or could not be tried; 2: a wrong command line."""
    try:
        options = read(given)
        return asyncio.run(_until_interrupted(options, write_line))
    except BadOptions as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (StatusUnknown, TargetUnreachable, NoFaultTime) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


async def _until_interrupted(options: ChaosOptions, write_line: WriteLine) -> int:
    findings = Findings()
    work = asyncio.create_task(ChaosRun(options, findings, write_line).run(), name="chaos")
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, _interrupt, work, number)
    try:
        await work
    except asyncio.CancelledError:
        findings.problems.append("interrupted: this is what was measured until then")
    analysis = analyze(findings, options.streams if options.requests is None else options.requests)
    for line in report.lines(options, findings, analysis):
        write_line(line)
    if options.json_file is not None:
        options.json_file.write_bytes(report.as_json(options, findings, analysis))
        write_line(f"everything is in {options.json_file}")
    return 0 if passed(analysis, findings) else 1


def _interrupt(work: asyncio.Task[None], number: signal.Signals) -> None:
    """The first one ends the run in order; the next one is the shell's again."""
    work.cancel()
    asyncio.get_running_loop().remove_signal_handler(number)


class ChaosRun:
    """What a run goes through, whatever its fault."""

    def __init__(self, options: ChaosOptions, findings: Findings, write_line: WriteLine) -> None:
        self._options = options
        self._findings = findings
        self._write_line = write_line
        self._service = Service(options.dashboard, options.application)

    async def run(self) -> None:
        """Raises `BadOptions`, `StatusUnknown` and `TargetUnreachable` before anything was done to anybody."""
        options = self._options
        fleet = await asyncio.to_thread(self._service.fleet)
        async with AsyncExitStack() as stack:
            target = await stack.enter_async_context(
                FaultTarget(find_ray(options.ray_address, fleet), options.application)
            )
            client = await stack.enter_async_context(open_client(options))
            await self._check(target, fleet)
            specs = draw_requests(await self._rules(client), options.distinct_requests)
            await self._run_undisturbed(client, specs)
            before = await self._counted(self._service.migrations)
            try:
                await self._run_disturbed(client, target, specs, fleet)
            except (FleetNotRecovered, StatusUnknown, TargetUnreachable, NoFaultTime) as error:
                self._findings.problems.append(str(error))
            await self._collect(client, target, before)

    async def _check(self, target: FaultTarget, fleet: Fleet) -> None:
        engines, fault = fleet.running(ENGINE), self._options.fault
        if not engines:
            raise BadOptions(f"no engine replica runs (engines: {fleet.states(ENGINE)}): wait until the service is up")
        if self._options.min_up is not None and self._options.min_up > len(engines):
            raise BadOptions(f"--min-up {self._options.min_up}: only {len(engines)} engine replicas run")
        if fault not in IN_CLOSED_LOOP:
            try:
                await target.processes(fault.value, engines[0])
            except NoEngineProcess:
                other = "kill" if fault is Fault.KILL_ENGINE else "cut"
                raise BadOptions(
                    f"--fault {fault.value}: this engine has no process of its own (the fake one lives in its "
                    f"replica's); --fault {other} does to the replica what this does to an engine"
                ) from None
        if len(engines) == 1 and self._options.requests is None:
            self._write_line("one engine replica: nobody can stand in for it, its requests wait for its restart")
        self._write_line(f"engines: {describe(engines)}")

    async def _rules(self, client: ChaosClient) -> RequestRules:
        options = self._options
        model = options.model or await client.model()
        return RequestRules(
            model,
            options.apis,
            options.kinds,
            options.tokens,
            options.seed,
            streams_only=options.requests is None,
            long_tokens=options.long_tokens,
        )

    async def _run_undisturbed(self, client: ChaosClient, specs: list[RequestSpec]) -> None:
        concurrency = self._options.concurrency
        if self._options.requests is not None:
            concurrency = max(1, concurrency // 8)  # a fleet that is to be seen growing must not grow before
        self._findings.undisturbed.update(await client.send_all(specs, concurrency, "calm"))
        failed = failures(self._findings.undisturbed.values())
        if failed:
            one = failed[0]
            raise BadOptions(
                f"without any fault {len(failed)} of {len(specs)} requests fail, the first ({one.spec.api.value} "
                f"{one.spec.kind.value}) with {one.error}: {one.body[:300]!r}. "
                "See to the service, or choose other --apis"
            )
        tokens = sum(one.answer.output_tokens for one in self._findings.undisturbed.values())
        self._write_line(f"undisturbed: {len(specs)} different requests, {tokens:,} tokens, all finished")

    async def _run_disturbed(
        self, client: ChaosClient, target: FaultTarget, specs: list[RequestSpec], fleet: Fleet
    ) -> None:
        if self._options.requests is not None:
            await Rolling(self._options, specs, client, self._service, self._findings, self._write_line).run()
            return
        expected_counts = {name: len(fleet.running(name)) for name in (ENGINE, INGRESS)}
        async with FaultInjector(target, self._options.slow_s) as injector:
            rounds = Rounds(
                self._options, specs, client, self._service, target, injector, self._findings, self._write_line
            )
            await rounds.run(expected_counts)

    async def _collect(self, client: ChaosClient, target: FaultTarget, before: int | None) -> None:
        """Who was hit, what was counted, what is left, and whether what differs differs without a fault too."""
        lines = LOG_LINES_SPARE + 2 * len(self._findings.streams)
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + SETTLE_S
        while True:
            await self._read_log(lines, client.prefix)
            await self._read_unfinished(target)
            after = await self._counted(self._service.migrations)
            self._findings.migrations = None if before is None or after is None else after - before
            logged = sum(one.migrations for one in self._findings.access.values())
            details = self._findings.migrations is None or self._findings.migrations >= logged
            if (details and not self._findings.unfinished) or loop.time() > deadline_s:
                break
            await asyncio.sleep(1.0)
        await self._repeat_differing(client)

    async def _read_log(self, lines: int, prefix: str) -> None:
        access, unread = await asyncio.to_thread(self._service.access_lines, lines)
        for replica in unread:
            self._note_unavailable(f"the access log of {replica}")
        ids = {one.recording.request_id for one in self._findings.streams}
        self._findings.access = {name: line for name, line in access.items() if name in ids and name.startswith(prefix)}

    async def _read_unfinished(self, target: FaultTarget) -> None:
        try:
            self._findings.unfinished = sum(client.unfinished for client in await target.unfinished_requests())
        except TargetUnreachable as error:
            self._findings.unfinished = None
            self._note_unavailable(f"the replicas' unfinished work: {error}")

    async def _counted(self, count: Callable[[], int]) -> int | None:
        try:
            return await asyncio.to_thread(count)
        except StatusUnknown as error:
            self._note_unavailable(f"the metrics: {error}")
            return None

    def _note_unavailable(self, what: str) -> None:
        if what not in self._findings.unavailable:
            self._findings.unavailable.append(what)

    async def _repeat_differing(self, client: ChaosClient) -> None:
        undisturbed = self._findings.undisturbed
        recording = [one.recording for one in self._findings.streams if one.recording.finished]
        different = [one.spec for one in recording if first_difference(undisturbed[one.spec.number].answer, one.answer)]
        suspects = {spec.number: spec for spec in different}
        again = await client.send_all(suspects.values(), self._options.concurrency, "again")
        self._findings.unstable |= {
            number for number, one in again.items() if first_difference(undisturbed[number].answer, one.answer)
        }
