"""Which way a replica's tokens come, and what a broken data channel is told by the Serve call beside it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Generator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from ray.exceptions import ActorUnavailableError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException

from serve_app.engine.fake import FakeEngine, FakeEngineConfig
from serve_app.engine.replica import EngineReplica
from serve_app.protocol.errors import EngineCannotStart, ReplicaDied, ReplicaLost, WrongReplica
from serve_app.protocol.messages import (
    WIRE_VERSION,
    AttemptRequest,
    DataChannelAddress,
    Frame,
    RequestSpec,
    decode_info,
    encode_info,
    encode_tokens,
)
from serve_app.router.serve_transport import ServeTransport, ask_all


@dataclass
class Stream:
    """Serve's streaming response, over a generator of the replica's."""

    source: Any
    ends: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> bytes:
        item = asyncio.ensure_future(anext(self.source))
        try:
            await asyncio.wait({item, self.ends}, return_when=asyncio.FIRST_COMPLETED)
            if self.ends.done():
                self.ends.result()
            return bytes(await item)
        finally:
            item.cancel()

    def cancel(self) -> None:
        if not self.ends.done():
            self.ends.cancel()


@dataclass
class Call:
    """Serve's response."""

    task: asyncio.Task[Any]

    def __await__(self) -> Generator[Any, None, Any]:
        return self.task.__await__()

    def cancel(self) -> None:
        self.task.cancel()


@dataclass
class Answer:
    """Serve's response of one replica to a broadcast."""

    answer: Awaitable[Any]

    async def get_async(self) -> Any:
        return await self.answer


@dataclass
class Answers:
    """Serve's responses to a broadcast."""

    answers: list[Awaitable[Any]]

    async def _fetch_replica_results_async(self) -> list[Answer]:
        return [Answer(one) for one in self.answers]


@dataclass
class Handle:
    """Serve's handle to one replica in this process. Counts calls by method, and keeps the streams."""

    replica: EngineReplica
    info: bytes
    method: str = ""
    called: list[str] = field(default_factory=list)
    streams: dict[str, Stream] = field(default_factory=dict)

    def options(self, method_name: str, **_: object) -> Handle:
        return Handle(self.replica, self.info, method_name, self.called, self.streams)

    def broadcast(self, method: str, *args: Any) -> Answers:
        return Answers([self._info() if method == "info" else getattr(self.replica, method)(*args)])

    async def _info(self) -> bytes:
        return self.info

    def remote(self, *args: Any) -> Stream | Call:
        self.called.append(self.method)
        made = getattr(self.replica, self.method)(*args)
        if asyncio.iscoroutine(made):
            return Call(asyncio.ensure_future(made))
        stream = self.streams[self.method] = Stream(made)
        return stream


@dataclass
class Follower:
    """Reads a link as the fleet does, and keeps what it ended with."""

    transport: ServeTransport
    tokens: list[int] = field(default_factory=list)
    up: asyncio.Event = field(default_factory=asyncio.Event)
    all_there: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, frame: Frame) -> None:
        self.up.set()
        for delta in frame.deltas:
            self.tokens.extend(delta.token_ids)
            if delta.finish_reason is not None:
                self.all_there.set()

    async def follow(self, replica_id: str = "a") -> None:
        await self.transport.follow(replica_id, self.take)


@asynccontextmanager
async def service(*, offers: bool = True, gap_s: float = 0.0) -> AsyncIterator[tuple[Handle, Follower]]:
    replica = EngineReplica(
        "a", lambda sink: FakeEngine(FakeEngineConfig(gap_s=gap_s), sink), 20.0, "127.0.0.1" if offers else None
    )
    await replica.start()
    handle = Handle(replica, await replica.info())
    transport: Any = ServeTransport(handle, "ingress")
    await transport.replicas()
    try:
        yield handle, Follower(transport)
    finally:
        await replica.stop()


def attempt() -> AttemptRequest:
    return AttemptRequest(
        WIRE_VERSION, "one", "ingress", RequestSpec("one", encode_tokens([1]), 8, 0, False, [], 0, [b""]), []
    )


@pytest.mark.parametrize(("offers", "calls"), [(True, ["lease"]), (False, ["frames", "run_attempt"])])
async def test_tokens_come_by_the_line_where_one_is_offered_and_else_by_serve(offers: bool, calls: list[str]) -> None:
    async with service(offers=offers) as (handle, follower):
        following = asyncio.create_task(follower.follow())
        await follower.up.wait()
        await follower.transport.run_attempt("a", attempt())
        await follower.all_there.wait()
        assert len(follower.tokens) == 8
        assert handle.called == calls
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def test_a_port_that_cannot_be_reached_costs_the_line_and_not_the_connection() -> None:
    async with service() as (handle, follower):
        with socket.create_server(("127.0.0.1", 0)) as unused:
            closed = DataChannelAddress("127.0.0.1", unused.getsockname()[1], b"")
        handle.info = encode_info(msgspec.structs.replace(decode_info(handle.info), data_channel=closed))
        await follower.transport.replicas()
        following = asyncio.create_task(follower.follow())
        await follower.up.wait()
        await follower.transport.run_attempt("a", attempt())
        assert handle.called == ["lease", "frames", "run_attempt"]
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


@pytest.mark.parametrize(
    ("error", "means"),
    [
        (ActorUnavailableError("nothing listens", b"0" * 16), ReplicaDied),
        (WrongReplica("moved"), WrongReplica),
        (None, ReplicaLost),
    ],
)
async def test_what_serve_says_of_the_lease_ends_the_data_channel_and_what_runs_on_it(
    error: Exception | None, means: type[Exception]
) -> None:
    async with service(gap_s=60.0) as (handle, follower):
        following = asyncio.create_task(follower.follow())
        await follower.up.wait()
        running = asyncio.create_task(follower.transport.run_attempt("a", attempt()))
        engine = handle.replica._engine
        assert isinstance(engine, FakeEngine)
        await engine.first_token_sent.wait()
        lease = handle.streams["lease"].ends
        if error is not None:
            lease.set_exception(error)
        else:
            lease.set_exception(StopAsyncIteration())
        for task in (following, running):
            with pytest.raises(means):
                await task


async def test_a_lease_that_landed_on_another_replica_makes_no_data_channel() -> None:
    async with service() as (handle, follower):
        handle.info = encode_info(msgspec.structs.replace(decode_info(handle.info), replica_id="b"))
        await follower.transport.replicas()
        with pytest.raises(WrongReplica):
            await follower.follow("b")
        assert handle.called == ["lease"]


async def test_what_is_held_against_a_client_is_in_the_next_info() -> None:
    async with service() as (handle, follower):
        await follower.transport.share_quarantine({"client mallory": 60.0})
        info = decode_info(await handle.replica.info())
        assert info.quarantine == {"client mallory": pytest.approx(60.0, abs=5.0)}


@dataclass
class SomeReplicas:
    """A handle to a deployment with a healthy replica, a silent one and one that fails."""

    asked: list[tuple[str, tuple[object, ...]]] = field(default_factory=list)

    def broadcast(self, method: str, *args: object) -> Answers:
        self.asked.append((method, args))
        return Answers([self._answer(), asyncio.Event().wait(), self._fail()])

    async def _answer(self) -> bytes:
        return b"here"

    async def _fail(self) -> bytes:
        raise RayServeException("gone")


async def test_one_silent_replica_does_not_hide_the_answers_of_the_others() -> None:
    handle = SomeReplicas()
    here, silent, failed = await ask_all(handle, "info", 1, timeout_s=0.05)  # type: ignore[arg-type]
    assert handle.asked == [("info", (1,))]
    assert here == b"here"
    assert isinstance(silent, TimeoutError)
    assert isinstance(failed, RayServeException)


@dataclass
class Empty:
    """Serve's handle to a deployment without a replica. Calls wait, unless it is given up."""

    given_up: bool = False
    waiting: list[asyncio.Task[Any]] = field(default_factory=list)

    def options(self, method_name: str, **_: object) -> Empty:  # noqa: ARG002  # Serve's signature
        return self

    def broadcast(self, *_: object) -> Answers:
        raise DeploymentUnavailableError(DeploymentID("engine", "step"))

    def remote(self) -> Call:
        call = Call(asyncio.ensure_future(self._wait()))
        self.waiting.append(call.task)
        return call

    async def _wait(self) -> None:
        if self.given_up:
            raise DeploymentUnavailableError(DeploymentID("engine", "step"))
        await asyncio.Event().wait()


async def test_that_serve_lists_no_replica_counts_where_there_need_not_be_one() -> None:
    sleeps: Any = ServeTransport(Empty(), "ingress", may_sleep=True)  # type: ignore[arg-type]
    assert await sleeps.replicas() == ([], True)
    never: Any = ServeTransport(Empty(), "ingress")  # type: ignore[arg-type]
    with pytest.raises(ReplicaLost):
        await never.replicas()


async def test_a_call_for_an_engine_waits_in_serve_until_it_is_ended() -> None:
    handle = Empty()
    transport = ServeTransport(handle, "ingress", may_sleep=True)  # type: ignore[arg-type]
    asking = asyncio.create_task(transport.wake())
    while not handle.waiting:  # noqa: ASYNC110  # a turn of the loop each
        await asyncio.sleep(0)
    asking.cancel()
    await asyncio.wait({asking, *handle.waiting})
    assert handle.waiting[0].cancelled()


async def test_an_engine_that_serve_has_given_up_cannot_start() -> None:
    transport = ServeTransport(Empty(given_up=True), "ingress", may_sleep=True)  # type: ignore[arg-type]
    with pytest.raises(EngineCannotStart):
        await transport.wake()
