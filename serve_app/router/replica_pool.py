"""The connections of one ingress to the engine replicas: found, read, watched and closed.

A connection carries every new token of this ingress' attempts on that replica, and the replica's load. It is lost when
it breaks, when a frame is missing, or when nothing comes for `connection_silence_s`. Its attempts then run elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial

from serve_app.protocol.errors import EngineDead, NoReplica, OtherVersion, ReplicaLost, WrongReplica
from serve_app.protocol.liveness import RecentPeak
from serve_app.protocol.messages import Frame, ReplicaInfo, TokenDelta
from serve_app.router.admission import start_wait
from serve_app.router.attempts import (
    WATCH_PERIOD_S,
    DispatcherLimits,
    End,
    ReplicaConnection,
    ReplicaState,
    Transport,
    discovery_period_s,
)
from serve_app.router.departures import (
    MOVES_PER_CHECK,
    Departures,
    FindDepartures,
    must_move,
    no_departures,
    usable,
)
from serve_app.router.fleet_state import FleetFacts
from serve_app.router.routing import ReplicaFacts
from serve_app.router.wake import Spawn, Wake

logger = logging.getLogger(__name__)

LATENESS_MEMORY_S = 10.0
"""A scraper comes about as often."""

FindIncompatibility = Callable[[ReplicaInfo], str | None]
"""Why nothing may be sent to a replica, whatever its state; None where it may be used."""


class ReplicaPool:
    """Finds and follows the replicas. `spawn` runs a coroutine as a task of the owner, `on_deltas` gets each frame's
    tokens, `on_change` is called when replicas came, `incompatibility` says which replicas must get nothing,
    `find_departures` which nodes are about to go."""

    def __init__(
        self,
        transport: Transport,
        limits: DispatcherLimits,
        spawn: Spawn,
        on_deltas: Callable[[Sequence[TokenDelta]], None],
        on_change: Callable[[], None],
        incompatibility: FindIncompatibility = lambda _info: None,
        find_departures: FindDepartures = no_departures,
    ) -> None:
        self._transport = transport
        self._departures = Departures(find_departures, self.connections)
        self._limits = limits
        self._spawn = spawn
        self._on_deltas = on_deltas
        self._on_change = on_change
        self._incompatibility = incompatibility
        self._refused: dict[str, str] = {}
        self._connections: dict[str, ReplicaConnection] = {}
        self._last: ReplicaConnection | None = None
        self._last_up_s = 0.0
        self._late = RecentPeak(LATENESS_MEMORY_S)
        self._changed = asyncio.Event()
        self._rediscover = asyncio.Event()
        self._wake = Wake(transport, limits, spawn, self._rediscover.set, self._notify_change)

    def start(self) -> None:
        """Start to look for replicas."""
        self._last_up_s = asyncio.get_running_loop().time()
        self._spawn(self._discover(), "pool discovery")
        self._spawn(self._watch(), "pool watch")
        self._spawn(self._departures.watch(), "departures")

    def __getitem__(self, replica_id: str) -> ReplicaConnection:
        return self._connections[replica_id]

    def up(self) -> list[ReplicaFacts]:
        """The replicas that can take a request now."""
        return [connection.facts() for connection in self.taking_work()]

    def taking_work(self) -> list[ReplicaConnection]:
        """The connections to the replicas that can take a request now."""
        up = [connection for connection in self._connections.values() if connection.takes_work]
        return usable(up, asyncio.get_running_loop().time())

    def by_state(self) -> Mapping[ReplicaState, int]:
        """How many replicas are known in each state."""
        states = Counter(connection.state for connection in self._connections.values())
        return {one: states[one] for one in ReplicaState} | {ReplicaState.REFUSED: len(self._refused)}

    def lateness_s(self) -> float:
        """How late a frame came at worst in the last ten seconds, or is by now."""
        now_s = asyncio.get_running_loop().time()
        overdue = (one.lateness_s(now_s) for one in self._connections.values())
        return max(self._late.value(now_s), *overdue, 0.0)

    def connections(self) -> list[ReplicaConnection]:
        """The connections to all replicas that are not refused."""
        return list(self._connections.values())

    def attempts(self) -> int:
        """How many attempts of this ingress are at a replica."""
        return sum(len(connection.attempts) for connection in self._connections.values())

    def last_room(self, max_queued_requests: int) -> int:
        """How many attempts the last replica that was found may hold; 0 if none was."""
        return 0 if self._last is None else self._last.room(max_queued_requests)

    def no_replica(self, what: str) -> NoReplica:
        """The error for a request that no replica can take, for this reason."""
        fleet = self.fleet()
        retry_after_s, measured = start_wait(fleet.start_s, fleet.elapsed_s or 0.0)
        return NoReplica(what, retry_after_s, measured=measured)

    def fleet(self) -> FleetFacts:
        """Whether there is an engine, or about when there will be one."""
        is_up, last = bool(self.taking_work()), self._last
        facts = self._wake.facts(is_up=is_up, start_s=None if last is None else last.capacity.start_s)
        down_s = asyncio.get_running_loop().time() - self._last_up_s
        return facts if is_up or facts.may_sleep else replace(facts, elapsed_s=down_s)

    def note_failed_starts(self, reason: str) -> None:
        """Engines fail to start. Whoever waits for one, where none is up, waits no longer."""
        if not self.taking_work():
            self._wake.give_up(reason)

    def waits_for(self) -> str:
        """What a request waits for where it has asked for an engine; else empty."""
        return "" if self.taking_work() or not self._limits.may_sleep else self.fleet().sentence()

    @property
    def refused(self) -> dict[str, str]:
        """The reasons why some replicas get nothing, by replica id."""
        return dict(self._refused)

    async def wait_for_one(
        self,
        timeout_s: float,
        among: Callable[[], Collection[ReplicaConnection]] | None = None,
        *,
        patient: bool = True,
    ) -> None:
        """Return when a replica is up, and among these. Raises `NoReplica` after `timeout_s`; unless `patient`, raises
        `OtherVersion` as soon as all replicas are refused. Where there may be no engine, one is asked for."""
        found = among or self.taking_work
        if found():
            return
        try:
            async with asyncio.timeout(timeout_s):
                with self._wake.wanted():
                    await self._until_up(found, patient=patient)
        except TimeoutError:
            raise self.no_replica(f"waited {timeout_s:.0f} s") from None

    async def _until_up(self, found: Callable[[], Collection[ReplicaConnection]], *, patient: bool) -> None:
        while not found():
            if self._wake.failure:
                raise self.no_replica(self._wake.failure)
            if self._refused and not self._connections and not patient:
                raise OtherVersion(next(iter(self._refused.values())))
            self._changed.clear()
            await self._changed.wait()

    def serves(self, replica_id: str) -> bool:
        """Whether this replica takes work."""
        connection = self._connections.get(replica_id)
        return connection is not None and connection.takes_work

    def cordon(self, connection: ReplicaConnection, *, deregistered: bool) -> None:
        """Send no new attempt to the replica until it reports again that it takes work."""
        self._drain(connection)
        connection.deregistered = connection.deregistered or deregistered
        if not deregistered:
            # A replica that refuses attempts and is still listed would be tried again and again, as fast as it answers.
            self._rediscover.set()

    # ---- finding -----------------------------------------------------------------------------------------------------

    async def _discover(self) -> None:
        while True:
            self._rediscover.clear()
            try:
                infos, complete = await self._transport.replicas()
            except ReplicaLost as error:
                logger.debug("cannot list the replicas", extra={"error": str(error)})
            else:
                self._reconcile(infos, complete=complete)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(discovery_period_s(len(self._connections))):
                    await self._rediscover.wait()

    def _reconcile(self, infos: Sequence[ReplicaInfo], *, complete: bool) -> None:
        seen = set()
        for info in infos:
            seen.add(info.replica_id)
            if self._is_refused(info):
                continue
            connection = self._connections.get(info.replica_id)
            if connection is None:
                connection = ReplicaConnection(info.replica_id, info.load, info.capacity)
                self._connections[info.replica_id] = connection
                connection.task = self._spawn(self._follow(connection), f"connection {info.replica_id}")
            connection.capacity, connection.info = info.capacity, info
            self._departures.mark(connection)
            self._last = connection
            if info.load.draining:
                self._drain(connection)
            else:
                connection.draining_since_s, connection.deregistered = None, False
            self._notify_change()
        if complete:
            self._refused = {name: why for name, why in self._refused.items() if name in seen}
        for connection in list(self._connections.values()):
            if complete and connection.replica_id not in seen:
                # Serve has removed it from routing: it is draining. Our open call counts as a request there, so it
                # must end as soon as nothing needs it, or the replica would wait until its deadline.
                self._drain(connection)
                connection.deregistered = True
            if connection.draining and not connection.attempts and connection.task is not None:
                connection.task.cancel()

    def _is_refused(self, info: ReplicaInfo) -> bool:
        why = self._incompatibility(info)
        if why is None:
            return False
        if info.replica_id not in self._refused:
            logger.error("nothing is sent to a replica", extra={"replica": info.replica_id, "reason": why})
            self._refused[info.replica_id] = why
            self._notify_change()
        return True

    @staticmethod
    def _drain(connection: ReplicaConnection) -> None:
        if connection.draining_since_s is None:
            connection.draining_since_s = asyncio.get_running_loop().time()

    def _notify_change(self) -> None:
        self._changed.set()
        self._on_change()

    # ---- following ---------------------------------------------------------------------------------------------------

    async def _follow(self, connection: ReplicaConnection) -> None:
        how = End.CUT
        try:
            await self._transport.follow(connection.replica_id, partial(self._on_frame, connection))
        except (ReplicaLost, WrongReplica, EngineDead) as error:
            how = connection.end_by(error)
            logger.warning(
                "lost a replica", extra={"replica": connection.replica_id, "how": how.value, "error": str(error)}
            )
        finally:
            self._drop(connection, how)

    def _on_frame(self, connection: ReplicaConnection, frame: Frame) -> None:
        if frame.frame_number != connection.frame_number + 1:
            raise ReplicaLost(f"frame {frame.frame_number} came after {connection.frame_number}")
        connection.frame_number = frame.frame_number
        now_s = asyncio.get_running_loop().time()
        if (late_s := connection.lateness_s(now_s)) > 0:
            self._late.add(late_s, now_s)
        connection.last_frame_s = now_s
        connection.load = frame.load
        if frame.cache is not None:
            connection.cache.apply(frame.cache)
        if frame.load.draining:
            self._drain(connection)
        if not connection.up:
            connection.up = True
            self._wake.note_up()
            self._notify_change()
        if frame.deltas:
            self._on_deltas(frame.deltas)

    def _drop(self, connection: ReplicaConnection, how: End) -> None:
        connection.up = False
        if self._connections.get(connection.replica_id) is connection:
            del self._connections[connection.replica_id]
        connection.end_all(how)
        self._rediscover.set()

    # ---- watching ----------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(WATCH_PERIOD_S)
            if self.taking_work():
                self._last_up_s = loop.time()
            for connection in list(self._connections.values()):
                self._check_connection(connection, loop.time())

    def _check_connection(self, connection: ReplicaConnection, now_s: float) -> None:
        silence_s = connection.clock.observe(now_s, connection.frame_number)
        if silence_s >= self._limits.connection_silence_s:
            logger.warning(
                "a replica is silent", extra={"replica": connection.replica_id, "silence_s": round(silence_s, 1)}
            )
            # Attempts must not wait for the close, which needs the other side.
            self._drop(connection, End.CUT)
            if connection.task is not None:
                connection.task.cancel()
            return
        since_s = connection.draining_since_s
        is_over = since_s is not None and now_s - since_s >= self._limits.drain_timeout_s
        others = self.taking_work() if is_over or must_move(connection, now_s) else []
        if any(one is not connection and not must_move(one, now_s) for one in others):
            connection.end_all(End.MOVED, MOVES_PER_CHECK)
