"""One HTTP/1.1 connection that does almost no work while a response streams.

`data_received` takes a timestamp, stores the bytes and checks whether the response is complete. Lines, JSON and chunk
headers are parsed after the stream has ended, because every microsecond spent here delays the timestamps of all other
streams. `http/event_stream.py` and `api/event_parser.py` do the parsing.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import Enum
from time import perf_counter_ns
from typing import cast

from loadtest.errors import RequestOutcome

LAST_CHUNK = b"\r\n0\r\n\r\n"
"""End of a chunked body. A payload contains these bytes only if an SSE line is just `0`, which no event has. The exact
check follows when the chunks are decoded."""
ENDING = LAST_CHUNK[2:]
"""The last read ends with this, or is a part of it. The CRLF before it may belong to an earlier read."""


class Body(Enum):
    """How the end of a response's body is found."""

    CHUNKED = "chunked"
    CONTENT_LENGTH = "content_length"
    UNTIL_CLOSE = "until_close"


@dataclass(slots=True, eq=False)
class Exchange:
    """One request and its response: the bytes of each socket read, and when it arrived.

    Times are in ns of `time.perf_counter_ns`; 0 where the event has not happened.
    """

    done: asyncio.Future[None]
    start_ns: int = 0
    sent_ns: int = 0
    first_byte_ns: int = 0
    end_ns: int = 0
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: Body = Body.UNTIL_CLOSE
    reads: list[bytes] = field(default_factory=list)
    """The body, one entry per socket read, with its chunk headers."""
    read_ns: list[int] = field(default_factory=list)
    """Arrival of each entry of `reads`."""
    failure: str = ""
    """Why the response is incomplete; empty for a complete one."""
    abandoned: RequestOutcome | None = None
    """Set where the client ended the exchange."""
    reusable: bool = False
    """Whether the connection can carry another request."""


class HttpConnection(asyncio.Protocol):
    """A connection that carries one exchange at a time, without pipelining."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._streaming = False
        self._head = b""
        self._missing_bytes = 0  # of a body with Content-Length
        self.closed = False
        self.idle_since_ns = perf_counter_ns()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport; asyncio sets TCP_NODELAY by itself."""
        # uvloop's transports are not registered as asyncio.Transport.
        self._transport = cast(asyncio.Transport, transport)
        # A prompt of 256k tokens exceeds the default mark of 64 KiB, and the rest would be sent later.
        self._transport.set_write_buffer_limits(high=16 * 1024 * 1024)

    def send_request(self, request: bytes, start_ns: int) -> Exchange:
        """Write a whole request and return the exchange that its response will fill.

        Raises RuntimeError while another exchange is running.
        """
        if self._transport is None or self._exchange is not None:
            raise RuntimeError("a connection carries one exchange at a time")
        exchange = Exchange(asyncio.get_running_loop().create_future(), start_ns=start_ns)
        self._exchange, self._streaming, self._head = exchange, False, b""
        self._transport.write(request)
        exchange.sent_ns = perf_counter_ns()
        return exchange

    def data_received(self, data: bytes) -> None:
        """Timestamp and store, without parsing; see the module's docstring."""
        now_ns = perf_counter_ns()
        exchange = self._exchange
        if self._streaming and exchange is not None:
            exchange.read_ns.append(now_ns)
            exchange.reads.append(data)
            if data.endswith(ENDING) or len(data) < len(ENDING):
                self._finish_if_last_chunk(exchange, now_ns)
        elif exchange is None:
            self.close()  # bytes without a request: later responses could not be matched to requests
        else:
            self._receive_head_or_body(exchange, now_ns, data)

    def _receive_head_or_body(self, exchange: Exchange, now_ns: int, data: bytes) -> None:
        if exchange.first_byte_ns == 0:
            exchange.first_byte_ns = now_ns
        if exchange.status:
            self._receive_body(exchange, now_ns, data)
            return
        self._head += data
        end = self._head.find(b"\r\n\r\n")
        while end >= 0:
            head, self._head = self._head[:end], self._head[end + 4 :]
            if not self._parse_head(exchange, head):
                self._finish(exchange, now_ns, f"not an HTTP response: {head[:80]!r}")
                return
            if exchange.status >= 200:
                rest, self._head = self._head, b""
                self._receive_body(exchange, now_ns, rest)
                return
            end = self._head.find(b"\r\n\r\n")  # after 1xx the final response follows

    def _parse_head(self, exchange: Exchange, head: bytes) -> bool:
        """Fill status, headers and body kind; False where the client cannot go on. `status` stays 0 after a 1xx."""
        lines = head.decode("latin-1").split("\r\n")
        parts = lines[0].split(" ", 2)
        if len(parts) < 2 or not parts[0].startswith("HTTP/1.") or not parts[1].isdecimal():
            return False
        status = int(parts[1])
        if status < 200:
            return status != 101  # 101: the connection speaks another protocol from here on
        exchange.status = status
        headers = exchange.headers
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        exchange.reusable = parts[0] == "HTTP/1.1" and headers.get("connection", "").lower() != "close"
        if status in (204, 304):
            exchange.body, self._missing_bytes = Body.CONTENT_LENGTH, 0
        elif "chunked" in headers.get("transfer-encoding", "").lower():
            exchange.body = Body.CHUNKED
        elif headers.get("content-length", "").isdecimal():
            exchange.body, self._missing_bytes = Body.CONTENT_LENGTH, int(headers["content-length"])
        return True

    def _receive_body(self, exchange: Exchange, now_ns: int, data: bytes) -> None:
        if data:
            exchange.read_ns.append(now_ns)
            exchange.reads.append(data)
        if exchange.body is Body.CHUNKED:
            self._streaming = True
            if data:
                self._finish_if_last_chunk(exchange, now_ns)
        elif exchange.body is Body.CONTENT_LENGTH:
            self._missing_bytes -= len(data)
            if self._missing_bytes < 0:  # bytes after the response: they belong to no request
                exchange.reads[-1] = data[: self._missing_bytes]
                exchange.reusable = False
            if self._missing_bytes <= 0:
                self._finish(exchange, now_ns)

    def _finish_if_last_chunk(self, exchange: Exchange, now_ns: int) -> None:
        tail = exchange.reads[-1]
        back = 2
        while len(tail) < len(LAST_CHUNK) and back <= len(exchange.reads):
            tail = exchange.reads[-back] + tail
            back += 1
        # An empty chunked body is the last chunk alone, without the CRLF of a chunk before it.
        if tail.endswith(LAST_CHUNK) or (back > len(exchange.reads) and tail == ENDING):
            self._finish(exchange, now_ns)

    def _finish(self, exchange: Exchange, now_ns: int, failure: str = "") -> None:
        self._exchange, self._streaming = None, False
        exchange.end_ns, exchange.failure = now_ns, failure
        exchange.reusable = exchange.reusable and not failure and exchange.body is not Body.UNTIL_CLOSE
        self.idle_since_ns = now_ns
        if not exchange.reusable:
            self.close()
        if not exchange.done.done():
            exchange.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """The server closed the connection: harmless between requests, an incomplete response otherwise."""
        self.closed = True
        exchange = self._exchange
        if exchange is None:
            return
        if exc is None and exchange.status and exchange.body is Body.UNTIL_CLOSE:
            self._finish(exchange, perf_counter_ns())
            return
        body_bytes = sum(map(len, exchange.reads))
        reason = (getattr(exc, "strerror", None) or str(exc)) if exc else "the server closed the connection"
        position = f"after {body_bytes} bytes of the body" if exchange.status else "before any answer"
        self._finish(exchange, perf_counter_ns(), f"{reason} {position}")

    def abandon(self, outcome: RequestOutcome, reason: str) -> None:
        """End the running exchange from the client's side: a timeout, or the user stopped the run."""
        if self._exchange is not None:
            self._exchange.abandoned = outcome
            self._finish(self._exchange, perf_counter_ns(), reason)
        self.close()

    def close(self) -> None:
        """Close at once, without flushing. May be called repeatedly."""
        self.closed = True
        if self._transport is not None:
            self._transport.abort()
