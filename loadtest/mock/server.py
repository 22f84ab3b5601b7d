"""A mock server with known response times, for the three APIs. The self-test measures the client against it.

A request gets its first chunk `first_s` after its last byte arrived, and each further chunk `gap_s` after the one
before. Send times are absolute, so lateness does not add up. The mock measures its own lateness (`GET /mock/lateness`);
the rest of what a client measures beyond the known times is the client's. It can also fail on demand.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field, replace
from time import perf_counter_ns
from typing import Self, cast

import msgspec
import numpy as np

from loadtest.mock.answers import WRITERS, MockConfig, MockRequest, chunk
from loadtest.mock.replicas import MockReplicas


@dataclass
class Lateness:
    """The mock's own delays in ns: actual minus planned send time."""

    first_ns: list[int] = field(default_factory=list)
    chunk_ns: list[int] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """Mean and 99th percentile in ms, of first chunks and of the rest."""
        figures: dict[str, float] = {}
        for name, values_ns in (("first", self.first_ns), ("chunk", self.chunk_ns)):
            late_ms = np.asarray(values_ns or [0]) / 1e6
            figures[f"{name}_mean_ms"] = float(late_ms.mean())
            figures[f"{name}_p99_ms"] = float(np.percentile(late_ms, 99))
            figures[f"{name}_count"] = len(values_ns)
        return figures


@dataclass
class _ScheduledResponse:
    """One response and the time of its next chunk."""

    chunks: list[bytes]
    fault: str
    due_ns: int = 0
    next_chunk: int = 0
    head: bytes = b""


class MockServer:
    """Owns the listening socket and its connections; an async context manager."""

    def __init__(self, config: MockConfig, host: str = "127.0.0.1", port: int = 0) -> None:
        self.config = config
        self.lateness = Lateness()
        self.requests: list[MockRequest] = []
        self.headers: list[dict[str, str]] = []
        self.keep_requests = False
        self.replicas = MockReplicas(config) if config.replicas else None
        self._chunks: dict[tuple[str, int, int], list[bytes]] = {}
        self.count = 0
        self.running = 0
        self.queue: list[_Connection] = []
        self._bind = (host, port)
        self._server: asyncio.Server | None = None
        self._open: set[_Connection] = set()

    async def start(self) -> None:
        """Listen. Raises OSError."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), *self._bind, backlog=4096)

    async def __aenter__(self) -> Self:
        if self._server is None:
            await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._server is not None:
            self._server.close()
        for connection in list(self._open):
            connection.abort()

    @property
    def url(self) -> str:
        """Base URL."""
        if self._server is None:
            raise RuntimeError("not started")
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"http://{host}:{port}"

    def add(self, connection: _Connection) -> None:
        """A connection was opened."""
        self._open.add(connection)

    def discard(self, connection: _Connection) -> None:
        """A connection was closed."""
        self._open.discard(connection)

    def chunks_for(self, path: str, request: MockRequest) -> list[bytes]:
        """The response's chunks; cached, so that a burst of similar requests does not make the mock late."""
        key = (path, request.output_tokens(), request.prompt_tokens())
        if key not in self._chunks:
            self._chunks[key] = WRITERS[path](self.config, request)
        return self._chunks[key]

    def next_fault(self) -> str:
        """Count a generation request; returns its fault, or an empty string."""
        self.count += 1
        every = self.config.fail_every
        return self.config.fault if every and self.count % every == 0 else ""


class _Connection(asyncio.Protocol):
    """One client connection, without pipelining."""

    def __init__(self, server: MockServer) -> None:
        self._mock = server
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self.response: _ScheduledResponse | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not registered as asyncio.Transport.
        self._transport = cast(asyncio.Transport, transport)
        self._mock.add(self)

    def connection_lost(self, _exc: Exception | None) -> None:
        self._transport = None
        self._mock.discard(self)
        self._release()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        arrived_ns = perf_counter_ns()
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        lines = bytes(self._buffer[:end]).decode("latin-1").split("\r\n")
        headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
        length = int(headers.get("content-length", "0"))
        if len(self._buffer) < end + 4 + length:
            return
        body = bytes(self._buffer[end + 4 : end + 4 + length])
        del self._buffer[: end + 4 + length]
        method, path, _ = lines[0].split(" ", 2)
        self._serve(method, path, headers, body, arrived_ns)

    def _serve(self, method: str, path: str, headers: dict[str, str], body: bytes, arrived_ns: int) -> None:
        mock, config = self._mock, self._mock.config
        key = headers.get("authorization", "").removeprefix("Bearer ") or headers.get("x-api-key", "")
        if config.api_key and key != config.api_key:
            self._reply(401, {"error": {"message": "invalid api key", "type": "authentication_error"}})
        elif path == "/v1/models":
            model = {"id": config.model, "object": "model", "root": config.root, "max_model_len": 262144}
            self._reply(200, {"object": "list", "data": [model]})
        elif path == "/mock/lateness":
            self._reply(200, mock.lateness.summary())
            mock.lateness = Lateness()
        elif method == "POST" and path in WRITERS:
            self._generate(path, headers, body, arrived_ns)
        else:
            self._reply(404, {"error": {"message": f"no such path: {path}"}})

    def _generate(self, path: str, headers: dict[str, str], body: bytes, arrived_ns: int) -> None:
        mock, config = self._mock, self._mock.config
        request = msgspec.json.decode(body, type=MockRequest)
        if mock.keep_requests:
            mock.requests.append(request)
            mock.headers.append(headers)
        if request.model != config.model:
            self._reply(404, {"error": {"message": f"The model `{request.model}` does not exist.", "code": 404}})
            return
        fault = mock.next_fault()
        if fault in _ERROR_RESPONSES:
            status, extra_header = _ERROR_RESPONSES[fault]
            self._reply(status, {"error": {"message": f"mock {fault}", "code": status}}, extra_header)
            return
        if fault == "short":
            request.max_tokens = request.max_completion_tokens = request.output_tokens() // 2
        due_ns = arrived_ns + int(config.first_s * 1e9)
        if mock.replicas is None:
            self.response = _ScheduledResponse(mock.chunks_for(path, request), fault, due_ns)
        else:
            replica, cached_tokens = mock.replicas.serve(request, headers)
            chunks = WRITERS[path](replace(config, cached_tokens=cached_tokens), request)
            self.response = _ScheduledResponse(chunks, fault, due_ns, head=f"x-replica-id: {replica}\r\n".encode())
        if mock.running >= config.max_inflight:
            mock.queue.append(self)
        else:
            self.admit()

    def admit(self) -> None:
        """Schedule the first chunk."""
        self._mock.running += 1
        self._schedule_next()

    def _schedule_next(self) -> None:
        response = self.response
        if response is None:
            return
        wait_s = max(0.0, (response.due_ns - perf_counter_ns()) / 1e9)
        asyncio.get_running_loop().call_later(wait_s, self._send)

    def _send(self) -> None:
        response, transport, config = self.response, self._transport, self._mock.config
        if response is None or transport is None:
            return
        late_ns = perf_counter_ns() - response.due_ns
        (self._mock.lateness.chunk_ns if response.next_chunk else self._mock.lateness.first_ns).append(late_ns)
        if response.next_chunk == 0:
            transport.write(_STREAM_HEAD + response.head + b"\r\n" + response.chunks[0])
        elif (
            response.fault
            and response.next_chunk == len(response.chunks) // 2
            and self._inject(response.fault, transport)
        ):
            return
        else:
            transport.write(response.chunks[response.next_chunk])
        response.next_chunk += 1
        if response.next_chunk == len(response.chunks):
            self._release()
            return
        response.due_ns += int(config.gap_s * 1e9)
        self._schedule_next()

    def _inject(self, fault: str, transport: asyncio.Transport) -> bool:
        """Inject a fault in the middle of a response; True where the response ends with it."""
        if fault == "cut":
            transport.close()
        elif fault == "event":
            transport.write(
                chunk(b'data: {"error":{"message":"engine died","code":500}}\n\ndata: [DONE]\n\n') + b"0\r\n\r\n"
            )
        elif fault == "garbage":
            transport.write(chunk(b"data: {not json}\n\n") + b"0\r\n\r\n")
        elif fault != "silent":
            return False
        self._release()
        return True

    def _release(self) -> None:
        """End this response, and admit the next queued one."""
        mock = self._mock
        if self in mock.queue:
            mock.queue.remove(self)
        elif self.response is not None:
            mock.running -= 1
        self.response = None
        if mock.queue and mock.running < mock.config.max_inflight:
            admitted = mock.queue.pop(0)
            if admitted.response is not None:
                admitted.response.due_ns = perf_counter_ns() + int(mock.config.first_s * 1e9)
                admitted.admit()

    def _reply(self, status: int, content: object, extra_header: str = "") -> None:
        body = json.dumps(content).encode()
        head = f"HTTP/1.1 {status} Mock\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        if self._transport is not None:
            self._transport.write((head + extra_header + "\r\n").encode() + body)


_ERROR_RESPONSES = {
    "full": (429, "retry-after: 7\r\n"),
    "unavailable": (503, "retry-after: 2\r\n"),
    "error": (500, ""),
}
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n"
