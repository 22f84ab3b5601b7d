"""One HTTP/1.1 connection that does almost nothing while a response streams.

The rule: `data_received` reads the clock, keeps the bytes, and looks whether the response is over. No line is split, no
JSON parsed and no chunk header read before the stream has ended, because every microsecond spent here is added to the
figures of all other streams. What the bytes mean is `http/event_stream.py`'s and `api/responses.py`'s business.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import Enum
from time import perf_counter_ns
from typing import Protocol, cast

from loadtest.errors import RequestOutcome

LAST_CHUNK = b"\r\n0\r\n\r\n"
"""End of a chunked body. Inside SSE it would need a line that is just `0`, which no event has; the exact check comes
when the chunks are decoded."""
ENDING = LAST_CHUNK[2:]
"""What the last read ends with, or is a part of: the line break before it may have come earlier."""


def may_be_last(data: bytes) -> bool:
    """Whether a chunked body may end with this read; the rest of `LAST_CHUNK` may have come before it."""
    return data.endswith(ENDING) or len(data) < len(ENDING)


class Body(Enum):
    """How the end of a response's body is known."""

    CHUNKED = "chunked"
    COUNTED = "counted"
    UNTIL_CLOSE = "until_close"


@dataclass(slots=True, eq=False)
class Exchange:
    """One request and the bytes that answered it, each read with its time."""

    done: asyncio.Future[None]
    start_ns: int = 0
    sent_ns: int = 0
    first_byte_ns: int = 0
    end_ns: int = 0
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: Body = Body.UNTIL_CLOSE
    times: list[int] = field(default_factory=list)
    reads: list[bytes] = field(default_factory=list)
    failure: str = ""
    """Why the connection ended before the response did; empty where it did not."""
    abandoned: RequestOutcome | None = None
    """Set where this side ended it."""
    reusable: bool = False


class ByteTransport(Protocol):
    """What carries a wire's bytes: a transport of asyncio (TLS), or a line of `http/socket_reader.py`."""

    def write(self, data: bytes, /) -> None: ...

    def abort(self) -> None: ...


class HttpConnection(asyncio.Protocol):
    """A connection that carries one exchange at a time."""

    def __init__(self) -> None:
        self._transport: ByteTransport | None = None
        self._exchange: Exchange | None = None
        self._streaming = False
        self._head = b""
        self._left = 0
        self.closed = False
        self.idle_since_ns = perf_counter_ns()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport; asyncio sets TCP_NODELAY by itself."""
        # uvloop's transports are not registered as asyncio.Transport.
        transport = cast(asyncio.Transport, transport)
        # A prompt of 256k tokens must not park in user space behind the default 64 KiB mark.
        transport.set_write_buffer_limits(high=16 * 1024 * 1024)
        self.attach_transport(transport)

    def attach_transport(self, transport: ByteTransport) -> None:
        """From now on bytes go and come through `carrier`."""
        self._transport = transport

    def begin(self, request: bytes, start_ns: int) -> Exchange:
        """Write a request in one piece and return the exchange that its answer will fill."""
        if self._transport is None or self._exchange is not None:
            raise RuntimeError("one exchange at a time, on an open connection")
        exchange = Exchange(asyncio.get_running_loop().create_future(), start_ns=start_ns)
        self._exchange, self._streaming, self._head = exchange, False, b""
        self._transport.write(request)
        exchange.sent_ns = perf_counter_ns()
        return exchange

    @property
    def streaming(self) -> bool:
        """Within a chunked body: until a read might be the last one, bytes need only be kept."""
        return self._streaming

    def data_received(self, data: bytes) -> None:
        """Stamp and keep; see the module's rule."""
        self.received(data, perf_counter_ns())

    def received(self, data: bytes, now: int) -> None:
        """Keep bytes that were read at `now` (ns)."""
        exchange = self._exchange
        if self._streaming and exchange is not None:
            exchange.times.append(now)
            exchange.reads.append(data)
            if may_be_last(data):
                self._maybe_last_chunk(exchange, now)
        elif exchange is None:
            self.close()  # bytes that nobody asked for: this connection cannot be trusted
        else:
            self._before_or_beside_stream(exchange, now, data)

    def append_reads(self, reads: list[bytes], times: list[int]) -> None:
        """Bytes of a running stream that were read one after the other; none of them ends it."""
        if self._exchange is not None:
            self._exchange.reads += reads
            self._exchange.times += times

    def _before_or_beside_stream(self, exchange: Exchange, now: int, data: bytes) -> None:
        if exchange.first_byte_ns == 0:
            exchange.first_byte_ns = now
        if exchange.status:
            self._body(exchange, now, data)
            return
        self._head += data
        end = self._head.find(b"\r\n\r\n")
        while end >= 0:
            head, self._head = self._head[:end], self._head[end + 4 :]
            if not self._read_head(exchange, head):
                self._finish(exchange, now, f"not an HTTP response: {head[:80]!r}")
                return
            if exchange.status >= 200:
                rest, self._head = self._head, b""
                self._body(exchange, now, rest)
                return
            end = self._head.find(b"\r\n\r\n")  # 1xx: the real head follows

    def _read_head(self, exchange: Exchange, head: bytes) -> bool:
        lines = head.decode("latin-1").split("\r\n")
        parts = lines[0].split(" ", 2)
        if len(parts) < 2 or not parts[0].startswith("HTTP/1.") or not parts[1].isdigit():
            return False
        exchange.status = int(parts[1])
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        exchange.headers = headers
        exchange.reusable = parts[0] == "HTTP/1.1" and headers.get("connection", "").lower() != "close"
        if "chunked" in headers.get("transfer-encoding", "").lower():
            exchange.body = Body.CHUNKED
        elif headers.get("content-length", "").isdigit():
            exchange.body = Body.COUNTED
            self._left = int(headers["content-length"])
        if exchange.status < 200:
            exchange.status = 0 if exchange.status != 101 else 101
            return exchange.status == 0
        return True

    def _body(self, exchange: Exchange, now: int, data: bytes) -> None:
        if data:
            exchange.times.append(now)
            exchange.reads.append(data)
        if exchange.body is Body.CHUNKED:
            self._streaming = True
            if data:
                self._maybe_last_chunk(exchange, now)
        elif exchange.body is Body.COUNTED:
            self._left -= len(data)
            if self._left <= 0:
                self._finish(exchange, now)

    def _maybe_last_chunk(self, exchange: Exchange, now: int) -> None:
        tail = exchange.reads[-1]
        back = 2
        while len(tail) < len(LAST_CHUNK) and back <= len(exchange.reads):
            tail = exchange.reads[-back] + tail
            back += 1
        # An empty chunked body is the bare terminator, without a chunk's line end before it.
        if tail.endswith(LAST_CHUNK) or (back > len(exchange.reads) and tail == ENDING):
            self._finish(exchange, now)

    def _finish(self, exchange: Exchange, now: int, failure: str = "") -> None:
        self._exchange, self._streaming = None, False
        exchange.end_ns, exchange.failure = now, failure
        exchange.reusable = exchange.reusable and not failure and exchange.body is not Body.UNTIL_CLOSE
        self.idle_since_ns = now
        if not exchange.reusable:
            self.close()
        if not exchange.done.done():
            exchange.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """The server hung up: fine between requests, a cut stream otherwise."""
        self.closed = True
        exchange = self._exchange
        if exchange is None:
            return
        if exc is None and exchange.status and exchange.body is Body.UNTIL_CLOSE:
            self._finish(exchange, perf_counter_ns())
            return
        got = sum(map(len, exchange.reads))
        why = (getattr(exc, "strerror", None) or str(exc)) if exc else "the server closed the connection"
        where = f"after {got} bytes of the body" if exchange.status else "before any answer"
        self._finish(exchange, perf_counter_ns(), f"{why} {where}")

    def abandon(self, outcome: RequestOutcome, why: str) -> None:
        """End the running exchange from this side: a timeout or the user's interrupt."""
        if self._exchange is not None:
            self._exchange.abandoned = outcome
            self._finish(self._exchange, perf_counter_ns(), why)
        self.close()

    def close(self) -> None:
        """Close without waiting; harmless when repeated."""
        self.closed = True
        if self._transport is not None:
            self._transport.abort()
