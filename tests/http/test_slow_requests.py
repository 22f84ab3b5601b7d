"""Each kind of slow request is explained by its cause: by `explain`, on the status page, and in the trace."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import httpx
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from starlette.types import Message

from serve_app.config.schema import TracingConfig
from serve_app.engine.fake import Fault, FaultKind
from serve_app.observability.tracing import Tracing, exporter_for
from tests.http.harness import Service, chat, client_of, fake_engine, service
from tests.otlp_receiver import Receiver, attributes, grpc_receiver

pytestmark = pytest.mark.asyncio

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SLOW = {"x-request-id": "slow", "traceparent": f"00-{TRACE}-{PARENT}-01"}
CHAT = "/v1/chat/completions"


@dataclass
class Here:
    """The service, and where its traces go."""

    running: Service
    client: httpx.AsyncClient
    receiver: Receiver


Ask = Callable[[Here], Awaitable[object]]


@dataclass(frozen=True)
class Case:
    """A slow request: how it comes about, and its sentence's words. `attribute` of a span has the seconds where the
    phase is no span of its own."""

    phase: str
    words: str
    ask: Ask
    engine: dict[str, object] = field(default_factory=dict)
    replicas: tuple[str, ...] = ("a",)
    hang_after_s: float = 20.0
    attribute: tuple[str, str] | None = None


def ask(text: str = "hello", **fields: object) -> Ask:
    async def one(here: Here) -> None:
        response = await here.client.post(CHAT, json=chat(text, **fields), headers=SLOW)
        assert response.status_code == 200, response.text

    return one


async def ask_behind_others(here: Here) -> None:
    """Three long ones have the only slot and the places before it."""
    others = [
        asyncio.create_task(here.client.post(CHAT, json=chat(str(number), ignore_eos=True))) for number in range(3)
    ]
    while here.running.client.dispatcher.in_flight < 3:  # noqa: ASYNC110  # their coming is no event here
        await asyncio.sleep(0)
    await ask()(here)
    await asyncio.gather(*others)


async def ask_and_read_slowly(here: Here) -> None:
    """Take the first chunk, and then nothing until the engine has long finished."""
    asked = [{"type": "http.request", "body": json.dumps(chat(stream=True)).encode(), "more_body": False}]
    loop = asyncio.get_running_loop()

    async def receive() -> Message:
        if asked:
            return asked.pop()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body" and here.running.client.dispatcher.in_flight:
            while here.running.client.dispatcher.in_flight:  # noqa: ASYNC110  # the engine's end is no event here
                await asyncio.sleep(0)
            await asyncio.wait({loop.create_future()}, timeout=1.0)

    headers = [(name.encode(), value.encode()) for name, value in SLOW.items()]
    scope = {"type": "http", "method": "POST", "path": CHAT, "query_string": b"", "root_path": "", "scheme": "http"}
    rest = {"http_version": "1.1", "server": ("x", 80), "client": ("127.0.0.1", 1)}
    await here.running.middleware({**scope, **rest, "headers": headers}, receive, send)


def held_up(kind: FaultKind, at_token: int) -> dict[str, object]:
    return {"gap_s": 0.001, "faults": (Fault(kind, at_token, every=2, for_s=3.0),)}


DECODE = "decode"
CASES = {
    "long prefill": Case("prefill", "prefill of 1,5", ask("word " * 1500), {"prefill_tokens_per_s": 1000.0}),
    "full queue": Case(
        "replica_queue",
        "it waited at replica a to be started: 3 requests were there before it, of which 1 run at a time",
        ask_behind_others,
        {"max_num_seqs": 1, "gap_s": 0.03},
    ),
    "migration": Case(
        "migration",
        "it moved once, at last to replica",
        ask(),
        {"gap_s": 0.001, "faults": (Fault(FaultKind.HANG, at_token=5, every=1),)},
        replicas=("a", "b"),
        hang_after_s=2.0,
    ),
    "slow client": Case("delivery", "and the client was still reading", ask_and_read_slowly),
    "starved replica": Case(
        "cpu_wait",
        "the processes of replica a were short of CPU: other work on their node had it",
        ask(),
        held_up(FaultKind.STARVE, 0),
    ),
    "starved replica, later": Case(
        "cpu_wait",
        "the processes of replica a were short of CPU",
        ask(),
        held_up(FaultKind.STARVE, 5),
        attribute=(DECODE, "step.decode.cpu_wait_s"),
    ),
    "cold compile": Case("compile", "the engine of replica a compiled a kernel", ask(), held_up(FaultKind.COMPILE, 0)),
    "cold compile, later": Case(
        "compile",
        "the engine of replica a compiled a kernel",
        ask(),
        held_up(FaultKind.COMPILE, 5),
        attribute=(DECODE, "step.decode.compile_s"),
    ),
}


@contextlib.asynccontextmanager
async def traced(case: Case) -> AsyncIterator[Here]:
    engines = {name: fake_engine(**case.engine) for name in case.replicas}
    async with contextlib.AsyncExitStack() as stack:
        receiver, url = await stack.enter_async_context(grpc_receiver())
        exporter = exporter_for(TracingConfig(endpoint=url))
        tracing = Tracing(exporter, 0.0, "ingress-1", lambda _dropped: None, export_period_s=0.05)
        await stack.enter_async_context(tracing)
        running = await stack.enter_async_context(service(engines, hang_after_s=case.hang_after_s, tracing=tracing))
        yield Here(running, await stack.enter_async_context(client_of(running)), receiver)


def lasted_s(span: Span) -> float:
    return (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_a_slow_request_is_explained_by_its_cause(case: Case) -> None:
    async with traced(case) as here:
        await here.client.post(CHAT, json=chat("first", max_tokens=1))  # it loads what all need
        await case.ask(here)
        (found,) = (await here.client.get("/status/requests/slow")).json()["requests"]
        record = found["record"]
        sums: dict[str, float] = {}
        for phase, seconds in record["phases"]:
            sums[phase] = sums.get(phase, 0.0) + seconds
        assert sum(sums.values()) == pytest.approx(record["total_s"], abs=1e-6)
        assert max(sums, key=sums.__getitem__) == case.phase
        assert case.words in found["sentence"]
        slowest = (await here.client.get("/status/fleet")).json()["slowest"]
        assert found["sentence"] in [one["sentence"] for one in slowest]
        spans = await here.receiver.trace(TRACE)
        if case.attribute is None:
            traced_s = sum(map(lasted_s, spans[case.phase]))
        else:
            name, attribute = case.attribute
            traced_s = float(str(attributes(spans[name][0])[attribute]))
        assert traced_s == pytest.approx(sums[case.phase], abs=0.001)
