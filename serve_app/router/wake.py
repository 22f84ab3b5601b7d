"""Starts an engine where there is none: one pending call to the engines while requests of this ingress wait.

Serve counts calls that wait for a replica. A deployment without replicas and with a waiting call gets one at once,
whatever its policy says (`ray.serve.autoscaling_policy`, "cold start fast path"). One call for each ingress is enough,
and it is ended when no request waits any more: a client that has left must not hold an engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterator

from serve_app.protocol.errors import EngineCannotStart, ReplicaLost
from serve_app.router.attempts import DispatcherLimits, Transport
from serve_app.router.fleet_state import FleetFacts

logger = logging.getLogger(__name__)

REPEAT_S = 1.0
"""After an answer the ingress connects to the engine. If requests still wait so much later, it asks again: that engine
may have been about to stop. A call that failed is made again as late."""

Spawn = Callable[[Coroutine[object, object, None], str], asyncio.Task[None]]


class Wake:
    """The waiting requests of one ingress, and the call that they share; nothing where the fleet may not sleep.
    `on_answer` is called when an engine has answered, `on_failed` when none can start."""

    def __init__(
        self,
        transport: Transport,
        limits: DispatcherLimits,
        spawn: Spawn,
        on_answer: Callable[[], None],
        on_failed: Callable[[], None],
    ) -> None:
        self._transport = transport
        self._may_sleep = limits.may_sleep
        self._spawn = spawn
        self._on_answer = on_answer
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
        return FleetFacts(is_up, self._may_sleep, known_s, self._elapsed_s, self.failure, self._waiting)

    @property
    def _elapsed_s(self) -> float | None:
        return None if self._began_s is None else asyncio.get_running_loop().time() - self._began_s

    @contextlib.contextmanager
    def wanted(self) -> Iterator[None]:
        """A request waits for an engine."""
        if not self._may_sleep:
            yield
            return
        self._waiting += 1
        if self._task is None or self._task.done():
            self.failure = ""
            self._task = self._spawn(self._ask(), "wake")
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

    def give_up(self, reason: str) -> None:
        """End the wait of those who wait: engines fail to start. Serve goes on trying, and the next request waits until
        this is said again."""
        if not self._waiting:
            return
        logger.error("no engine starts", extra={"reason": reason, "waiting": self._waiting})
        self.failure, self._began_s = reason, None
        self._on_failed()

    async def _ask(self) -> None:
        while True:
            try:
                await self._transport.wake()
                self._on_answer()
            except EngineCannotStart as error:
                self.give_up(str(error))
                return
            except ReplicaLost as error:
                logger.warning("cannot ask for an engine", extra={"error": str(error)})
            await asyncio.sleep(REPEAT_S)
