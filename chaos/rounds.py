"""Faults in waves: some streams start, a replica is struck at a token, all streams end, the fleet becomes whole, again.

With `--min-up` the next wave does not wait for the whole fleet: a lost replica may still be starting when another is
struck. Each stream still meets one fault at most, because its wave has ended.

The rule: everything that takes time to find out (which replicas run, which processes they are) is found out before a
wave starts, so that between the token and the signal there is nothing to wait for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

from chaos import sampling
from chaos.analysis import Findings, InjectedFault, Streamed, first_difference, longest_silence_s
from chaos.changes import Change
from chaos.client import ChaosClient
from chaos.fault_injector import FaultInjector
from chaos.fault_target import FaultTarget, TargetProcesses, TargetUnreachable
from chaos.fleet import ENGINE, Fleet, Replica
from chaos.options import ENDS_REPLICA, ChaosOptions, Fault
from chaos.request_spec import RequestSpec
from chaos.sampling import FaultTime, Round
from chaos.service import Service
from chaos.stream import Recording
from serve_app.cli.serve_api import StatusUnknown

WriteLine = Callable[[str], None]

POLL_S = 0.5
SPREAD_S = 1.0
"""Over how long the streams of a wave start: a fault then meets them at different tokens."""


class FleetNotRecovered(Exception):
    """The fleet has not come back to what it was."""


class Rounds:
    """One run in waves. What it sees goes to `findings` as it happens."""

    def __init__(
        self,
        options: ChaosOptions,
        specs: Sequence[RequestSpec],
        client: ChaosClient,
        service: Service,
        target: FaultTarget,
        injector: FaultInjector,
        findings: Findings,
        write_line: WriteLine,
    ) -> None:
        self._options = options
        self._specs = specs
        self._client = client
        self._service = service
        self._target = target
        self._injector = injector
        self._findings = findings
        self._write_line = write_line
        self._lost: set[str] = set()
        """Whom the fleet must do without."""

    async def run(self, expected_counts: Mapping[str, int]) -> None:
        """All waves, over a fleet of so many replicas of each deployment. Raises `NotWhole`."""
        options = self._options
        rounds = sampling.plan_rounds(options.streams, options.concurrency, options.faults, options.seed)
        began_s = asyncio.get_running_loop().time()
        for round_ in rounds:
            again = await self._run_round(round_, expected_counts)
            passed_s = asyncio.get_running_loop().time() - began_s
            self._write_line(
                f"{passed_s:7.1f} s  wave {round_.number + 1:>3}/{len(rounds)}  {self._describe(round_)}{again}"
            )
        if options.min_up is not None:
            recovered_s = await self._until(
                "whole", lambda fleet: fleet.is_recovered(expected_counts, frozenset(self._lost))
            )
            self._findings.recovery_s.append(recovered_s)

    async def _run_round(self, round_: Round, expected_counts: Mapping[str, int]) -> str:
        """Returns how long it took until the next one may begin, in words."""
        if not round_.injected:
            await self._streams(round_, None, asyncio.Event())
            return ""
        fleet = await asyncio.to_thread(self._service.fleet)
        victim, processes = await self._victim(round_, fleet)
        expected = {number: recording.answer for number, recording in self._findings.undisturbed.items()}
        fault_time = sampling.choose_fault_time(
            round_, self._specs, expected, self._options.at_token, self._options.seed
        )
        reached = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            inject = group.create_task(self._inject(round_, fault_time, reached, victim, processes))
            await self._streams(round_, fault_time, reached)
            reached.set()  # the stream may have failed before: then the fault comes late, and says so
            await inject
        await self._injector.settle()
        self._lost |= self._expected_losses(fleet, victim)
        if (least := self._options.min_up) is not None:
            recovered_s = await self._until(f"of {least} engines", lambda fleet: self._up(fleet) >= least)
            return f" | {least} engines up after {recovered_s:.1f} s"
        recovered_s = await self._until(
            "whole", lambda fleet: fleet.is_recovered(expected_counts, frozenset(self._lost))
        )
        self._findings.recovery_s.append(recovered_s)
        return f" | whole again after {recovered_s:.1f} s"

    def _up(self, fleet: Fleet) -> int:
        return sum(one.replica_id not in self._lost for one in fleet.running(ENGINE))

    async def _victim(self, round_: Round, fleet: Fleet) -> tuple[Replica, TargetProcesses | None]:
        running = {one.replica_id: one for one in fleet.running(ENGINE) if one.replica_id not in self._lost}
        if not running:
            raise FleetNotRecovered("no engine replica runs")
        victim = running[sampling.choose_replica(list(running), round_.number, self._options.seed)]
        if self._options.fault is Fault.UPGRADE:
            return victim, None
        return victim, await self._target.processes(self._options.fault.value, victim)

    def _expected_losses(self, fleet: Fleet, victim: Replica) -> frozenset[str]:
        """Whom the fleet must be whole without."""
        if self._options.fault is Fault.UPGRADE:
            return frozenset(one.replica_id for one in fleet.replicas)
        return frozenset({victim.replica_id} if self._options.fault in ENDS_REPLICA else ())

    async def _streams(self, round_: Round, fault_time: FaultTime | None, reached: asyncio.Event) -> None:
        delays_s = sampling.start_delays_s(round_, SPREAD_S, self._options.seed)

        async def one(stream: int, delay_s: float) -> None:
            await asyncio.sleep(delay_s)

            def on_text(characters: int) -> None:
                if fault_time is not None and stream == fault_time.stream and characters >= fault_time.characters:
                    reached.set()

            spec = sampling.spec_of(stream, self._specs)
            recording = await self._client.send(spec, str(stream), on_text)
            self._findings.streams.append(Streamed(stream, round_.number, recording))

        async with asyncio.TaskGroup() as group:
            for offset in range(round_.count):
                group.create_task(one(round_.first + offset, delays_s[offset]))

    async def _inject(
        self,
        round_: Round,
        fault_time: FaultTime,
        reached: asyncio.Event,
        victim: Replica,
        processes: TargetProcesses | None,
    ) -> None:
        await reached.wait()
        at_s, error = asyncio.get_running_loop().time(), ""
        try:
            if processes is None:
                label = f"{self._client.prefix}-{round_.number}"
                await asyncio.to_thread(self._service.change, Change.UPGRADE, label)
            else:
                await self._injector.inject(self._options.fault, processes)
        except (TargetUnreachable, StatusUnknown) as failed:
            error = str(failed)
        process = (
            f"pid {', '.join(str(one.pid) for one in processes.procs)} on {victim.node_ip}"
            if processes
            else "all replicas"
        )
        replica_id = victim.replica_id if processes else ""
        fault = self._options.fault.value
        self._findings.injected.append(
            InjectedFault(
                round_.number, fault, replica_id, process, fault_time.token, fault_time.stream, at_s, time.time(), error
            )
        )

    async def _until(self, what: str, holds: Callable[[Fleet], bool]) -> float:
        """Wait until it holds of the fleet, and the endpoint is healthy. Returns the seconds since the last fault."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        since_s = max((one.at_s for one in self._findings.injected if not one.error), default=began_s)
        seen = "nothing: the dashboard does not answer"
        while loop.time() - began_s < self._options.recover_s:
            try:
                fleet = await asyncio.to_thread(self._service.fleet)
            except StatusUnknown as error:
                seen = f"nothing: {error}"
            else:
                seen = f"engines {fleet.states(ENGINE)}"
                if holds(fleet) and await self._client.is_healthy():
                    return loop.time() - since_s
            await asyncio.sleep(POLL_S)
        raise FleetNotRecovered(
            f"{self._options.recover_s:g} s after the wave the fleet is not {what} again ({seen}); "
            "give it longer with --recover-s, or see what its replicas wait for"
        )

    def _describe(self, round_: Round) -> str:
        recording = [one.recording for one in self._findings.streams if one.round_ == round_.number]
        finished = [one for one in recording if one.finished]
        same = [one for one in finished if self._is_same(one)]
        silence_s = max((longest_silence_s(one) or 0.0 for one in recording), default=0.0)
        line = f"{len(finished)} of {round_.count} finished, {len(same)} same, longest silence {silence_s:.2f} s"
        injected = next((one for one in self._findings.injected if one.round_ == round_.number), None)
        if injected is None:
            return f"no fault | {line}"
        at = f"token {injected.token} of stream {injected.stream}"
        what = f"{injected.fault} {injected.replica_id} ({injected.process}) at {at}"
        if injected.error:
            return f"{what} NOT MADE: {injected.error} | {line}"
        return f"{what} | {line}"

    def _is_same(self, recording: Recording) -> bool:
        undisturbed = self._findings.undisturbed[recording.spec.number]
        return not first_difference(undisturbed.answer, recording.answer)
