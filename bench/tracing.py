"""`python -m bench tracing`: the CPU time that traces cost an ingress for each request.

The middleware and the tracing of the service in one process, with an app that answers at once in place of vLLM's, and a
real collector in another process. Tracing is off, samples nothing, 1 % or everything, in turn; exporting counts. Of a
whole request that would be lost in the noise: compare with `python -m bench front-end --only requests`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as rpc
from starlette.types import Message, Receive, Scope, Send

from serve_app.config.schema import TracingConfig
from serve_app.ingress.middleware import IngressMiddleware, MiddlewareSettings
from serve_app.observability.records import RecordStore, record_of
from serve_app.observability.tracing import Tracing, exporter_for
from serve_app.protocol.errors import Outcome
from serve_app.protocol.messages import EngineTiming, TokenDelta
from serve_app.router.request_context import CURRENT, AttemptTrace, RequestContext, RequestTrace
from serve_app.router.routing import Decision, Reason

BODY = b'{"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 20}'
SCOPE: Scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "http_version": "1.1"}
HEADERS = [(b"content-type", b"application/json"), (b"user-agent", b"bench"), (b"accept", b"*/*")]
CLIENT = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"
DECISION = Decision("replica", Reason.NEW, missing_tokens=100)


@dataclass
class Mode:
    """One way to be configured: `sample_ratio` (None: off), and the client's `traceparent` with the flag 00, if any."""

    name: str
    sample_ratio: float | None
    traceparent: bytes = b""
    us: list[float] = field(default_factory=list)
    """CPU microseconds for each request, by round."""


@dataclass
class Log:
    """The record of a request, as an ingress keeps it."""

    store: RecordStore = field(default_factory=RecordStore)

    def request(self, context: RequestContext, route: str, status: int, outcome: Outcome, total_s: float) -> None:
        """See `middleware.AccessLog`."""
        self.store.add(record_of(context, "bench", route, status, outcome, total_s))


async def answer_at_once(_scope: Scope, receive: Receive, send: Send) -> None:
    """An app in place of vLLM's: one attempt, two tokens."""
    await receive()
    now_s = asyncio.get_running_loop().time()
    attempt = AttemptTrace("replica", now_s, DECISION, span_id=7, end="finished")
    attempt.take(TokenDelta("x", 0, [1], timing=EngineTiming(1e-6, 1e-6, 1e-5)), now_s + 2e-5)
    attempt.take(TokenDelta("x", 1, [1]), now_s + 4e-5)
    attempt.ended_s = now_s + 4e-5
    context = CURRENT.get()
    if context is not None:
        context.sequences.append(RequestTrace(submitted_s=now_s, prompt_tokens=100, attempts=[attempt]))
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 when everything was measured."""
    parser = argparse.ArgumentParser(prog="python -m bench tracing", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--requests", type=int, default=2000, help="of each mode in each round")
    parser.add_argument("--collect", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.collect:
        collect()
        return 0
    modes = [
        Mode("off", None),
        Mode("0 %", 0.0),
        Mode("1 %", 0.01),
        Mode("100 %", 1.0),
        Mode("1 %, clients send the flag 00", 0.01, CLIENT),
    ]
    with collector() as url:
        asyncio.run(measure(modes, url, options.rounds, options.requests))
    print(as_text(modes))
    return 0


async def measure(modes: Sequence[Mode], url: str, rounds: int, requests: int) -> None:
    """Each mode in each round, beginning with another one every time."""
    for number in range(rounds + 1):
        for turn in range(len(modes)):
            mode = modes[(turn + number) % len(modes)]
            spent_us = await run(mode, url, requests)
            if number:  # the first round warms up
                mode.us.append(spent_us)


async def run(mode: Mode, url: str, requests: int) -> float:
    """CPU microseconds for each request of this mode, its spans exported."""
    async with contextlib.AsyncExitStack() as stack:
        tracing = None
        if mode.sample_ratio is not None:
            exporter = exporter_for(TracingConfig(endpoint=url))
            tracing = await stack.enter_async_context(Tracing(exporter, mode.sample_ratio, "bench", _lost))
        settings = MiddlewareSettings("m", (), 1 << 20, 10.0)
        middleware = IngressMiddleware(answer_at_once, settings, None, Log(), None, tracing)
        headers = [*HEADERS, (b"traceparent", mode.traceparent)] if mode.traceparent else HEADERS
        began_s = time.process_time()
        for number in range(requests):
            await ask(middleware, headers)
            if number % 100 == 99:
                await asyncio.sleep(0.002)  # an ingress waits between requests, too: the exporter gets its turn
        await stack.aclose()
        return (time.process_time() - began_s) / requests * 1e6


async def ask(
    middleware: Callable[[Scope, Receive, Send], Awaitable[None]], headers: list[tuple[bytes, bytes]]
) -> None:
    """One request."""
    pending: list[Message] = [{"type": "http.request", "body": BODY, "more_body": False}]

    async def receive() -> Message:
        return pending.pop() if pending else {"type": "http.disconnect"}

    async def send(_message: Message) -> None:
        return

    await middleware({**SCOPE, "headers": headers}, receive, send)


def _lost(count: int) -> None:
    raise RuntimeError(f"{count} spans did not reach the collector")


def as_text(modes: Sequence[Mode]) -> str:
    """The table: medians, and the median of the differences to `off` of the same round with their quartiles."""
    lines = ["| tracing | CPU a request | more than off | quartiles |", "| --- | --- | --- | --- |"]
    for mode in modes:
        more = [one - other for one, other in zip(mode.us, modes[0].us, strict=True)]
        low, middle, high = statistics.quantiles(more, n=4)
        lines.append(
            f"| {mode.name} | {statistics.median(mode.us):.0f} us | {middle:.1f} us | {low:.1f} to {high:.1f} |"
        )
    return "\n".join(lines)


class _Collector(rpc.TraceServiceServicer):
    def Export(self, _request: Any, _context: Any) -> Any:  # noqa: N802  # the service's name for it
        return messages.ExportTraceServiceResponse()


def collect() -> None:
    """Take spans and forget them, until standard input ends."""
    server = grpc.server(ThreadPoolExecutor(2))
    rpc.add_TraceServiceServicer_to_server(_Collector(), server)  # type: ignore[no-untyped-call]  # generated code
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    sys.stdin.read()
    server.stop(None)


@contextlib.contextmanager
def collector() -> Iterator[str]:
    """A collector in a process of its own, whose CPU time does not count; its address."""
    command = [sys.executable, "-m", "bench", "tracing", "--collect"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        if process.stdin is None or process.stdout is None:  # for mypy: both are pipes
            raise RuntimeError
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.stdin.close()
