"""Connections that are read at their pace: at once where they are few or it was quiet, else together."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
import uvloop

from serve_app.protocol.message_stream import SCRATCH_BYTES, MessageStream
from serve_app.protocol.paced_reads import PacedReads

NEVER_S = 3600.0
TURNS = 20


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop])
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    """Of asyncio's own event loop, and of the one that production has."""
    with asyncio.Runner(loop_factory=request.param) as one:
        yield one


class Connections:
    """Both ends of some connections, and what was read, in its order."""

    def __init__(self, reads: PacedReads, count: int) -> None:
        self.reads = reads
        self.pairs = [socket.socketpair() for _ in range(count)]
        self.got: list[tuple[int, bytes]] = []
        self.changed = asyncio.Event()
        self.on_read: Callable[[int], None] = lambda _number: None
        for number, (_, here) in enumerate(self.pairs):
            here.setblocking(False)
            reads.add(here, lambda number=number: self.read(number))  # type: ignore[misc]

    def read(self, number: int) -> None:
        self.got.append((number, self.pairs[number][1].recv(100)))
        self.on_read(number)
        self.changed.set()

    def send(self, number: int, data: bytes = b"x") -> None:
        self.pairs[number][0].sendall(data)

    async def until(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(self.got) < count:
                self.changed.clear()
                await self.changed.wait()


@contextmanager
def connections(count: int, period_s: float, few: int) -> Iterator[Connections]:
    made = Connections(PacedReads(period_s, few), count)
    try:
        yield made
    finally:
        for there, here in made.pairs:
            if here.fileno() in made.reads._readers:
                made.reads.remove(here)
            there.close()
            here.close()


async def turns() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)


async def test_few_are_each_read_as_it_comes() -> None:
    with connections(2, NEVER_S, few=2) as some:
        for number in (0, 1, 0, 0):
            some.send(number)
            await some.until(len(some.got) + 1)
        assert [number for number, _ in some.got] == [0, 1, 0, 0]


async def test_of_many_the_first_is_read_at_once_and_the_next_waits() -> None:
    with connections(2, NEVER_S, few=1) as some:
        some.send(0)
        await some.until(1)
        some.send(1)
        await turns()
        assert some.got == [(0, b"x")]


async def test_what_came_meanwhile_is_read_together() -> None:
    with connections(3, 0.01, few=1) as some:
        some.send(0)
        await some.until(1)
        for number in (2, 1, 0):
            some.send(number, b"later")
        await some.until(4)
        assert {number for number, _ in some.got[1:]} == {0, 1, 2}


async def test_after_a_pause_the_next_is_read_at_once_again() -> None:
    with connections(2, 0.001, few=1) as some:
        for turn in range(5):
            some.send(turn % 2)
            await some.until(turn + 1)
        assert len(some.got) == 5


async def test_one_that_is_removed_by_the_one_before_is_not_read() -> None:
    with connections(2, NEVER_S, few=2) as some:
        some.on_read = lambda number: some.reads.remove(some.pairs[1 - number][1])
        some.send(0)
        some.send(1)
        await some.until(1)
        await turns()
        assert len(some.got) == 1


async def test_many_that_become_few_are_read_as_they_come() -> None:
    with connections(2, 0.01, few=1) as some:
        some.send(0)
        await some.until(1)
        some.reads.remove(some.pairs[1][1])
        for turn in range(3):
            some.send(0)
            await some.until(turn + 2)


# ---- message streams -------------------------------------------------------------------------------------------------


class Refused(Exception):
    """What a receiver raises."""


@asynccontextmanager
async def two_ends() -> AsyncIterator[tuple[MessageStream, MessageStream]]:
    """Two streams that are connected: a server's and a client's."""
    accepted: asyncio.Queue[MessageStream] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: MessageStream(accepted.put_nowait), "127.0.0.1", 0)
    _, client = await loop.create_connection(MessageStream, *server.sockets[0].getsockname())
    there = await accepted.get()
    try:
        yield there, client
    finally:
        there.abort()
        client.abort()
        server.close()
        await server.wait_closed()


async def received_until_the_end(count: int, reads: PacedReads) -> None:
    got: list[bytes] = []
    all_there = asyncio.Event()

    def receive(_kind: int, body: memoryview) -> None:
        got.append(bytes(body))
        if len(got) > count:
            all_there.set()

    async with two_ends() as (there, client):
        there.write_encoded(1, b"before anybody reads")
        await turns()
        delivering = asyncio.create_task(client.deliver(receive, reads))
        sent = [b"%d " % number * (SCRATCH_BYTES if number % 3 == 0 else 1) for number in range(count)]
        for body in sent:
            there.write_encoded(2, body)
            await there.drain()
            client.write(3, "the other way")
        for _ in sent:
            await there.read()
        await all_there.wait()
        there.abort()
        with pytest.raises((EOFError, OSError)):
            await delivering
    assert got == [b"before anybody reads", *sent]


@pytest.mark.parametrize("few", [0, 1])
def test_messages_of_all_sizes_come_whole_and_in_order(runner: asyncio.Runner, few: int) -> None:
    runner.run(received_until_the_end(10, PacedReads(0.001, few)))


async def an_error_ends_it() -> None:
    calls = 0

    def refuse(_kind: int, _body: memoryview) -> None:
        nonlocal calls
        calls += 1
        raise Refused

    async with two_ends() as (there, client):
        delivering = asyncio.create_task(client.deliver(refuse, PacedReads()))
        await turns()
        for _ in range(3):
            there.write(1, 1)
        with pytest.raises(Refused):
            await delivering
        assert calls == 1
        with pytest.raises((EOFError, OSError)):
            await there.read()


def test_what_a_receiver_raises_ends_the_connection(runner: asyncio.Runner) -> None:
    runner.run(an_error_ends_it())


async def this_side_ends_it() -> None:
    got: list[bytes] = []
    sent = asyncio.Event()
    async with two_ends() as (there, client):
        reads = PacedReads(NEVER_S, 0)

        def receive(_kind: int, body: memoryview) -> None:
            got.append(bytes(body))
            sent.set()

        delivering = asyncio.create_task(client.deliver(receive, reads))
        await turns()
        there.write_encoded(1, b"read at once")
        await sent.wait()
        there.write_encoded(1, b"not read yet")
        await turns()
        assert got == [b"read at once"]
        client.abort()
        assert got == [b"read at once", b"not read yet"]
        with pytest.raises(OSError, match="this side"):
            await delivering
        with pytest.raises((EOFError, OSError)):
            await there.read()


def test_the_other_side_hears_of_an_end_on_this_side(runner: asyncio.Runner) -> None:
    runner.run(this_side_ends_it())


async def one_of_two_breaks() -> None:
    reads, arrived = PacedReads(0.001, 0), asyncio.Event()
    async with two_ends() as (bad_there, bad), two_ends() as (good_there, good):

        def break_it(_count: int) -> None:
            raise MemoryError

        bad.buffer_updated = break_it  # type: ignore[method-assign]  # as where there is no memory for a large message
        breaking = asyncio.create_task(bad.deliver(lambda _kind, _body: None, reads))
        going_on = asyncio.create_task(good.deliver(lambda _kind, _body: arrived.set(), reads))
        await turns()
        bad_there.write(1, 1)
        with pytest.raises(MemoryError):
            await breaking
        for _ in range(3):
            arrived.clear()
            good_there.write(1, 1)
            await asyncio.wait_for(arrived.wait(), 20)
        going_on.cancel()


def test_one_that_breaks_does_not_stop_the_others(runner: asyncio.Runner) -> None:
    runner.run(one_of_two_breaks())


class NoRoom(PacedReads):
    """Where the system has no descriptors left."""

    def add(self, connection: socket.socket, read: Callable[[], None]) -> None:  # noqa: ARG002
        raise OSError(24, "Too many open files")


def test_without_room_the_event_loop_receives_as_before(runner: asyncio.Runner) -> None:
    runner.run(received_until_the_end(10, NoRoom()))
