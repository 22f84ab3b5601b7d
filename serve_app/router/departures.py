"""Nodes that are about to go, and what that means for their replicas.

Ray says which nodes are being drained, and until when they stay (`node_drain.py`): before a preemption, before the
autoscaler takes a node away, or because somebody asked for it (`python -m serve_app leave`). Serve then starts
successors elsewhere and stops the replicas when these are up, or when the drain timeout no longer fits before the
deadline. That may be minutes later, and it tells ingresses nothing before. So here:

* **New requests** go to other replicas at once. To one that leaves only where no other takes work, or none has a free
  slot, and then only while enough time is left for it to be worth the prefill.
* **Running ones** go on where they are, and move shortly before the deadline, while another replica takes work. Where
  no deadline is known they stay until Serve stops the replica, and then have the drain timeout.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence

from serve_app.router.attempts import WATCH_PERIOD_S, ReplicaConnection

logger = logging.getLogger(__name__)

LOOK_PERIOD_S = 1.0
"""How often Ray is asked. One small call from each ingress."""

MOVES_PER_CHECK = 8
"""How many attempts leave a replica at a time: their prefill elsewhere competes with what runs there."""

MARGIN_S = 10.0
"""The last attempts have moved so long before the deadline. Nodes' clocks differ, and who ends a node may be early."""

WORTH_IT_S = 30.0
"""A new request is sent to a replica that leaves only if it can stay so long."""

FindDepartures = Callable[[], Awaitable[Mapping[str, float]]]
"""The nodes that are being drained, by id, and for how many more seconds they stay (`math.inf`: no deadline)."""


async def no_departures() -> Mapping[str, float]:
    """For replicas that run on no nodes of Ray's."""
    return {}


class Departures:
    """Marks the connections to replicas whose node leaves. `connections` gives them all."""

    def __init__(self, find: FindDepartures, connections: Callable[[], Sequence[ReplicaConnection]]) -> None:
        self._find = find
        self._connections = connections
        self._leaves_at_s: dict[str, float] = {}
        """By node, on the event loop's clock."""

    async def watch(self) -> None:
        """Ask again and again."""
        while True:
            self.take(await self._find())
            await asyncio.sleep(LOOK_PERIOD_S)

    def take(self, left_s: Mapping[str, float]) -> None:
        """These nodes leave, and no others."""
        now_s = asyncio.get_running_loop().time()
        for node_id in left_s.keys() - self._leaves_at_s.keys():
            stays_s = None if math.isinf(left_s[node_id]) else round(left_s[node_id])
            logger.info("a node is about to go", extra={"node": node_id, "stays_s": stays_s})
        self._leaves_at_s = {node_id: now_s + seconds for node_id, seconds in left_s.items()}
        for connection in self._connections():
            self.mark(connection)

    def mark(self, connection: ReplicaConnection) -> None:
        """Note on a connection whether a node of its replica leaves: of several, the first ends it."""
        node_ids = connection.info.node_ids if connection.info is not None else []
        leaving = [self._leaves_at_s[node_id] for node_id in node_ids if node_id in self._leaves_at_s]
        connection.leaves_at_s = min(leaving, default=None)


def usable(connections: Sequence[ReplicaConnection], now_s: float) -> list[ReplicaConnection]:
    """Those of these connections, all to replicas that take work, to which a new request may be sent."""
    staying = [one for one in connections if one.leaves_at_s is None]
    if len(staying) == len(connections):
        return staying
    if not staying:
        return [one for one in connections if not must_move(one, now_s)] or list(connections)
    if any(one.load.unfinished < one.load.max_num_seqs for one in staying):
        return staying
    return [one for one in connections if one.leaves_at_s is None or _moves_at_s(one) - now_s >= WORTH_IT_S]


def must_move(connection: ReplicaConnection, now_s: float) -> bool:
    """Whether the attempts on a replica must begin to leave it, so that the last one has before its node goes."""
    return connection.leaves_at_s is not None and now_s >= _moves_at_s(connection)


def _moves_at_s(connection: ReplicaConnection) -> float:
    if connection.leaves_at_s is None:
        return math.inf
    return connection.leaves_at_s - MARGIN_S - WATCH_PERIOD_S * len(connection.attempts) / MOVES_PER_CHECK
