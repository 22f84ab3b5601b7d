"""The whole service in one process, without Ray: from the middleware to the engine replicas. Real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import msgspec
import uvicorn
from starlette.types import ASGIApp

from serve_app.config import vllm_flags
from serve_app.engine.fake import FakeEngine, FakeEngineConfig
from serve_app.engine.replica import EngineFactory, EngineReplica
from serve_app.engine.watchdog import WatchdogLimits
from serve_app.ingress import page_routes, status_routes
from serve_app.ingress.api import build_api
from serve_app.ingress.cors import Cors
from serve_app.ingress.engine_client import ReplicatedEngineClient
from serve_app.ingress.fleet_status import FleetStatus, NoServe, OwnStatus
from serve_app.ingress.grammars.checker import GrammarChecker
from serve_app.ingress.grammars.structured_outputs import worker_settings
from serve_app.ingress.middleware import IngressMiddleware, Keys, MiddlewareSettings, RequestTracing
from serve_app.ingress.rate_limits.limiter import RateLimiter
from serve_app.observability.records import RecordStore, record_of
from serve_app.observability.search import OneStore
from serve_app.protocol.errors import Outcome
from serve_app.protocol.messages import AttemptRequest, OnFrame, ReplicaInfo, decode_frame, decode_info, encode_request
from serve_app.protocol.service_class import Share
from serve_app.router.admission import Admission
from serve_app.router.attempts import DispatcherLimits
from serve_app.router.dispatcher import Dispatcher
from serve_app.router.request_context import RequestContext

MODEL = Path(__file__).parents[2] / "models" / "step-tiny"
NAME = "step3p7-flash"
GRAMMAR_CPU_S = 1
"""For an explosive grammar. No good one of the tests takes a tenth of it."""
ALIASES = ("claude-*", "gpt-4o")

FLAGS = [
    *("--model", str(MODEL), "--served-model-name", NAME, "--trust-remote-code", "--enforce-eager"),
    *("--max-num-seqs", "16", "--max-num-batched-tokens", "4096", "--max-model-len", "8192"),
    *("--reasoning-parser", "step3p5", "--tool-call-parser", "step3p5", "--enable-auto-tool-choice"),
    *("--enable-prompt-tokens-details", "--anthropic-disabled-thinking-effort", "low"),
    *("--default-chat-template-kwargs", '{"reasoning_effort": "medium"}'),
]
MTP = ["--speculative-config", '{"method":"mtp","num_speculative_tokens":3}']


@dataclass
class LocalTransport:
    """`attempts.Transport` to replicas in this process, through the same bytes as between processes."""

    ingress_id: str
    live: dict[str, EngineReplica] = field(default_factory=dict)
    wakes: int = 0
    """How often an engine was asked for. None comes."""

    async def replicas(self) -> tuple[Sequence[ReplicaInfo], bool]:
        return [decode_info(await replica.info()) for replica in self.live.values()], True

    async def follow(self, replica_id: str, on_frame: OnFrame) -> None:
        async with contextlib.aclosing(self.live[replica_id].frames(replica_id, self.ingress_id)) as frames:
            async for data in frames:
                on_frame(decode_frame(data))

    async def fetch_partial_output(self, resume_key: str) -> list[int]:
        answers = [
            msgspec.msgpack.decode(await one.fetch_partial_output(resume_key), type=list[int])
            for one in self.live.values()
        ]
        return max(answers, key=len, default=[])

    async def wake(self) -> None:
        self.wakes += 1
        await asyncio.Event().wait()

    async def share_quarantine(self, quarantine: Mapping[str, float]) -> None:
        for replica in self.live.values():
            await replica.share_quarantine(msgspec.msgpack.encode(quarantine))

    async def run_attempt(self, replica_id: str, attempt: AttemptRequest) -> None:
        await self.live[replica_id].run_attempt(replica_id, encode_request(attempt))


@dataclass(frozen=True)
class Line:
    """One line of the access log."""

    context: RequestContext
    route: str
    status: int
    outcome: Outcome


@dataclass
class Log:
    """`middleware.AccessLog` that keeps its lines and can be waited on."""

    lines: asyncio.Queue[Line] = field(default_factory=asyncio.Queue)

    records: RecordStore = field(default_factory=RecordStore)

    def request(self, context: RequestContext, route: str, status: int, outcome: Outcome, total_s: float) -> None:
        assert total_s >= 0
        self.records.add(record_of(context, "ingress-1", route, status, outcome, total_s))
        self.lines.put_nowait(Line(context, route, status, outcome))


class NamedKeys:
    """`middleware.Keys` of alice and bob, whose keys are their names."""

    def name_of(self, presented: str) -> str | None:
        return presented if presented in ("alice", "bob") else None

    def share_of(self, name: str) -> Share:  # noqa: ARG002  # all alike
        return Share()


@dataclass(frozen=True)
class Service:
    """A running service. `url` has no trailing slash."""

    url: str
    log: Log
    middleware: IngressMiddleware
    client: ReplicatedEngineClient
    transport: LocalTransport


def fake_engine(**options: object) -> EngineFactory:
    """A fake engine with short answers of letters; `options` are those of `FakeEngineConfig`."""
    config = FakeEngineConfig(**{"plain_token_ids": (40, 90), "answer_tokens": (20, 20), **options})  # type: ignore[arg-type]
    return lambda sink: FakeEngine(config, sink)


def chat(text: str = "hello", **fields: object) -> dict[str, object]:
    """The body of a chat request."""
    return {"model": NAME, "messages": [{"role": "user", "content": text}], "max_tokens": 20, **fields}


@contextlib.asynccontextmanager
async def client_of(running: Service) -> AsyncIterator[httpx.AsyncClient]:
    """A client of this service."""
    async with httpx.AsyncClient(base_url=running.url, timeout=60, trust_env=False) as client:
        yield client


@contextlib.asynccontextmanager
async def service(
    engines: dict[str, EngineFactory],
    *,
    argv: Sequence[str] = tuple(FLAGS + MTP),
    keys: Keys | None = None,
    keep_alive_s: float = 10.0,
    deadline_s: float = 30.0,
    max_body_bytes: int = 1 << 20,
    max_queued_requests: int = 100,
    allowed_origins: tuple[str, ...] = (),
    hang_after_s: float = 20.0,
    ingress_id: str = "ingress-1",
    allowed_media_hosts: Sequence[str] = (),
    image_bytes: int = 64 << 20,
    limiter: RateLimiter | None = None,
    operators: tuple[str, ...] = (),
    tracing: RequestTracing | None = None,
    status_page: bool = True,
    may_sleep: bool = False,
) -> AsyncIterator[Service]:
    """The service over these engines, by replica name, on a free port of the loopback."""
    transport = LocalTransport(ingress_id)
    async with contextlib.AsyncExitStack() as stack:
        for name, factory in engines.items():
            replica = EngineReplica(
                name,
                factory,
                WatchdogLimits(hang_after_s),
                max_queued_requests=max_queued_requests,
                image_bytes=image_bytes,
            )
            stack.push_async_callback(replica.stop)
            await replica.start()
            transport.live[name] = replica
        app, client = await build_api(
            vllm_flags.parse(list(argv), vllm_flags.serve_parser()),
            lambda sink: Dispatcher(
                transport,
                ingress_id,
                DispatcherLimits(deadline_s, may_sleep=may_sleep),
                sink,
                Admission(max_queued_requests, slots=16),
            ),
            allowed_media_hosts,
        )
        await stack.enter_async_context(client.dispatcher)
        quick = msgspec.structs.replace(worker_settings(client.vllm_config), max_compile_cpu_s=GRAMMAR_CPU_S)
        client.grammars = await stack.enter_async_context(GrammarChecker(quick))
        if engines:
            await client.dispatcher.wait_for_replica(30)
        log = Log()
        status_routes.add(app, OneStore(log.records), operators)
        if status_page:
            own = OwnStatus(ingress_id, "127.0.0.1", client.dispatcher, log.records, NoServe(), dict, time.time())
            page_routes.add(app, FleetStatus(own, own, NAME, "vllm"), operators)
        settings = MiddlewareSettings(NAME, ALIASES, max_body_bytes, keep_alive_s, cors=Cors(allowed_origins))
        middleware = IngressMiddleware(app, settings, keys, log, limiter, tracing)
        yield Service(await stack.enter_async_context(listening(middleware)), log, middleware, client, transport)


@contextlib.asynccontextmanager
async def listening(app: ASGIApp) -> AsyncIterator[str]:
    """The app on a free port of the loopback; its URL."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="off"))
    sockets = [server.config.bind_socket()]
    task = asyncio.create_task(server.serve(sockets))
    host, port = sockets[0].getsockname()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        await task
