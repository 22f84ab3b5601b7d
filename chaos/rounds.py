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
from chaos.analysis import Findings, Streamed, Struck, longest_silence_s, where_they_part
from chaos.changes import Change
from chaos.fault_injector import FaultInjector
from chaos.fault_target import Aim, FaultTarget, TargetUnreachable
from chaos.fleet import ENGINE, Fleet, Replica
from chaos.load import Load
from chaos.options import ENDS_REPLICA, Fault, Options
from chaos.request_spec import RequestSpec
from chaos.sampling import Moment, Wave
from chaos.service import Service
from chaos.stream import Recording
from serve_app.cli.serve_status import StatusUnknown

Say = Callable[[str], None]

POLL_S = 0.5
SPREAD_S = 1.0
"""Over how long the streams of a wave start: a fault then meets them at different tokens."""


class NotWhole(Exception):
    """The fleet has not come back to what it was."""


class Rounds:
    """One run in waves. What it sees goes to `findings` as it happens."""

    def __init__(
        self,
        options: Options,
        asks: Sequence[RequestSpec],
        load: Load,
        service: Service,
        reach: FaultTarget,
        striker: FaultInjector,
        findings: Findings,
        say: Say,
    ) -> None:
        self._options = options
        self._asks = asks
        self._load = load
        self._service = service
        self._reach = reach
        self._striker = striker
        self._findings = findings
        self._say = say
        self._lost: set[str] = set()
        """Whom the fleet must do without."""

    async def run(self, like: Mapping[str, int]) -> None:
        """All waves, over a fleet of so many replicas of each deployment. Raises `NotWhole`."""
        options = self._options
        waves = sampling.plan_waves(options.streams, options.concurrency, options.faults, options.seed)
        began_s = asyncio.get_running_loop().time()
        for wave in waves:
            again = await self._wave(wave, like)
            passed_s = asyncio.get_running_loop().time() - began_s
            self._say(f"{passed_s:7.1f} s  wave {wave.number + 1:>3}/{len(waves)}  {self._told(wave)}{again}")
        if options.min_up is not None:
            again_s = await self._until("whole", lambda fleet: fleet.is_whole(like, frozenset(self._lost)))
            self._findings.whole_again_s.append(again_s)

    async def _wave(self, wave: Wave, like: Mapping[str, int]) -> str:
        """Returns how long it took until the next one may begin, in words."""
        if not wave.struck:
            await self._streams(wave, None, asyncio.Event())
            return ""
        fleet = await asyncio.to_thread(self._service.fleet)
        victim, aim = await self._victim(wave, fleet)
        expected = {number: heard.answer for number, heard in self._findings.undisturbed.items()}
        moment = sampling.choose_moment(wave, self._asks, expected, self._options.at_token, self._options.seed)
        reached = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            strike = group.create_task(self._strike(wave, moment, reached, victim, aim))
            await self._streams(wave, moment, reached)
            reached.set()  # the stream may have failed before: then the fault comes late, and says so
            await strike
        await self._striker.settle()
        self._lost |= self._gone(fleet, victim)
        if (least := self._options.min_up) is not None:
            again_s = await self._until(f"of {least} engines", lambda fleet: self._up(fleet) >= least)
            return f" | {least} engines up after {again_s:.1f} s"
        again_s = await self._until("whole", lambda fleet: fleet.is_whole(like, frozenset(self._lost)))
        self._findings.whole_again_s.append(again_s)
        return f" | whole again after {again_s:.1f} s"

    def _up(self, fleet: Fleet) -> int:
        return sum(one.replica_id not in self._lost for one in fleet.running(ENGINE))

    async def _victim(self, wave: Wave, fleet: Fleet) -> tuple[Replica, Aim | None]:
        running = {one.replica_id: one for one in fleet.running(ENGINE) if one.replica_id not in self._lost}
        if not running:
            raise NotWhole("no engine replica runs")
        victim = running[sampling.choose_replica(list(running), wave.number, self._options.seed)]
        if self._options.fault is Fault.UPGRADE:
            return victim, None
        return victim, await self._reach.aim(self._options.fault.value, victim)

    def _gone(self, fleet: Fleet, victim: Replica) -> frozenset[str]:
        """Whom the fleet must be whole without."""
        if self._options.fault is Fault.UPGRADE:
            return frozenset(one.replica_id for one in fleet.replicas)
        return frozenset({victim.replica_id} if self._options.fault in ENDS_REPLICA else ())

    async def _streams(self, wave: Wave, moment: Moment | None, reached: asyncio.Event) -> None:
        delays_s = sampling.start_delays_s(wave, SPREAD_S, self._options.seed)

        async def one(stream: int, delay_s: float) -> None:
            await asyncio.sleep(delay_s)

            def on_text(characters: int) -> None:
                if moment is not None and stream == moment.stream and characters >= moment.characters:
                    reached.set()

            ask = sampling.ask_of(stream, self._asks)
            heard = await self._load.ask(ask, str(stream), on_text)
            self._findings.streams.append(Streamed(stream, wave.number, heard))

        async with asyncio.TaskGroup() as group:
            for offset in range(wave.count):
                group.create_task(one(wave.first + offset, delays_s[offset]))

    async def _strike(
        self, wave: Wave, moment: Moment, reached: asyncio.Event, victim: Replica, aim: Aim | None
    ) -> None:
        await reached.wait()
        at_s, error = asyncio.get_running_loop().time(), ""
        try:
            if aim is None:
                label = f"{self._load.prefix}-{wave.number}"
                await asyncio.to_thread(self._service.change, Change.UPGRADE, label)
            else:
                await self._striker.strike(self._options.fault, aim)
        except (TargetUnreachable, StatusUnknown) as failed:
            error = str(failed)
        process = f"pid {', '.join(str(one.pid) for one in aim.procs)} on {victim.node_ip}" if aim else "all replicas"
        replica_id = victim.replica_id if aim else ""
        fault = self._options.fault.value
        self._findings.struck.append(
            Struck(wave.number, fault, replica_id, process, moment.token, moment.stream, at_s, time.time(), error)
        )

    async def _until(self, what: str, holds: Callable[[Fleet], bool]) -> float:
        """Wait until it holds of the fleet, and the endpoint is healthy. Returns the seconds since the last fault."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        since_s = max((one.at_s for one in self._findings.struck if not one.error), default=began_s)
        seen = "nothing: the dashboard does not answer"
        while loop.time() - began_s < self._options.recover_s:
            try:
                fleet = await asyncio.to_thread(self._service.fleet)
            except StatusUnknown as error:
                seen = f"nothing: {error}"
            else:
                seen = f"engines {fleet.states(ENGINE)}"
                if holds(fleet) and await self._load.is_healthy():
                    return loop.time() - since_s
            await asyncio.sleep(POLL_S)
        raise NotWhole(
            f"{self._options.recover_s:g} s after the wave the fleet is not {what} again ({seen}); "
            "give it longer with --recover-s, or see what its replicas wait for"
        )

    def _told(self, wave: Wave) -> str:
        heard = [one.heard for one in self._findings.streams if one.wave == wave.number]
        finished = [one for one in heard if one.finished]
        same = [one for one in finished if self._is_same(one)]
        silence_s = max((longest_silence_s(one) or 0.0 for one in heard), default=0.0)
        line = f"{len(finished)} of {wave.count} finished, {len(same)} same, longest silence {silence_s:.2f} s"
        struck = next((one for one in self._findings.struck if one.wave == wave.number), None)
        if struck is None:
            return f"no fault | {line}"
        what = (
            f"{struck.fault} {struck.replica_id} ({struck.process}) at token {struck.token} of stream {struck.stream}"
        )
        if struck.error:
            return f"{what} NOT MADE: {struck.error} | {line}"
        return f"{what} | {line}"

    def _is_same(self, heard: Recording) -> bool:
        calm = self._findings.undisturbed[heard.ask.number]
        return not where_they_part(calm.answer, heard.answer)
