"""The process of the measured ingress: production's, from HTTP to data channels, without Serve around it. And the
process of the others, which are connected to every engine as it is, and have no requests."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
from collections.abc import Sequence

import uvicorn
import uvloop

from bench.many import child
from bench.many.transport import ChannelTransport
from serve_app.protocol.errors import Outcome, ServeError
from serve_app.protocol.messages import TokenDelta
from serve_app.router.admission import Admission
from serve_app.router.attempts import DispatcherLimits, DispatcherSink
from serve_app.router.dispatcher import Dispatcher
from serve_app.router.request_context import RequestContext

MODEL = child.ROOT / "models" / "step-tiny"
NAME = "step3p7-flash"
FLAGS = (
    *("--model", str(MODEL), "--served-model-name", NAME, "--trust-remote-code", "--enforce-eager"),
    *("--max-num-seqs", "1024", "--max-num-batched-tokens", "8192", "--max-model-len", "8192"),
    *("--reasoning-parser", "step3p5", "--tool-call-parser", "step3p5", "--enable-auto-tool-choice"),
)
CONNECT_TIMEOUT_S = 60.0
LIMITS = DispatcherLimits(request_deadline_s=600.0)
MAX_QUEUED_REQUESTS = 1000


class NoLog:
    """`middleware.AccessLog` that writes nothing."""

    def request(self, context: RequestContext, route: str, status: int, outcome: Outcome, total_s: float) -> None:
        """See `AccessLog`."""


class NoRequests:
    """`DispatcherSink` of an ingress without requests."""

    def deltas(self, deltas: Sequence[tuple[str, TokenDelta]]) -> None:
        """See `DispatcherSink`."""

    def failed(self, request_id: str, error: ServeError) -> None:
        """See `DispatcherSink`."""


class Connected:
    """Dispatchers that are to be connected to the engines of the last command."""

    def __init__(self, port: int = 0) -> None:
        self._port = port
        self._dispatchers: list[tuple[Dispatcher, ChannelTransport]] = []

    def open(self, ingress_id: str, sink: DispatcherSink) -> Dispatcher:
        """One more dispatcher, not yet entered."""
        transport = ChannelTransport(ingress_id)
        admission = Admission(MAX_QUEUED_REQUESTS)
        dispatcher = Dispatcher(transport, ingress_id, LIMITS, sink, admission)
        self._dispatchers.append((dispatcher, transport))
        return dispatcher

    def listen(self, port: int) -> None:
        """The port of the HTTP server, for replies."""
        self._port = port

    async def handle(self, command: child.Command) -> child.Reply:
        """See `Command`. An empty list of replicas only asks for the counts."""
        if command.replicas:
            for _, transport in self._dispatchers:
                transport.listed = command.replicas
            await asyncio.wait_for(self._until_up(len(command.replicas)), CONNECT_TIMEOUT_S)
        frames = sum(transport.frame_count for _, transport in self._dispatchers)
        return child.Reply(port=self._port, frames=frames)

    async def _until_up(self, count: int) -> None:
        def counts() -> set[int]:
            return {len(found) for one, _ in self._dispatchers for found in (one.replicas_up(), one.connections())}

        while counts() != {count}:  # noqa: ASYNC110  # the dispatcher sets no event
            await asyncio.sleep(0.1)


async def measured() -> None:
    """An ingress with its HTTP server."""
    from serve_app.config import vllm_flags
    from serve_app.ingress.api import build_api
    from serve_app.ingress.middleware import IngressMiddleware, MiddlewareSettings

    connected = Connected()
    argv = vllm_flags.parse(list(FLAGS), vllm_flags.serve_parser())
    app, client = await build_api(argv, lambda sink: connected.open("measured", sink), [])
    async with client.dispatcher:
        settings = MiddlewareSettings(NAME, (), 1 << 20, keep_alive_s=10.0)
        config = uvicorn.Config(
            IngressMiddleware(app, settings, None, NoLog()), host="127.0.0.1", log_level="error", lifespan="off"
        )
        server = uvicorn.Server(config)
        listener = config.bind_socket()
        connected.listen(int(listener.getsockname()[1]))
        serving = asyncio.create_task(server.serve([listener]))
        await child.answer(connected.handle)
        serving.cancel()


async def others(count: int) -> None:
    """`count` ingresses without requests."""
    connected = Connected()
    async with contextlib.AsyncExitStack() as stack:
        for number in range(count):
            await stack.enter_async_context(connected.open(f"other-{number}", NoRequests()))
        await child.answer(connected.handle)


def main() -> None:
    """`python -m bench.many.ingress [--others COUNT]`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--others", type=int)
    options = parser.parse_args()
    logging.getLogger("serve_app").setLevel(logging.ERROR)  # each change of the engines loses all of them
    uvloop.run(measured() if options.others is None else others(options.others))


if __name__ == "__main__":
    main()
