"""A connection finds the end of a response however its bytes are split, and timestamps each read once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from loadtest.errors import RequestOutcome
from loadtest.http.connection import Body, Exchange, HttpConnection

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


class FakeTransport(asyncio.Transport):
    """Keeps what is written, and whether it was aborted."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.aborted = False

    def write(self, data: bytes) -> None:  # type: ignore[override]  # the base names more types than a test writes
        self.written += data

    def abort(self) -> None:
        self.aborted = True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass


def fed(reads: Sequence[bytes]) -> tuple[HttpConnection, Exchange]:
    connection = HttpConnection()
    connection.connection_made(FakeTransport())
    exchange = connection.send_request(b"POST", 1)
    for read in reads:
        connection.data_received(read)
    return connection, exchange


def splits(data: bytes) -> list[list[bytes]]:
    return [[data[:at], data[at:]] for at in range(1, len(data))] + [[bytes([byte]) for byte in data]]


@pytest.mark.parametrize("reads", splits(HEAD + b"5\r\nhello\r\n0\r\n\r\n"))
async def test_a_chunked_body_ends_with_its_last_chunk_wherever_it_is_split(reads: list[bytes]) -> None:
    connection, exchange = fed(reads)
    assert exchange.done.done()
    assert not exchange.failure
    assert exchange.reusable
    assert not connection.closed
    assert len(exchange.read_ns) == len(exchange.reads)


@pytest.mark.parametrize("reads", splits(b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nnope!"))
async def test_a_body_with_content_length_ends_with_its_last_byte(reads: list[bytes]) -> None:
    _, exchange = fed(reads)
    assert exchange.done.done()
    assert exchange.status == 404
    assert b"".join(exchange.reads) == b"nope!"


async def test_a_stream_that_merely_contains_a_zero_goes_on() -> None:
    _, exchange = fed([HEAD, b"c\r\ndata: 10\r\n\r\n\r\n", b"9\r\ndata: 0\r\n"])
    assert not exchange.done.done()


async def test_an_empty_chunked_body_ends() -> None:
    _, exchange = fed([HEAD, b"0\r\n\r\n"])
    assert exchange.done.done()


async def test_interim_responses_are_skipped() -> None:
    _, exchange = fed([b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"])
    assert exchange.status == 200
    assert exchange.done.done()


async def test_a_body_without_length_ends_when_the_server_closes() -> None:
    connection, exchange = fed([b"HTTP/1.1 200 OK\r\n\r\n", b"all of it"])
    assert not exchange.done.done()
    connection.connection_lost(None)
    assert exchange.body is Body.UNTIL_CLOSE
    assert not exchange.failure
    assert not exchange.reusable


async def test_closing_within_a_chunked_body_is_a_failure_with_its_position() -> None:
    connection, exchange = fed([HEAD, b"5\r\nhello\r\n"])
    connection.connection_lost(None)
    assert "after 10 bytes of the body" in exchange.failure


async def test_bytes_that_are_not_http_are_a_failure() -> None:
    connection, exchange = fed([b"SSH-2.0-OpenSSH\r\n\r\n"])
    assert "not an HTTP response" in exchange.failure
    assert connection.closed


async def test_bytes_without_a_request_close_the_connection() -> None:
    connection, exchange = fed([HEAD + b"0\r\n\r\n"])
    assert exchange.done.done()
    connection.data_received(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
    assert connection.closed


async def test_connection_close_ends_the_connection() -> None:
    connection, exchange = fed([b"HTTP/1.1 200 OK\r\nConnection: close\r\ncontent-length: 0\r\n\r\n"])
    assert exchange.done.done()
    assert not exchange.reusable
    assert connection.closed


async def test_abandoning_keeps_the_reads_and_the_reason() -> None:
    connection, exchange = fed([HEAD, b"5\r\nhello\r\n"])
    connection.abandon(RequestOutcome.TIMEOUT, "no end within 1 s")
    assert exchange.done.done()
    assert exchange.abandoned is RequestOutcome.TIMEOUT
    assert exchange.reads == [b"5\r\nhello\r\n"]


@pytest.mark.parametrize(
    "interim", [b"HTTP/1.1 103 Early Hints\r\nLink: x\r\nContent-Length: 9\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"]
)
async def test_an_interim_responses_headers_are_not_the_responses(interim: bytes) -> None:
    for reads in splits(interim * 2 + b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"):
        _, exchange = fed(reads)
        assert exchange.done.done()
        assert (exchange.status, exchange.headers, b"".join(exchange.reads)) == (200, {"content-length": "2"}, b"hi")


async def test_an_upgrade_nobody_requested_is_a_failure() -> None:
    connection, exchange = fed([b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"])
    assert "not an HTTP response" in exchange.failure
    assert connection.closed


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
async def test_a_status_without_a_body_ends_with_its_head(status: str) -> None:
    connection, exchange = fed([f"HTTP/1.1 {status}\r\n\r\n".encode()])
    assert exchange.done.done() and exchange.reusable
    assert not connection.closed


async def test_http_1_0_connections_are_not_reused() -> None:
    connection, exchange = fed([b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nhi"])
    assert exchange.done.done() and not exchange.failure
    assert connection.closed and not exchange.reusable


async def test_bytes_after_a_body_with_content_length_are_dropped_with_the_connection() -> None:
    connection, exchange = fed([b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nh", b"iHTTP/1.1 408 Timeout\r\n\r\n"])
    assert b"".join(exchange.reads) == b"hi"
    assert not exchange.failure
    assert connection.closed and not exchange.reusable


@pytest.mark.parametrize("length", ["", "x", "-1", "\xb2"])
async def test_a_body_with_an_unusable_length_ends_when_the_server_closes(length: str) -> None:
    connection, exchange = fed([f"HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\nhi".encode("latin-1")])
    assert not exchange.done.done()
    connection.connection_lost(None)
    assert exchange.done.done() and not exchange.failure


async def test_a_reset_connection_gives_the_systems_reason() -> None:
    for reads, position in (([], "before any answer"), ([HEAD, b"5\r\nhello\r\n"], "after 10 bytes of the body")):
        connection, exchange = fed(reads)
        connection.connection_lost(ConnectionResetError(104, "Connection reset by peer"))
        assert exchange.failure == f"Connection reset by peer {position}"
        assert not exchange.reusable


async def test_a_second_request_waits_for_the_first_response() -> None:
    connection, exchange = fed([HEAD])
    with pytest.raises(RuntimeError, match="one exchange at a time"):
        connection.send_request(b"POST", 1)
    connection.data_received(b"0\r\n\r\n")
    assert exchange.done.done()
    assert not connection.send_request(b"POST", 1).done.done()


async def test_each_read_has_its_own_time_in_order() -> None:
    _, exchange = fed([HEAD, b"5\r\nhello\r\n", b"1\r\n!\r\n", b"0\r\n\r\n"])
    times_ns = [1, exchange.sent_ns, exchange.first_byte_ns, *exchange.read_ns]
    assert times_ns == sorted(times_ns)
    assert exchange.end_ns == exchange.read_ns[-1]
    assert len(exchange.read_ns) == 3
