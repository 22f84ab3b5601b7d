"""Data channels over real sockets: what crosses, how it ends, and what an end on one side does to the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from serve_app.protocol.data_channel import ERRORS, DataChannel, DataChannelServer
from serve_app.protocol.errors import AttemptRefused, EngineDead, ReplicaLost, WrongReplica
from serve_app.protocol.messages import (
    WIRE_VERSION,
    AttemptRequest,
    DataChannelAddress,
    Frame,
    ReplicaLoad,
    RequestSpec,
    TokenDelta,
    decode_request,
    encode_frame,
    encode_tokens,
)
from serve_app.protocol.paced_reads import PacedReads

LOAD = ReplicaLoad(0, 8, 0.0, draining=False)


def attempt(name: str) -> AttemptRequest:
    return AttemptRequest(
        WIRE_VERSION, name, "ingress", RequestSpec(name, encode_tokens([1]), 8, 0, False, [], 0, [b""]), []
    )


@dataclass
class Replica:
    """A `data_channel.Runner` whose attempts wait until they are told how to end."""

    outbox: asyncio.Queue[bytes | None] = field(default_factory=asyncio.Queue)
    ends: dict[str, asyncio.Future[None]] = field(default_factory=dict)
    started: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    cancelled: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    let_go: asyncio.Event = field(default_factory=asyncio.Event)

    async def run_attempt(self, target: str, data: bytes | memoryview) -> None:
        assert target == "a"
        name = decode_request(data).attempt_id
        self.ends[name] = asyncio.get_running_loop().create_future()
        self.started.put_nowait(name)
        try:
            await self.ends[name]
        except asyncio.CancelledError:
            self.cancelled.put_nowait(name)
            raise

    async def frames(self, target: str, ingress_id: str) -> AsyncGenerator[bytes, None]:
        if target != "a":
            raise WrongReplica(target)
        assert ingress_id == "ingress"
        try:
            while (frame := await self.outbox.get()) is not None:
                yield frame
        finally:
            self.let_go.set()

    def say(self, sequence: int, tokens: list[int]) -> None:
        self.outbox.put_nowait(encode_frame(Frame("a", sequence, LOAD, [TokenDelta("one", 0, tokens)])))


@dataclass
class Reader:
    """Reads a channel as the transport does."""

    channel: DataChannel
    seen: asyncio.Queue[Frame] = field(default_factory=asyncio.Queue)

    async def read(self) -> None:
        await self.channel.follow(self.seen.put_nowait)


@asynccontextmanager
async def served(replica: Replica) -> AsyncIterator[tuple[DataChannelServer, DataChannelAddress]]:
    server = DataChannelServer(replica)
    address = await server.open("127.0.0.1")
    try:
        yield server, address
    finally:
        await server.close()


@asynccontextmanager
async def read(
    address: DataChannelAddress, target: str = "a"
) -> AsyncIterator[tuple[DataChannel, Reader, asyncio.Task[None]]]:
    channel = await DataChannel.open(address, target, "ingress", PacedReads())
    reader = Reader(channel)
    reading = asyncio.create_task(reader.read())
    try:
        yield channel, reader, reading
    finally:
        channel.close(ReplicaLost("the test is over"))
        await reading


async def attempt_that_fails(replica: Replica, channel: DataChannel, error: Exception) -> asyncio.Task[None]:
    running = asyncio.create_task(channel.run(attempt("one")))
    await replica.started.get()
    replica.ends["one"].set_exception(error)
    return running


async def test_frames_come_and_attempts_go_on_one_line() -> None:
    replica = Replica()
    async with served(replica) as (_, address), read(address) as (channel, reader, _):
        running = [asyncio.create_task(channel.run(attempt(name))) for name in ("one", "two")]
        assert [await replica.started.get() for _ in running] == ["one", "two"]
        replica.say(0, [7, 8])
        replica.say(1, [9])
        assert [(await reader.seen.get()).deltas[0].token_ids for _ in range(2)] == [[7, 8], [9]]
        replica.ends["two"].set_result(None)
        await running[1]
        assert not running[0].done()
        replica.ends["one"].set_result(None)
        await running[0]


@pytest.mark.parametrize("kind", ERRORS.values())
async def test_how_an_attempt_failed_crosses_with_its_kind(kind: type[Exception]) -> None:
    replica = Replica()
    async with served(replica) as (_, address), read(address) as (channel, _, _):
        running = await attempt_that_fails(replica, channel, kind("this is why"))
        with pytest.raises(kind, match="this is why"):
            await running


async def test_a_fault_of_the_replica_refuses_the_attempt_and_not_the_line() -> None:
    replica = Replica()
    async with served(replica) as (_, address), read(address) as (channel, _, _):
        running = await attempt_that_fails(replica, channel, ZeroDivisionError("oops"))
        with pytest.raises(AttemptRefused, match="ZeroDivisionError: oops"):
            await running
        running = asyncio.create_task(channel.run(attempt("two")))
        assert await replica.started.get() == "two"
        replica.ends["two"].set_result(None)
        await running


async def test_a_cancelled_attempt_is_cancelled_there() -> None:
    replica = Replica()
    async with served(replica) as (_, address), read(address) as (channel, _, _):
        running = asyncio.create_task(channel.run(attempt("one")))
        await replica.started.get()
        running.cancel()
        assert await replica.cancelled.get() == "one"


async def test_an_ingress_that_goes_takes_its_attempts_along() -> None:
    replica = Replica()
    async with served(replica) as (_, address):
        async with read(address) as (channel, _, _):
            running = asyncio.create_task(channel.run(attempt("one")))
            await replica.started.get()
        with pytest.raises(ReplicaLost, match="the test is over"):
            await running
        assert await replica.cancelled.get() == "one"
        await replica.let_go.wait()
        with pytest.raises(ReplicaLost):
            await channel.run(attempt("too late"))


async def test_a_replica_that_goes_ends_the_line_and_the_fleet_says_why() -> None:
    replica = Replica()
    async with served(replica) as (server, address), read(address) as (channel, _, reading):
        running = asyncio.create_task(channel.run(attempt("one")))
        await replica.started.get()
        await server.close()
        await reading
        assert not running.done()  # not before it is known what became of the replica
        channel.close(EngineDead("it died"))
        with pytest.raises(EngineDead, match="it died"):
            await running


async def test_a_replica_ends_the_line_with_its_frames() -> None:
    replica = Replica()
    async with served(replica) as (_, address), read(address) as (_, _, reading):
        replica.outbox.put_nowait(None)
        await reading


@pytest.mark.parametrize("wrong", ["secret", "target"])
async def test_a_line_that_was_not_offered_is_cut_without_a_word(wrong: str) -> None:
    replica = Replica()
    async with served(replica) as (_, offered):
        address = DataChannelAddress(offered.host, offered.port, bytes(16) if wrong == "secret" else offered.secret)
        replica.say(0, [7])
        async with read(address, "b" if wrong == "target" else "a") as (_, reader, reading):
            await reading
            assert reader.seen.empty()


@pytest.mark.parametrize("noise", [b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", b"\0\0\0\0", b"\0\0\0\2\0\xff"])
async def test_what_is_no_message_of_ours_ends_the_connection(noise: bytes) -> None:
    replica = Replica()
    async with served(replica) as (_, address):
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(noise)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await reader.readexactly(1)
        writer.close()
        async with read(address) as (_, seen, _):
            replica.say(0, [7])
            assert (await seen.seen.get()).deltas[0].token_ids == [7]
