"""A fleet with a canary in this process: fake engines in their replicas, ingresses with their followers, and one judge.

All of it is the service's own code but for the engines; Serve's part is played here: a replica that has died comes back
after `start_s`, and the judge is an object that every ingress calls, in the encoding that crosses Serve.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import msgspec

from bench.routing.fleet import LocalTransport, Sink
from serve_app.config.pools import CanaryConfig
from serve_app.engine.contract import StepSink
from serve_app.engine.fake import FakeEngine, FakeEngineConfig
from serve_app.engine.replica import EngineReplica
from serve_app.engine.watchdog import WatchdogLimits
from serve_app.ingress.canary.follower import CanaryFollower
from serve_app.ingress.canary.trial import Directive, Trial, TrialReport
from serve_app.protocol.errors import Outcome, ServeError
from serve_app.protocol.messages import (
    ReplicaLabel,
    RequestSpec,
    encode_tokens,
)
from serve_app.protocol.pages import prompt_pages
from serve_app.router.admission import Admission
from serve_app.router.attempts import DispatcherLimits, Transport
from serve_app.router.composite_transport import CompositeTransport
from serve_app.router.dispatcher import Dispatcher
from serve_app.router.request_context import RequestTrace, SubmittedRequest

MAX_QUEUED = 512
LOOK_S = 0.5
"""How soon a dead replica is noticed, as by Serve's health check."""


class Replicas:
    """One deployment: `count` engines, each of which comes back `start_s` after its death."""

    def __init__(self, label: ReplicaLabel, engine: FakeEngineConfig, count: int, start_s: float) -> None:
        self._label = label
        self._engine = engine
        self._count = count
        self._start_s = start_s
        self._started = 0
        self.live: dict[str, EngineReplica] = {}
        self.deaths = 0

    async def run(self) -> None:
        """Keep so many alive, for ever."""
        await asyncio.gather(*(self._keep_one() for _ in range(self._count)))

    async def _keep_one(self) -> None:
        while True:
            self._started += 1
            name = f"{self._label.pool or 'stable'}-{self._started}"
            replica = EngineReplica(
                name,
                self._build,
                WatchdogLimits(),
                max_queued_requests=MAX_QUEUED,
                clock=asyncio.get_running_loop().time,
                label=self._label,
            )
            await replica.start()
            self.live[name] = replica
            try:
                while await _is_healthy(replica):  # noqa: ASYNC110  # as Serve does
                    await asyncio.sleep(LOOK_S)
                del self.live[name]
                self.deaths += 1
            finally:
                await replica.stop()
            await asyncio.sleep(self._start_s)

    def _build(self, sink: StepSink) -> FakeEngine:
        return FakeEngine(self._engine, sink)


async def _is_healthy(replica: EngineReplica) -> bool:
    try:
        await replica.check_health()
    except Exception:  # noqa: BLE001  # whatever it raises, Serve replaces the replica
        return False
    return True


@dataclass
class Ingress:
    """One ingress: its dispatcher and its follower."""

    dispatcher: Dispatcher
    follower: CanaryFollower
    sink: Sink
    asked: int = 0

    async def generate(self, request_id: str, prompt: Sequence[int], max_tokens: int, session: str) -> RequestTrace:
        """Run one request to its end. Raises `ServeError`."""
        trace = RequestTrace()
        self.sink.token_ids[request_id] = []
        ended = self.sink.ended[request_id] = asyncio.get_running_loop().create_future()
        spec = RequestSpec(
            request_id, encode_tokens(prompt), max_tokens, 0, True, [], 0, [], client="bench", session=session
        )
        outcome = Outcome.OK
        try:
            self.dispatcher.check_room(1)
            self.dispatcher.submit(SubmittedRequest(spec, trace, prompt_pages(prompt)))
            await ended
        except ServeError as error:
            outcome = error.outcome
            raise
        finally:
            self.follower.note([trace], outcome)
            del self.sink.ended[request_id], self.sink.token_ids[request_id]
        return trace


@dataclass
class CanaryFleet:
    """The whole of it. Use as an async context manager."""

    stable: Replicas
    canary: Replicas
    config: CanaryConfig
    ingresses: list[Ingress] = field(default_factory=list)
    judged_s: float | None = None
    _closing: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def __aenter__(self) -> Self:
        self.restart_judge()
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(one.run()) for one in (self.stable, self.canary)]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._closing.aclose()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def restart_judge(self) -> None:
        """A judge that knows nothing takes the place of the last one."""
        loop = asyncio.get_running_loop()
        self._judge = Trial("bench", self.config, lambda _verdict: self._note(loop.time()), loop.time)

    def _note(self, now_s: float) -> None:
        self.judged_s = now_s

    async def add_ingress(self) -> None:
        """One more; it has asked the judge when this returns."""
        name = f"ingress-{len(self.ingresses)}"
        transport, sink = CompositeTransport({"": LocalTransport(name, self.stable.live)}), Sink()
        dispatcher = Dispatcher(
            transport, name, DispatcherLimits(request_deadline_s=900.0), sink, Admission(max_queued_requests=MAX_QUEUED)
        )
        await self._closing.enter_async_context(dispatcher)
        application = _Application(self, name)
        follower = CanaryFollower(
            name,
            application,
            dispatcher.canary,
            transport,
            lambda: any(one.label.is_canary and one.takes_work for one in dispatcher.connections()),
        )
        await self._closing.enter_async_context(follower)
        self.ingresses.append(Ingress(dispatcher, follower, sink))

    def exchange(self, report: TrialReport) -> Directive:
        """As the judge's deployment does."""
        decoded = msgspec.msgpack.decode(msgspec.msgpack.encode(report), type=TrialReport)
        return msgspec.msgpack.decode(msgspec.msgpack.encode(self._judge.exchange(decoded)), type=Directive)


@dataclass(frozen=True)
class _Application:
    fleet: CanaryFleet
    ingress_id: str

    async def exists(self) -> bool:
        return True

    async def connect(self) -> Transport:
        return LocalTransport(self.ingress_id, self.fleet.canary.live)

    async def exchange(self, report: TrialReport) -> Directive:
        return self.fleet.exchange(report)
