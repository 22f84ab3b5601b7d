"""The ear reads plain sockets for many wires, and a wire cannot tell it from a transport."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from time import perf_counter_ns, time_ns

import pytest

from loadtest.http.arrival_clock import ANCILLARY_BYTES, Ancillary, ArrivalClock, ask_for_arrivals
from loadtest.http.connection import HttpConnection
from loadtest.http.polling_interval import BUSY_READS, COARSEST_S, FINEST_S, QUIET_READS, WINDOW_NS, PollingInterval
from loadtest.http.socket_reader import SocketReader

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"
HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
Ends = Callable[[], tuple[HttpConnection, socket.socket]]


@pytest.fixture
async def reader() -> AsyncIterator[SocketReader]:
    one = SocketReader()
    yield one
    one.close()


@pytest.fixture
async def ends(reader: SocketReader) -> AsyncIterator[Ends]:
    """Makes a wire and the server's end of its connection."""
    servers: list[socket.socket] = []

    def make() -> tuple[HttpConnection, socket.socket]:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        servers.append(theirs)
        return reader.adopt(ours), theirs

    yield make
    for server in servers:
        server.close()


async def test_each_line_gets_its_own_answer(ends: Ends) -> None:
    pairs = [ends() for _ in range(50)]
    exchanges = [connection.send_request(b"GET", 1) for connection, _ in pairs]
    for number, (_, server) in enumerate(pairs):
        assert server.recv(100) == b"GET"
        server.send(ANSWER + b"%02d" % number)
    await asyncio.gather(*(exchange.done for exchange in exchanges))
    assert [b"".join(exchange.reads) for exchange in exchanges] == [b"%02d" % number for number in range(50)]


async def test_a_request_larger_than_the_sockets_buffer_goes_out_in_full(ends: Ends) -> None:
    connection, server = ends()
    body = bytes(3_000_000)
    exchange = connection.send_request(body, 1)
    got = 0
    while got < len(body):
        got += len(await asyncio.get_running_loop().sock_recv(server, 1 << 20))
    server.send(ANSWER + b"ok")
    await exchange.done
    assert got == len(body)
    assert exchange.status == 200


async def test_a_server_that_hangs_up_cuts_the_stream(ends: Ends) -> None:
    connection, server = ends()
    exchange = connection.send_request(b"GET", 1)
    server.send(ANSWER + b"o")
    server.close()
    await exchange.done
    assert "after 1 bytes" in exchange.failure
    assert connection.closed


async def test_a_connection_that_is_gone_before_the_request_is_a_failure(ends: Ends) -> None:
    connection, server = ends()
    server.close()
    exchange = connection.send_request(b"GET", 1)
    await exchange.done
    assert "before any answer" in exchange.failure


async def test_a_closed_line_is_forgotten(reader: SocketReader, ends: Ends) -> None:
    connection, _ = ends()
    connection.close()
    connection.close()
    assert not reader._transports


async def test_answers_come_whichever_way_it_looks(reader: SocketReader, ends: Ends) -> None:
    connection, server = ends()
    for busy in (True, False, True):
        reader.polling.busy = busy
        exchange = connection.send_request(b"GET", 1)
        server.send(ANSWER + b"ok")
        await exchange.done
        assert exchange.status == 200


async def test_what_was_read_of_a_stream_is_handed_out_when_asked_for(reader: SocketReader, ends: Ends) -> None:
    connection, server = ends()
    exchange = connection.send_request(b"GET", 1)
    for piece in (HEAD, b"5\r\nhello\r\n", b"6\r\nworld!\r\n"):
        server.send(piece)
        reader._read_ready()
    reader.flush()
    assert exchange.reads == [b"5\r\nhello\r\n", b"6\r\nworld!\r\n"]
    assert exchange.first_byte_ns < exchange.read_ns[0] < exchange.read_ns[1], "each when it was read"


async def test_a_stream_read_while_reads_are_kept_ends_with_its_last_chunk(reader: SocketReader, ends: Ends) -> None:
    pairs = [ends() for _ in range(3)]
    exchanges = [connection.send_request(b"GET", 1) for connection, _ in pairs]
    body = b"5\r\nhello\r\n0\r\n\r\n"
    for _, server in pairs:
        server.send(HEAD)
    reader._read_ready()
    for at in range(len(body)):
        for _, server in pairs:
            server.send(body[at : at + 1])
        reader._read_ready()
    assert all(exchange.done.done() and b"".join(exchange.reads) == body for exchange in exchanges)
    pairs[0][1].close()
    reader._read_ready()
    assert pairs[0][0].closed and not pairs[1][0].closed


@pytest.fixture
def telling_kernel() -> Iterator[None]:
    """A kernel that tells arrival times: it begins some milliseconds after the first socket asked."""
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.create_connection(listening.getsockname()) as ours:
        ask_for_arrivals(ours)
        theirs, _ = listening.accept()
        with theirs:
            deadline_ns = perf_counter_ns() + 10_000_000_000
            told: Ancillary = []
            while not told and perf_counter_ns() < deadline_ns:
                theirs.send(b"x")
                told = ours.recvmsg(1, ANCILLARY_BYTES)[1]
            assert told
            yield


@pytest.mark.usefixtures("telling_kernel")
async def test_a_chunk_is_stamped_when_it_came_and_not_when_it_was_read(reader: SocketReader) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        connection = await reader.connect(*listening.getsockname())
        server, _ = listening.accept()
        with server:
            exchange = connection.send_request(b"GET", 1)
            server.send(HEAD)
            reader._read_ready()
            before_ns = perf_counter_ns()
            server.send(b"5\r\nhello\r\n")
            sent_ns = perf_counter_ns()
            server.setblocking(False)
            while perf_counter_ns() < sent_ns + 5_000_000:
                pass  # the client is busy with something else
            reader._read_ready()
            reader.flush()
            assert reader.clock.exact
            assert before_ns - 100_000 < exchange.read_ns[-1] < sent_ns + 1_000_000
            server.send(b"0\r\n\r\n")
            reader._read_ready()
            assert exchange.done.done()
            assert len(reader.end_detection_lag_ns) == 1


async def test_where_the_kernel_tells_no_times_those_of_the_reads_stand(reader: SocketReader, ends: Ends) -> None:
    connection, server = ends()
    exchange = connection.send_request(b"GET", 1)
    server.send(HEAD)
    reader._read_ready()
    begin_ns = perf_counter_ns()
    server.send(b"5\r\nhello\r\n")
    reader._read_ready()
    end_ns = perf_counter_ns()
    reader.flush()
    assert begin_ns < exchange.read_ns[-1] < end_ns
    assert not reader.clock.exact


def test_a_wall_clock_that_was_set_is_noticed() -> None:
    clock = ArrivalClock()
    now_ns, wall_ns = perf_counter_ns(), time_ns()
    stamp = struct.pack("qq", wall_ns // 10**9, wall_ns % 10**9)
    assert abs(clock.times([stamp])[0] - now_ns) < 1_000_000
    assert not clock.stepped()
    clock._ahead_ns -= 3_600_000_000_000
    assert clock.stepped()
    assert clock.times([stamp])[0] < perf_counter_ns(), "never in the future"
    assert clock.exact
    assert clock.times([5, stamp])[0] == 5
    assert not clock.exact
    clock.set()
    assert not clock.stepped()


def test_the_pace_follows_the_reads_and_does_not_flutter() -> None:
    polling = PollingInterval(0)
    polling.note(BUSY_READS, 9, WINDOW_NS // 2, exact=True)
    assert not polling.busy, "half a window tells nothing"
    polling.note(0, 9, WINDOW_NS, exact=True)
    assert polling.busy
    polling.note((BUSY_READS + QUIET_READS) // 2, 9, 2 * WINDOW_NS, exact=True)
    assert polling.busy, "between the two marks it stays as it is"
    polling.note(QUIET_READS - 1, 9, 3 * WINDOW_NS, exact=True)
    assert not polling.busy and polling.ever_busy
    polling.note(BUSY_READS, 9, 6 * WINDOW_NS, exact=True)
    assert not polling.busy, "a long window counts by its length"


@pytest.mark.parametrize(
    ("streams", "exact", "every_s"),
    [(1000, True, COARSEST_S), (100, True, 0.0025), (8, True, FINEST_S), (1000, False, FINEST_S)],
)
def test_looks_come_several_times_in_a_streams_gap(streams: int, exact: bool, every_s: float) -> None:
    polling = PollingInterval(0)
    polling.note(1000, streams, WINDOW_NS, exact=exact)
    assert polling.busy
    assert polling.interval_s == pytest.approx(every_s)
