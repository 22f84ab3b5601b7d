"""`python -m chaos`: from the flags to the exit status.

    read the fleet -> send every request without a fault -> rounds, or a closed loop -> read logs and metrics -> report

Whatever ends the run (Ctrl-C, a fleet that does not recover): stopped processes do not stay stopped, and the report
has what was measured until then.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from contextlib import AsyncExitStack

from chaos import report
from chaos.analysis import Findings, analyze, first_difference, passed
from chaos.client import ChaosClient, failures, open_client
from chaos.fault_target import FaultInjector, FaultTarget, TargetUnreachable, find_ray
from chaos.fleet import ENGINE, INGRESS, Fleet, describe
from chaos.options import IN_CLOSED_LOOP, BadOptions, ChaosOptions, Fault, read
from chaos.procs import NoEngineProcess
from chaos.request_spec import RequestRules, RequestSpec, draw_requests
from chaos.rolling import Rolling
from chaos.rounds import FleetNotRecovered, Rounds, WriteLine
from chaos.sampling import NoFaultTime
from chaos.service import Service
from chaos.stream import Recording
from serve_app.cli.serve_api import StatusUnknown

SETTLE_S = 15.0
"""Longest wait for metrics and logs. Ray publishes metrics every ten seconds; the others take less."""

OTHER_LOG_LINES = 2000
"""Lines of other requests, probes and warnings that an ingress' log may have among those of this run."""


def run(given: argparse.Namespace, write_line: WriteLine) -> int:
    """The whole command. Returns 0 if the run passed, 1 if it failed or could not start, 2 for a wrong command line."""
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
        findings.problems.append("interrupted: the figures are those until then")
    analysis = analyze(findings, options.streams if options.requests is None else options.requests)
    for line in report.lines(options, findings, analysis):
        write_line(line)
    if options.json_file is not None:
        options.json_file.write_bytes(report.as_json(options, findings, analysis))
        write_line(f"wrote {options.json_file}")
    return 0 if passed(analysis, findings) else 1


def _interrupt(work: asyncio.Task[None], number: signal.Signals) -> None:
    """The first signal ends the run with a report; a second one kills the process."""
    work.cancel()
    asyncio.get_running_loop().remove_signal_handler(number)


class ChaosRun:
    """The steps of a run, with any fault."""

    def __init__(self, options: ChaosOptions, findings: Findings, write_line: WriteLine) -> None:
        self._options = options
        self._findings = findings
        self._write_line = write_line
        self._service = Service(options.dashboard, options.application)

    async def run(self) -> None:
        """Raises `BadOptions`, `StatusUnknown` and `TargetUnreachable` only before the first fault."""
        options = self._options
        fleet = await asyncio.to_thread(self._service.fleet)
        async with AsyncExitStack() as stack:
            target = await stack.enter_async_context(
                FaultTarget(find_ray(options.ray_address, fleet), options.application)
            )
            client = await stack.enter_async_context(open_client(options))
            await self._check(target, fleet)
            specs = draw_requests(await self._rules(client), options.distinct_requests)
            await self._run_baseline(client, specs)
            before = await self._migrations()
            try:
                await self._run_with_faults(client, target, specs, fleet)
            except (FleetNotRecovered, StatusUnknown, TargetUnreachable, NoFaultTime) as error:
                self._findings.problems.append(str(error))
            await self._collect(client, target, before)

    async def _check(self, target: FaultTarget, fleet: Fleet) -> None:
        engines, fault = fleet.running(ENGINE), self._options.fault
        if not engines:
            raise BadOptions(
                f"no engine replica runs (engines: {fleet.states(ENGINE)}): wait until the service has started"
            )
        if self._options.min_up is not None and self._options.min_up > len(engines):
            raise BadOptions(f"--min-up {self._options.min_up}: only {len(engines)} engine replicas run")
        if fault not in IN_CLOSED_LOOP:
            try:
                await target.processes(fault.value, engines[0])
            except NoEngineProcess:
                other = "kill" if fault is Fault.KILL_ENGINE else "cut"
                raise BadOptions(
                    f"--fault {fault.value}: this engine has no process of its own (the fake engine runs in its "
                    f"replica's); --fault {other} does the same to the replica"
                ) from None
        if len(engines) == 1 and self._options.requests is None:
            self._write_line("one engine replica: its requests cannot migrate, they wait for its restart")
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

    async def _run_baseline(self, client: ChaosClient, specs: list[RequestSpec]) -> None:
        concurrency = self._options.concurrency
        if self._options.requests is not None:
            concurrency = max(1, concurrency // 8)  # the baseline must not make the fleet scale out
        self._findings.baseline.update(await client.send_all(specs, concurrency, "baseline"))
        failed = failures(self._findings.baseline.values())
        if failed:
            first = failed[0]
            raise BadOptions(
                f"without any fault {len(failed)} of {len(specs)} requests fail, the first ({first.spec.api.value} "
                f"{first.spec.kind.value}) with {first.error}: {first.body[:300]!r}. "
                "Repair the service, or choose other --apis"
            )
        tokens = sum(recording.answer.output_tokens for recording in self._findings.baseline.values())
        self._write_line(f"baseline: {len(specs)} different requests, {tokens:,} tokens, all finished")

    async def _run_with_faults(
        self, client: ChaosClient, target: FaultTarget, specs: list[RequestSpec], fleet: Fleet
    ) -> None:
        if self._options.requests is not None:
            await Rolling(self._options, specs, client, self._service, target, self._findings, self._write_line).run()
            return
        expected_counts = {name: len(fleet.running(name)) for name in (ENGINE, INGRESS)}
        async with FaultInjector(target, self._options.slow_s) as injector:
            rounds = Rounds(
                self._options, specs, client, self._service, target, injector, self._findings, self._write_line
            )
            await rounds.run(expected_counts)

    async def _collect(self, client: ChaosClient, target: FaultTarget, before: int | None) -> None:
        """Read access logs, metrics and unfinished requests, and send again what got a different answer."""
        lines = OTHER_LOG_LINES + 2 * len(self._findings.streams)
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + SETTLE_S
        while True:
            await self._read_log(lines, client.prefix)
            await self._read_unfinished(target)
            after = await self._migrations()
            self._findings.migrations = None if before is None or after is None else after - before
            logged = sum(line.migrations for line in self._findings.access.values())
            counted = self._findings.migrations is None or self._findings.migrations >= logged
            if (counted and not self._findings.unfinished) or loop.time() > deadline_s:
                break
            await asyncio.sleep(1.0)
        await self._repeat_differing(client)

    async def _read_log(self, lines: int, prefix: str) -> None:
        access, unread = await asyncio.to_thread(self._service.access_lines, lines)
        for replica in unread:
            self._note_unavailable(f"the access log of {replica}")
        ids = {result.recording.request_id for result in self._findings.streams}
        self._findings.access = {name: line for name, line in access.items() if name in ids and name.startswith(prefix)}

    async def _read_unfinished(self, target: FaultTarget) -> None:
        try:
            self._findings.unfinished = sum(replica.unfinished for replica in await target.unfinished_requests())
        except TargetUnreachable as error:
            self._findings.unfinished = None
            self._note_unavailable(f"the replicas' unfinished requests: {error}")

    async def _migrations(self) -> int | None:
        try:
            return await asyncio.to_thread(self._service.migrations)
        except StatusUnknown as error:
            self._note_unavailable(f"the metrics: {error}")
            return None

    def _note_unavailable(self, what: str) -> None:
        if what not in self._findings.unavailable:
            self._findings.unavailable.append(what)

    async def _repeat_differing(self, client: ChaosClient) -> None:
        def differs(recording: Recording) -> bool:
            return bool(first_difference(self._findings.baseline[recording.spec.number].answer, recording.answer))

        finished = [result.recording for result in self._findings.streams if result.recording.finished]
        different = {recording.spec.number: recording.spec for recording in finished if differs(recording)}
        repeated = await client.send_all(different.values(), self._options.concurrency, "repeat")
        self._findings.unstable |= {number for number, recording in repeated.items() if differs(recording)}
