"""A dispatcher over replicas that live in this process, whose tokens and deaths a test decides."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from serve_app.protocol.errors import ReplicaDied, ServeError
from serve_app.protocol.messages import (
    WIRE_VERSION,
    AttemptRequest,
    Frame,
    OnFrame,
    ReplicaInfo,
    ReplicaLoad,
    RequestSpec,
    TokenDelta,
    encode_tokens,
)
from serve_app.router.attempts import DispatcherLimits
from serve_app.router.dispatcher import Dispatcher
from serve_app.router.request_context import RequestTrace, SubmittedRequest

STOP = 0
IDLE = ReplicaLoad(0, 8, 0.0, draining=False)


class LocalReplica:
    """A replica whose tokens the test sends. The token at position p of a request is `prompt[0] + p`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.frames: asyncio.Queue[Frame | Exception] = asyncio.Queue()
        self.frame_number = 0
        self.running: dict[str, AttemptRequest] = {}
        self.ends: dict[str, asyncio.Future[None]] = {}
        self.started: asyncio.Queue[AttemptRequest] = asyncio.Queue()
        self.aborted: asyncio.Queue[str] = asyncio.Queue()

    def send(self, *deltas: TokenDelta) -> None:
        self.frames.put_nowait(Frame(self.name, self.frame_number, IDLE, list(deltas)))
        self.frame_number += 1

    def emit(self, attempt: AttemptRequest, at: int, count: int = 1, *, last: bool = False) -> None:
        tokens = [attempt.spec.prompt_token_ids[0] + at + offset for offset in range(count)]
        self.send(TokenDelta(attempt.attempt_id, at, tokens, STOP if last else None))

    def finish(self, attempt: AttemptRequest, at: int, count: int = 1) -> None:
        """Send the last tokens and end the attempt."""
        self.emit(attempt, at, count, last=True)
        self.end(attempt)

    def end(self, attempt: AttemptRequest, error: Exception | None = None) -> None:
        end = self.ends[attempt.attempt_id]
        if error is None:
            end.set_result(None)
        else:
            end.set_exception(error)

    def die(self, error: Exception | None = None) -> None:
        error = error or ReplicaDied("killed")
        for end in self.ends.values():
            if not end.done():
                end.set_exception(error)
        self.frames.put_nowait(error)


class LocalTransport:
    """The replicas that the dispatcher can reach: those in `live`. It is told of those in `listed` (None: all)."""

    def __init__(self, *replicas: LocalReplica) -> None:
        self.live = {replica.name: replica for replica in replicas}
        self.listed: set[str] | None = None
        self.partial_outputs: dict[str, list[int]] = {}
        self.quarantine: dict[str, float] = {}
        self.wakes: asyncio.Queue[asyncio.Future[None]] = asyncio.Queue()
        """The calls that ask for an engine: the test answers them."""
        self.departures: dict[str, float] = {}

    async def find_departures(self) -> Mapping[str, float]:
        """Each replica is on a node of its own, of the same name, and on `head`."""
        return self.departures

    async def wake(self) -> None:
        asked = asyncio.get_running_loop().create_future()
        self.wakes.put_nowait(asked)
        await asked

    async def share_quarantine(self, quarantine: Mapping[str, float]) -> None:
        self.quarantine.update(quarantine)

    async def fetch_partial_output(self, resume_key: str) -> list[int]:
        return self.partial_outputs.get(resume_key, [])

    async def replicas(self) -> tuple[Sequence[ReplicaInfo], bool]:
        names = self.live if self.listed is None else self.listed
        return [
            ReplicaInfo(WIRE_VERSION, name, IDLE, quarantine=self.quarantine, node_ids=["head", name]) for name in names
        ], True

    async def follow(self, replica_id: str, on_frame: OnFrame) -> None:
        replica = self.live[replica_id]
        replica.send()
        while True:
            item = await replica.frames.get()
            if isinstance(item, Exception):
                raise item
            on_frame(item)

    async def run_attempt(self, replica_id: str, attempt: AttemptRequest) -> None:
        replica = self.live[replica_id]
        replica.ends[attempt.attempt_id] = asyncio.get_running_loop().create_future()
        replica.running[attempt.attempt_id] = attempt
        replica.started.put_nowait(attempt)
        try:
            await replica.ends[attempt.attempt_id]
        except asyncio.CancelledError:
            replica.aborted.put_nowait(attempt.attempt_id)
            raise
        finally:
            del replica.running[attempt.attempt_id]


class Results:
    """What the dispatcher delivered, by request."""

    def __init__(self) -> None:
        self.tokens: dict[str, list[int]] = {}
        self.errors: dict[str, ServeError] = {}
        self.changed = asyncio.Event()
        self.finished: set[str] = set()

    def deltas(self, deltas: Sequence[tuple[str, TokenDelta]]) -> None:
        for request_id, delta in deltas:
            self.tokens.setdefault(request_id, []).extend(delta.token_ids)
            if delta.finish_reason is not None:
                self.finished.add(request_id)
        self.changed.set()

    def failed(self, request_id: str, error: ServeError) -> None:
        self.errors[request_id] = error
        self.changed.set()

    async def until_over(self, request_id: str) -> None:
        while request_id not in self.finished and request_id not in self.errors:
            self.changed.clear()
            await self.changed.wait()

    async def until_tokens(self, request_id: str, count: int) -> None:
        while len(self.tokens.get(request_id, [])) < count:
            self.changed.clear()
            await self.changed.wait()


@dataclass
class LocalFleet:
    """A running dispatcher, its replicas and what it delivered."""

    dispatcher: Dispatcher
    results: Results
    transport: LocalTransport
    replicas: Sequence[LocalReplica]

    async def first_attempt(self) -> tuple[AttemptRequest, LocalReplica, LocalReplica]:
        """An attempt, the one of two replicas that it runs on, and the other one."""
        a, b = self.replicas
        waits = {asyncio.create_task(a.started.get()): (a, b), asyncio.create_task(b.started.get()): (b, a)}
        done, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        task = done.pop()
        return task.result(), *waits[task]

    def lose(self, replica: LocalReplica, error: Exception | None = None) -> None:
        """The replica dies and does not come back."""
        del self.transport.live[replica.name]
        replica.die(error)

    def names_up(self) -> set[str]:
        """The replicas that new requests may run on."""
        return {facts.replica_id for facts in self.dispatcher.replicas_up()}

    async def until_idle(self) -> None:
        await until(lambda: self.dispatcher.in_flight == 0)


@asynccontextmanager
async def local_fleet(
    names: str, limits: DispatcherLimits | None = None, transport: LocalTransport | None = None
) -> AsyncIterator[LocalFleet]:
    """A dispatcher over a replica for each letter of `names`."""
    replicas = [LocalReplica(name) for name in names]
    transport = transport or LocalTransport(*replicas)
    results = Results()
    limits = limits or DispatcherLimits(request_deadline_s=10)
    find = transport.find_departures
    async with Dispatcher(transport, "ingress", limits, results, find_departures=find) as dispatcher:
        yield LocalFleet(dispatcher, results, transport, replicas)


def request(request_id: str = "r", first: int = 100, max_tokens: int = 8) -> SubmittedRequest:
    spec = RequestSpec(request_id, encode_tokens([first]), max_tokens, 0, False, [], 0, [b""])
    return SubmittedRequest(spec, RequestTrace())


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until the condition holds. It depends on steps of the loop, not on time."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # there is no event to wait for: the dispatcher sets none
            await asyncio.sleep(0)
