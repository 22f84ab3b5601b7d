"""The wire finds the end of a response however its bytes are cut, and stamps each read once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from loadtest.errors import RequestOutcome
from loadtest.http.connection import Body, Exchange, HttpConnection

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


class FakeTransport(asyncio.Transport):
    """Takes what is written; knows whether it was closed."""

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


def cuts(data: bytes) -> list[list[bytes]]:
    return [[data[:at], data[at:]] for at in range(1, len(data))] + [[bytes([byte]) for byte in data]]


@pytest.mark.parametrize("reads", cuts(HEAD + b"5\r\nhello\r\n0\r\n\r\n"))
async def test_a_chunked_body_ends_with_its_last_chunk_wherever_it_is_cut(reads: list[bytes]) -> None:
    connection, exchange = fed(reads)
    assert exchange.done.done()
    assert not exchange.failure
    assert exchange.reusable
    assert not connection.closed
    assert len(exchange.read_ns) == len(exchange.reads)


@pytest.mark.parametrize("reads", cuts(b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nnope!"))
async def test_a_counted_body_ends_with_its_last_byte(reads: list[bytes]) -> None:
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


async def test_interim_responses_are_passed_over() -> None:
    _, exchange = fed([b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"])
    assert exchange.status == 200
    assert exchange.done.done()


async def test_a_body_without_length_ends_when_the_server_hangs_up() -> None:
    connection, exchange = fed([b"HTTP/1.1 200 OK\r\n\r\n", b"all of it"])
    assert not exchange.done.done()
    connection.connection_lost(None)
    assert exchange.body is Body.UNTIL_CLOSE
    assert not exchange.failure
    assert not exchange.reusable


async def test_hanging_up_in_a_chunked_body_is_a_failure_that_says_where() -> None:
    connection, exchange = fed([HEAD, b"5\r\nhello\r\n"])
    connection.connection_lost(None)
    assert "after 10 bytes of the body" in exchange.failure


async def test_something_else_than_http_is_a_failure() -> None:
    connection, exchange = fed([b"SSH-2.0-OpenSSH\r\n\r\n"])
    assert "not an HTTP response" in exchange.failure
    assert connection.closed


async def test_bytes_that_nobody_asked_for_close_the_connection() -> None:
    connection, exchange = fed([HEAD + b"0\r\n\r\n"])
    assert exchange.done.done()
    connection.data_received(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
    assert connection.closed


async def test_a_server_that_announces_the_end_of_the_connection_is_believed() -> None:
    connection, exchange = fed([b"HTTP/1.1 200 OK\r\nConnection: close\r\ncontent-length: 0\r\n\r\n"])
    assert exchange.done.done()
    assert not exchange.reusable
    assert connection.closed


async def test_abandoning_keeps_what_came_and_why() -> None:
    connection, exchange = fed([HEAD, b"5\r\nhello\r\n"])
    connection.abandon(RequestOutcome.TIMEOUT, "no end within 1 s")
    assert exchange.done.done()
    assert exchange.abandoned is RequestOutcome.TIMEOUT
    assert exchange.reads == [b"5\r\nhello\r\n"]
