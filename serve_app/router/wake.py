"""Starts an engine where there is none: one pending call to the engines while requests of this ingress wait.

Serve counts calls that wait for a replica. A deployment without replicas and with a waiting call gets one at once,
whatever its policy says (`ray.serve.autoscaling_policy`, "cold start fast path"). One call for each ingress is enough,
and it is ended when no request waits any more: a client that has left must not hold an engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator

from serve_app.protocol.errors import EngineCannotStart, ReplicaLost
from serve_app.router.fleet_state import FleetFacts

logger = logging.getLogger(__name__)

REPEAT_S = 1.0
"""After an answer the ingress finds the engine within a second; it asks again then if requests still wait, because that
engine may have been one that was about to stop. A call that failed is made again as late."""

Spawn = Callable[[Coroutine[object, object, None], str], asyncio.Task[None]]


class Wake:
    """The waiting requests of one ingress, and the call that they share. `call` returns when an engine answers, and
    raises `EngineCannotStart` or `ReplicaLost`; None where there should always be one. `on_failed` is called when it
    cannot start."""

    def __init__(self, call: Callable[[], Awaitable[None]] | None, spawn: Spawn, on_failed: Callable[[], None]) -> None:
        self._call = call
        self._spawn = spawn
        self._on_failed = on_failed
        self._task: asyncio.Task[None] | None = None
        self._began_s: float | None = None
        self._waiting = 0
        self.failure = ""
        """Why there will be no engine, until another request asks for one."""
        self._took_s = 0.0
        """How long the last engine took, from the first request that waited for it; 0 if none was waited for."""

    def facts(self, *, is_up: bool, start_s: float | None) -> FleetFacts:
        """The fleet, where `is_up` says whether an engine takes work and the last one took `start_s` to start."""
        # An engine counts from when its process runs; whoever waits, also for a node and for that process.
        known_s = max(start_s or 0.0, self._took_s) or None
        return FleetFacts(is_up, self._call is not None, known_s, self._elapsed_s, self.failure, self._waiting)

    @property
    def _elapsed_s(self) -> float | None:
        return None if self._began_s is None else asyncio.get_running_loop().time() - self._began_s

    @contextlib.contextmanager
    def wanted(self) -> Iterator[None]:
        """A request waits for an engine."""
        if self._call is None:
            yield
            return
        self._waiting += 1
        if self._task is None or self._task.done():
            self.failure = ""
            self._task = self._spawn(self._ask(self._call), "wake")
        if self._began_s is None:
            self._began_s = asyncio.get_running_loop().time()
            logger.info("no engine is up: one is asked for")
        try:
            yield
        finally:
            self._waiting -= 1
            if not self._waiting and self._task is not None:
                self._task.cancel()
                self._task = None

    def note_up(self) -> None:
        """An engine takes work."""
        if (elapsed_s := self._elapsed_s) is not None:
            logger.info("an engine is up", extra={"took_s": round(elapsed_s, 1), "waiting": self._waiting})
            self._took_s, self._began_s = elapsed_s, None
        self.failure = ""

    async def _ask(self, call: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await call()
            except EngineCannotStart as error:
                logger.error("no engine can be started", extra={"reason": str(error), "waiting": self._waiting})
                self.failure, self._began_s = str(error), None
                self._on_failed()
                return
            except ReplicaLost as error:
                logger.warning("cannot ask for an engine", extra={"error": str(error)})
            await asyncio.sleep(REPEAT_S)
