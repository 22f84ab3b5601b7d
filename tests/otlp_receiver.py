"""A real OTLP receiver, over gRPC or HTTP, that keeps the spans it gets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as rpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from starlette.types import Receive, Scope, Send

from tests.http.harness import listening

WAIT_S = 60.0


@dataclass
class Receiver:
    """The spans so far, and the attributes of the resource that sent the last ones."""

    spans: list[Span] = field(default_factory=list)
    resource: dict[str, object] = field(default_factory=dict)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def take(self, request: Any) -> None:
        async with self.changed:
            for sender in request.resource_spans:
                self.resource = attributes(sender.resource)
                self.spans += [span for scope in sender.scope_spans for span in scope.spans]
            self.changed.notify_all()

    async def trace(self, trace_id: str) -> dict[str, list[Span]]:
        """The spans of that trace by name, when its request's own span is there, which is sent last."""

        def found() -> list[Span]:
            return [span for span in self.spans if span.trace_id.hex() == trace_id]

        async with asyncio.timeout(WAIT_S), self.changed:
            await self.changed.wait_for(lambda: any(span.kind == Span.SPAN_KIND_SERVER for span in found()))
        named: dict[str, list[Span]] = {}
        for span in found():
            named.setdefault(span.name, []).append(span)
        return named


def attributes(holder: Any) -> dict[str, object]:
    """The attributes of a span, an event, a link or a resource."""
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in holder.attributes}


class _Servicer(rpc.TraceServiceServicer):  # type: ignore[misc]  # generated code
    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    async def Export(self, request: Any, _context: Any) -> Any:  # noqa: N802  # the service's name for it
        await self._receiver.take(request)
        return messages.ExportTraceServiceResponse()


@contextlib.asynccontextmanager
async def grpc_receiver() -> AsyncIterator[tuple[Receiver, str]]:
    """A receiver, and its address."""
    receiver, server = Receiver(), grpc.aio.server()
    rpc.add_TraceServiceServicer_to_server(_Servicer(receiver), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield receiver, f"http://127.0.0.1:{port}"
    finally:
        await server.stop(None)


@contextlib.asynccontextmanager
async def http_receiver() -> AsyncIterator[tuple[Receiver, str]]:
    """A receiver at `/v1/traces` of an address, and that."""
    receiver = Receiver()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert (scope["path"], scope["method"]) == ("/v1/traces", "POST")
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        await receiver.take(messages.ExportTraceServiceRequest.FromString(body))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async with listening(app) as url:
        yield receiver, url
