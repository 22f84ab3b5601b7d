"""Faults in rounds: some streams start, a replica gets a fault at a token, all streams end, the fleet recovers.

With `--min-up` the next round does not wait for the whole fleet: a lost replica may still be starting when another one
gets a fault. Each stream still meets one fault at most, because its round has ended.

What takes time to find out (which replicas run, which processes they have) is found out before a round starts, so that
nothing delays the fault once its token has come.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

from chaos import sampling
from chaos.analysis import Findings, InjectedFault, StreamResult, first_difference, longest_gap_s
from chaos.changes import Change
from chaos.client import ChaosClient
from chaos.fault_target import FaultInjector, FaultTarget, TargetProcesses, TargetUnreachable
from chaos.fleet import ENGINE, Fleet, Replica
from chaos.options import ENDS_REPLICA, ChaosOptions, Fault
from chaos.request_spec import RequestSpec
from chaos.sampling import FaultTime, RoundPlan
from chaos.service import Service
from chaos.stream import Recording
from serve_app.cli.serve_api import StatusUnknown

WriteLine = Callable[[str], None]

POLL_S = 0.5
SPREAD_S = 1.0
"""The streams of a round start within this time: a fault then meets them at different tokens."""


class FleetNotRecovered(Exception):
    """The fleet has fewer replicas than before."""


class Rounds:
    """One run in rounds. Results are added to `findings` as they come."""

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
        """Replicas that a fault has ended; Serve may still list them as running."""

    async def run(self, expected_counts: Mapping[str, int]) -> None:
        """Run all rounds, on this many replicas of each deployment. Raises `FleetNotRecovered`, `NoFaultTime`."""
        options = self._options
        plans = sampling.plan_rounds(options.streams, options.concurrency, options.faults, options.seed)
        start_s = asyncio.get_running_loop().time()
        for plan in plans:
            recovery = await self._run_round(plan, expected_counts)
            elapsed_s = asyncio.get_running_loop().time() - start_s
            self._write_line(
                f"{elapsed_s:7.1f} s  round {plan.number + 1:>3}/{len(plans)}  {self._describe(plan)}{recovery}"
            )
        if options.min_up is not None:
            await self._until_recovered(expected_counts)

    async def _run_round(self, plan: RoundPlan, expected_counts: Mapping[str, int]) -> str:
        """Run one round. Returns how long the fleet took to recover, as text."""
        if not plan.injected:
            await self._run_streams(plan, None, asyncio.Event())
            return ""
        fleet = await asyncio.to_thread(self._service.fleet)
        replica, processes = await self._choose_target(plan, fleet)
        expected = {number: recording.answer for number, recording in self._findings.baseline.items()}
        fault_time = sampling.choose_fault_time(plan, self._specs, expected, self._options.at_token, self._options.seed)
        reached = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            inject = group.create_task(self._inject(plan, fault_time, reached, replica, processes))
            await self._run_streams(plan, fault_time, reached)
            reached.set()  # in case the stream failed before its token
            await inject
        await self._injector.end_faults()
        self._lost |= self._expected_losses(fleet, replica)
        if (least := self._options.min_up) is not None:
            recovery_s = await self._until(f"{least} engines run", lambda fleet: self._running(fleet) >= least)
            return f" | {least} engines run after {recovery_s:.1f} s"
        return f" | recovered after {await self._until_recovered(expected_counts):.1f} s"

    def _running(self, fleet: Fleet) -> int:
        return sum(replica.replica_id not in self._lost for replica in fleet.running(ENGINE))

    async def _choose_target(self, plan: RoundPlan, fleet: Fleet) -> tuple[Replica, TargetProcesses | None]:
        running = {
            replica.replica_id: replica for replica in fleet.running(ENGINE) if replica.replica_id not in self._lost
        }
        if not running:
            raise FleetNotRecovered("no engine replica runs")
        replica = running[sampling.choose_replica(list(running), plan.number, self._options.seed)]
        if self._options.fault is Fault.UPGRADE:
            return replica, None
        return replica, await self._target.processes(self._options.fault.value, replica)

    def _expected_losses(self, fleet: Fleet, replica: Replica) -> frozenset[str]:
        """The replicas that must not run any more when the fleet has recovered."""
        if self._options.fault is Fault.UPGRADE:
            return frozenset(replica.replica_id for replica in fleet.replicas)
        return frozenset({replica.replica_id} if self._options.fault in ENDS_REPLICA else ())

    async def _run_streams(self, plan: RoundPlan, fault_time: FaultTime | None, reached: asyncio.Event) -> None:
        delays_s = sampling.start_delays_s(plan, SPREAD_S, self._options.seed)

        async def run_stream(stream: int, delay_s: float) -> None:
            await asyncio.sleep(delay_s)

            def on_text(characters: int) -> None:
                if fault_time is not None and stream == fault_time.stream and characters >= fault_time.characters:
                    reached.set()

            spec = sampling.spec_of(stream, self._specs)
            recording = await self._client.send(spec, str(stream), on_text)
            self._findings.streams.append(StreamResult(stream, plan.number, recording))

        async with asyncio.TaskGroup() as group:
            for offset in range(plan.count):
                group.create_task(run_stream(plan.first + offset, delays_s[offset]))

    async def _inject(
        self,
        plan: RoundPlan,
        fault_time: FaultTime,
        reached: asyncio.Event,
        replica: Replica,
        processes: TargetProcesses | None,
    ) -> None:
        await reached.wait()
        at_s, error = asyncio.get_running_loop().time(), ""
        try:
            if processes is None:
                label = f"{self._client.prefix}-{plan.number}"
                await asyncio.to_thread(self._service.change, Change.UPGRADE, label)
            else:
                await self._injector.inject(self._options.fault, processes)
        except (TargetUnreachable, StatusUnknown) as failed:
            error = str(failed)
        pids = ", ".join(str(proc.pid) for proc in processes.procs) if processes else ""
        self._findings.injected.append(
            InjectedFault(
                round=plan.number,
                fault=self._options.fault.value,
                replica_id=replica.replica_id if processes else "",
                process=f"pid {pids} on {replica.node_ip}" if processes else "all replicas",
                token=fault_time.token,
                stream=fault_time.stream,
                at_s=at_s,
                unix_s=time.time(),
                error=error,
            )
        )

    async def _until_recovered(self, expected_counts: Mapping[str, int]) -> float:
        """Wait for the whole fleet, and add the recovery time to the findings."""
        lost = frozenset(self._lost)
        recovery_s = await self._until(
            "the fleet has recovered", lambda fleet: fleet.is_recovered(expected_counts, lost)
        )
        self._findings.recovery_s.append(recovery_s)
        return recovery_s

    async def _until(self, what: str, holds: Callable[[Fleet], bool]) -> float:
        """Wait until the condition holds and the endpoint is healthy. Returns the seconds since the last fault."""
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        since_s = max((fault.at_s for fault in self._findings.injected if not fault.error), default=start_s)
        seen = "unknown, the dashboard does not answer"
        while loop.time() - start_s < self._options.recover_s:
            try:
                fleet = await asyncio.to_thread(self._service.fleet)
            except StatusUnknown as error:
                seen = f"unknown, {error}"
            else:
                seen = fleet.states(ENGINE)
                if holds(fleet) and await self._client.is_healthy():
                    return loop.time() - since_s
            await asyncio.sleep(POLL_S)
        raise FleetNotRecovered(
            f"not within {self._options.recover_s:g} s after the round: {what} (engines: {seen}). "
            "Give more time with --recover-s, or check what the replicas wait for"
        )

    def _describe(self, plan: RoundPlan) -> str:
        recordings = [result.recording for result in self._findings.streams if result.round == plan.number]
        finished = [recording for recording in recordings if recording.finished]
        same = [recording for recording in finished if self._is_same(recording)]
        gap_s = max((longest_gap_s(recording) or 0.0 for recording in recordings), default=0.0)
        streams = f"{len(finished)} of {plan.count} finished, {len(same)} same, longest gap {gap_s:.2f} s"
        fault = next((fault for fault in self._findings.injected if fault.round == plan.number), None)
        if fault is None:
            return f"no fault | {streams}"
        what = f"{fault.fault} {fault.replica_id} ({fault.process}) at token {fault.token} of stream {fault.stream}"
        if fault.error:
            what += f" NOT INJECTED: {fault.error}"
        return f"{what} | {streams}"

    def _is_same(self, recording: Recording) -> bool:
        baseline = self._findings.baseline[recording.spec.number]
        return not first_difference(baseline.answer, recording.answer)
