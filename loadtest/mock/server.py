"""A server with known times, speaking the three APIs: the yardstick that the client is measured against.

Each request gets its first chunk `first_s` after its last byte came in, and each further chunk `gap_s` after the one
before, from absolute times, so lateness never adds up. How late the mock itself was is counted and can be asked for
(`GET /mock/lateness`): what is left is the client's. It can also fail on demand, in every way a server fails.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Self, cast

import msgspec
import numpy as np

from loadtest.mock.answers import WRITERS, MockConfig, MockRequest, chunk


@dataclass
class Lateness:
    """The mock's own delays: actual minus planned send time."""

    first_ns: list[int] = field(default_factory=list)
    chunk_ns: list[int] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """Mean and 99th percentile in ms, of first chunks and of the rest."""
        out: dict[str, float] = {}
        for name, values in (("first", self.first_ns), ("chunk", self.chunk_ns)):
            late = np.asarray(values or [0]) / 1e6
            out[f"{name}_mean_ms"] = float(late.mean())
            out[f"{name}_p99_ms"] = float(np.percentile(late, 99))
            out[f"{name}_count"] = len(values)
        return out


@dataclass
class _ScheduledResponse:
    """One answer, ready to be sent chunk by chunk."""

    chunks: list[bytes]
    fault: str
    due_ns: int = 0
    next: int = 0


class MockServer:
    """Owns the listening socket and counts; `async with` it."""

    def __init__(self, config: MockConfig, host: str = "127.0.0.1", port: int = 0) -> None:
        self.config = config
        self.lateness = Lateness()
        self.requests: list[MockRequest] = []
        self.headers: list[dict[str, str]] = []
        self.keep_requests = False
        self._answers: dict[tuple[str, int, int], list[bytes]] = {}
        self.count = 0
        self.running = 0
        self.waiting: list[_Connection] = []
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
            connection.hang_up()

    @property
    def url(self) -> str:
        """Base URL."""
        if self._server is None:
            raise RuntimeError("not started")
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"http://{host}:{port}"

    def joined(self, connection: _Connection) -> None:
        """A connection came."""
        self._open.add(connection)

    def left(self, connection: _Connection) -> None:
        """A connection went."""
        self._open.discard(connection)

    def answer(self, path: str, request: MockRequest) -> list[bytes]:
        """The chunks for a request; built once per shape, so that a burst of equal requests costs nothing."""
        key = (path, request.wanted(), request.prompt_tokens())
        if key not in self._answers:
            self._answers[key] = WRITERS[path](self.config, request)
        return self._answers[key]

    def next_fault(self) -> str:
        """The fault of the next generation request, if it is its turn."""
        self.count += 1
        every = self.config.fail_every
        return self.config.fault if every and self.count % every == 0 else ""


class _Connection(asyncio.Protocol):
    """One client connection; requests on it come one after the other."""

    def __init__(self, server: MockServer) -> None:
        self._mock = server
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self.plan: _ScheduledResponse | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not registered as asyncio.Transport.
        self._transport = cast(asyncio.Transport, transport)
        self._mock.joined(self)

    def connection_lost(self, _exc: Exception | None) -> None:
        self._transport = None
        self._mock.left(self)
        self._release()

    def hang_up(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        came_ns = perf_counter_ns()
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
        self._serve(method, path, headers, body, came_ns)

    def _serve(self, method: str, path: str, headers: dict[str, str], body: bytes, came_ns: int) -> None:
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
            self._generate(path, headers, body, came_ns)
        else:
            self._reply(404, {"error": {"message": f"no such path: {path}"}})

    def _generate(self, path: str, headers: dict[str, str], body: bytes, came_ns: int) -> None:
        mock, config = self._mock, self._mock.config
        request = msgspec.json.decode(body, type=MockRequest)
        if mock.keep_requests:
            mock.requests.append(request)
            mock.headers.append(headers)
        if request.model != config.model:
            self._reply(404, {"error": {"message": f"The model `{request.model}` does not exist.", "code": 404}})
            return
        fault = mock.next_fault()
        if fault in _REFUSALS:
            status, extra = _REFUSALS[fault]
            self._reply(status, {"error": {"message": f"mock {fault}", "code": status}}, extra)
            return
        if fault == "short":
            request.max_tokens = request.max_completion_tokens = request.wanted() // 2
        self.plan = _ScheduledResponse(mock.answer(path, request), fault, due_ns=came_ns + int(config.first_s * 1e9))
        if mock.running >= config.max_inflight:
            mock.waiting.append(self)
        else:
            self.admit()

    def admit(self) -> None:
        """Start answering."""
        self._mock.running += 1
        self._arm()

    def _arm(self) -> None:
        plan = self.plan
        if plan is None:
            return
        wait_s = max(0.0, (plan.due_ns - perf_counter_ns()) / 1e9)
        asyncio.get_running_loop().call_later(wait_s, self._send)

    def _send(self) -> None:
        plan, transport, config = self.plan, self._transport, self._mock.config
        if plan is None or transport is None:
            return
        late_ns = perf_counter_ns() - plan.due_ns
        (self._mock.lateness.chunk_ns if plan.next else self._mock.lateness.first_ns).append(late_ns)
        if plan.next == 0:
            transport.write(_STREAM_HEAD + plan.chunks[0])
        elif plan.fault and plan.next == len(plan.chunks) // 2 and self._spoil(plan.fault, transport):
            return
        else:
            transport.write(plan.chunks[plan.next])
        plan.next += 1
        if plan.next == len(plan.chunks):
            self._release()
            return
        plan.due_ns += int(config.gap_s * 1e9)
        self._arm()

    def _spoil(self, fault: str, transport: asyncio.Transport) -> bool:
        """Do the fault half-way; True where the answer ends with it."""
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
        mock = self._mock
        if self in mock.waiting:
            mock.waiting.remove(self)
        elif self.plan is not None:
            mock.running -= 1
        self.plan = None
        if mock.waiting and mock.running < mock.config.max_inflight:
            after = mock.waiting.pop(0)
            if after.plan is not None:
                after.plan.due_ns = perf_counter_ns() + int(mock.config.first_s * 1e9)
                after.admit()

    def _reply(self, status: int, content: object, extra: str = "") -> None:
        body = json.dumps(content).encode()
        head = f"HTTP/1.1 {status} Mock\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n{extra}\r\n"
        if self._transport is not None:
            self._transport.write(head.encode() + body)


_REFUSALS = {
    "full": (429, "retry-after: 7\r\n"),
    "unavailable": (503, "retry-after: 2\r\n"),
    "error": (500, ""),
}
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
