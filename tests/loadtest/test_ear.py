"""The ear reads plain sockets for many wires, and a wire cannot tell it from a transport."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable

import pytest

from loadtest.ear import FEW, MANY, WINDOW_NS, Ear, Pace
from loadtest.wire import Wire

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"
HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
Ends = Callable[[], tuple[Wire, socket.socket]]


@pytest.fixture
async def ear() -> AsyncIterator[Ear]:
    one = Ear()
    yield one
    one.close()


@pytest.fixture
async def ends(ear: Ear) -> AsyncIterator[Ends]:
    """Makes a wire and the server's end of its connection."""
    servers: list[socket.socket] = []

    def make() -> tuple[Wire, socket.socket]:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        servers.append(theirs)
        return ear.listen_to(ours), theirs

    yield make
    for server in servers:
        server.close()


async def test_each_line_gets_its_own_answer(ends: Ends) -> None:
    pairs = [ends() for _ in range(50)]
    exchanges = [wire.begin(b"GET", 1) for wire, _ in pairs]
    for number, (_, server) in enumerate(pairs):
        assert server.recv(100) == b"GET"
        server.send(ANSWER + b"%02d" % number)
    await asyncio.gather(*(exchange.done for exchange in exchanges))
    assert [b"".join(exchange.reads) for exchange in exchanges] == [b"%02d" % number for number in range(50)]


async def test_a_request_larger_than_the_sockets_buffer_goes_out_in_full(ends: Ends) -> None:
    wire, server = ends()
    body = bytes(3_000_000)
    exchange = wire.begin(body, 1)
    got = 0
    while got < len(body):
        got += len(await asyncio.get_running_loop().sock_recv(server, 1 << 20))
    server.send(ANSWER + b"ok")
    await exchange.done
    assert got == len(body)
    assert exchange.status == 200


async def test_a_server_that_hangs_up_cuts_the_stream(ends: Ends) -> None:
    wire, server = ends()
    exchange = wire.begin(b"GET", 1)
    server.send(ANSWER + b"o")
    server.close()
    await exchange.done
    assert "after 1 bytes" in exchange.failure
    assert wire.closed


async def test_a_connection_that_is_gone_before_the_request_is_a_failure(ends: Ends) -> None:
    wire, server = ends()
    server.close()
    exchange = wire.begin(b"GET", 1)
    await exchange.done
    assert "before any answer" in exchange.failure


async def test_a_closed_line_is_forgotten(ear: Ear, ends: Ends) -> None:
    wire, _ = ends()
    wire.close()
    wire.close()
    assert not ear._lines


async def test_answers_come_whichever_way_it_looks(ear: Ear, ends: Ends) -> None:
    wire, server = ends()
    for many in (True, False, True):
        ear.pace.many = many
        exchange = wire.begin(b"GET", 1)
        server.send(ANSWER + b"ok")
        await exchange.done
        assert exchange.status == 200


async def test_what_was_read_of_a_stream_is_handed_out_when_asked_for(ear: Ear, ends: Ends) -> None:
    wire, server = ends()
    exchange = wire.begin(b"GET", 1)
    for piece in (HEAD, b"5\r\nhello\r\n", b"6\r\nworld!\r\n"):
        server.send(piece)
        ear._listen()
    ear.deliver()
    assert exchange.reads == [b"5\r\nhello\r\n", b"6\r\nworld!\r\n"]
    assert exchange.first_byte_ns < exchange.times[0] < exchange.times[1], "each when it was read"


async def test_a_stream_read_while_reads_are_kept_ends_with_its_last_chunk(ear: Ear, ends: Ends) -> None:
    pairs = [ends() for _ in range(3)]
    exchanges = [wire.begin(b"GET", 1) for wire, _ in pairs]
    body = b"5\r\nhello\r\n0\r\n\r\n"
    for _, server in pairs:
        server.send(HEAD)
    ear._listen()
    for at in range(len(body)):
        for _, server in pairs:
            server.send(body[at : at + 1])
        ear._listen()
    assert all(exchange.done.done() and b"".join(exchange.reads) == body for exchange in exchanges)
    pairs[0][1].close()
    ear._listen()
    assert pairs[0][0].closed and not pairs[1][0].closed


def test_the_pace_follows_the_reads_and_does_not_flutter() -> None:
    pace = Pace(0)
    pace.note(MANY, WINDOW_NS // 2)
    assert not pace.many, "half a window tells nothing"
    pace.note(0, WINDOW_NS)
    assert pace.many
    pace.note((MANY + FEW) // 2, 2 * WINDOW_NS)
    assert pace.many, "between the two marks it stays as it is"
    pace.note(FEW - 1, 3 * WINDOW_NS)
    assert not pace.many and pace.ever_many
    pace.note(MANY, 6 * WINDOW_NS)
    assert not pace.many, "a long window counts by its length"
