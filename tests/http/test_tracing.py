"""Traces, from a client's request to a real OTLP receiver: what is sampled, and what the spans say."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from serve_app.config.schema import TracingConfig
from serve_app.engine.fake import FakeEngine, FakeEngineConfig, Fault, FaultKind
from serve_app.engine.fake_script import Conversation, ScriptedCall, ScriptedTurn
from serve_app.engine.replica import EngineFactory
from serve_app.ingress.metrics import _fields
from serve_app.observability.records import RequestRecord
from serve_app.observability.tracing import MAX_WAITING_SPANS, Tracing, exporter_for
from serve_app.protocol.errors import Outcome
from serve_app.protocol.messages import AttemptRequest
from serve_app.protocol.service_class import Share
from tests.http.harness import MODEL, NAME, Service, service
from tests.otlp_receiver import Receiver, attributes, grpc_receiver, http_receiver

pytestmark = pytest.mark.asyncio

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, NOT_SAMPLED = ({"traceparent": f"00-{TRACE}-{PARENT}-{flags}"} for flags in ("01", "00"))
CHAT = "/v1/chat/completions"
PERIOD_S = 0.05


@dataclass
class Engines:
    """Fake engines that keep what they were asked to run."""

    attempts: list[AttemptRequest] = field(default_factory=list)

    def factory(self, **options: object) -> EngineFactory:
        config = FakeEngineConfig(**{"plain_token_ids": (40, 90), "answer_tokens": (20, 20), **options})  # type: ignore[arg-type]
        attempts = self.attempts

        class Engine(FakeEngine):
            async def run(self, attempt: AttemptRequest) -> None:
                attempts.append(attempt)
                await super().run(attempt)

        return lambda sink: Engine(config, sink)


@contextlib.asynccontextmanager
async def tracing(url: str, sample_ratio: float = 0.0) -> AsyncIterator[tuple[Tracing, list[int]]]:
    dropped: list[int] = []
    exporter = exporter_for(TracingConfig(endpoint=url))
    async with Tracing(exporter, sample_ratio, "ingress-1", dropped.append, export_period_s=PERIOD_S) as one:
        yield one, dropped


@dataclass(frozen=True)
class Traced:
    """A service whose traces go to `receiver`."""

    client: httpx.AsyncClient
    receiver: Receiver
    service: Service


@contextlib.asynccontextmanager
async def traced(
    engines: dict[str, EngineFactory], sample_ratio: float = 0.0, **named: object
) -> AsyncIterator[Traced]:
    async with (
        grpc_receiver() as (receiver, url),
        tracing(url, sample_ratio) as (one, dropped),
        service(engines, tracing=one, **named) as running,  # type: ignore[arg-type]
        httpx.AsyncClient(base_url=running.url, timeout=60, trust_env=False) as client,
    ):
        yield Traced(client, receiver, running)
        assert not dropped


def chat(**fields: object) -> dict[str, object]:
    return {"model": NAME, "messages": [{"role": "user", "content": "secret words"}], "max_tokens": 20, **fields}


def only(spans: list[Span]) -> Span:
    (span,) = spans
    return span


async def test_a_sampled_client_gets_its_request_with_phases_and_attempt_into_its_trace() -> None:
    engines = Engines()
    async with traced({"a": engines.factory(gap_s=0.002, prefill_tokens_per_s=2000.0)}) as here:
        headers = {**SAMPLED, "tracestate": "vendor=1", "x-request-id": "mine", "x-session-id": "talk"}
        async with here.client.stream("POST", CHAT, json=chat(stream=True), headers=headers) as response:
            await response.aread()
        spans = await here.receiver.trace(TRACE)
        request, attempt = only(spans[f"chat {NAME}"]), only(spans["attempt"])
        assert request.kind == Span.SPAN_KIND_SERVER
        assert request.parent_span_id.hex() == PARENT
        assert request.trace_state == "vendor=1"
        said = attributes(request)
        assert said == {
            "http.request.method": "POST",
            "http.route": CHAT,
            "http.response.status_code": 200,
            "step.request.id": "mine",
            "step.outcome": "ok",
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "vllm",
            "gen_ai.request.model": NAME,
            "gen_ai.response.model": NAME,
            "gen_ai.request.stream": True,
            "gen_ai.conversation.id": "talk",
            "gen_ai.usage.input_tokens": said["gen_ai.usage.input_tokens"],
            "gen_ai.usage.output_tokens": 20,
            "gen_ai.usage.cache_read.input_tokens": 0,
            "gen_ai.response.time_to_first_chunk": said["gen_ai.response.time_to_first_chunk"],
            "gen_ai.response.finish_reasons": said["gen_ai.response.finish_reasons"],
        }
        assert finish_reasons(request) == ["length"]
        assert attempt.kind == Span.SPAN_KIND_CLIENT
        assert attempt.parent_span_id == request.span_id
        assert attributes(attempt)["step.replica.id"] == "a"
        assert attributes(attempt)["step.attempt.end"] == "finished"
        assert (request.status.code, attempt.status.code) == (Status.STATUS_CODE_UNSET, Status.STATUS_CODE_UNSET)
        parents = {only(spans[name]).parent_span_id for name in ("receive", "render")}
        assert parents == {request.span_id}
        assert {only(spans[name]).parent_span_id for name in ("prefill", "decode")} == {attempt.span_id}
        for span in (one for named in spans.values() for one in named):
            assert request.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
            assert span.end_time_unix_nano <= request.end_time_unix_nano + 1000
            assert "secret" not in str(span)
        assert only(spans["render"]).start_time_unix_nano == only(spans["receive"]).end_time_unix_nano
        assert here.receiver.resource["service.name"] == "step-serve"
        assert here.receiver.resource["service.instance.id"] == "ingress-1"
        headers = engines.attempts[0].trace_headers
        assert headers == {"traceparent": f"00-{TRACE}-{attempt.span_id.hex()}-01", "tracestate": "vendor=1"}


def finish_reasons(request: Span) -> list[str]:
    found: Any = attributes(request)["gen_ai.response.finish_reasons"]
    return [one.string_value for one in found.values]


CALL_IT = {"messages": [{"role": "user", "content": "call it"}]}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
LOOKS = Conversation((ScriptedTurn(think="I look.", calls=(ScriptedCall("look", {}),)),), when=("call it",))


@pytest.mark.parametrize(
    ("path", "body", "reasons"),
    [
        (CHAT, {"n": 2}, ["length", "length"]),
        (CHAT, {**CALL_IT, "tools": [TOOL], "max_tokens": 200}, ["tool_calls"]),
        (CHAT, {**CALL_IT, "tools": [TOOL], "max_tokens": 200, "stream": True}, ["tool_calls"]),
        (
            "/v1/messages",
            {**CALL_IT, "tools": [{"name": "look", "input_schema": {"type": "object"}}], "max_tokens": 200},
            ["tool_use"],
        ),
        ("/v1/completions", {"prompt": "say", "messages": None, "stop": ["K"], "max_tokens": 400}, ["stop"]),
        (CHAT, {"stop_token_ids": list(range(40, 65)), "max_tokens": 200}, ["stop"]),
        ("/v1/messages", {"stream": True}, ["max_tokens"]),
    ],
)
async def test_a_span_says_why_the_answer_ended_as_its_client_is_told(
    path: str, body: dict[str, object], reasons: list[str]
) -> None:
    engine = Engines().factory(answer_tokens=(500, 500), script=(LOOKS,), tokenizer=str(MODEL))
    async with traced({"a": engine}) as here:
        response = await here.client.post(path, json=chat(**body), headers=SAMPLED)
        assert response.status_code == 200, response.text
        spans = await here.receiver.trace(TRACE)
        (request,) = [one for named in spans.values() for one in named if one.kind == Span.SPAN_KIND_SERVER]
        assert finish_reasons(request) == reasons


async def test_record_and_log_line_name_the_trace() -> None:
    async with traced({"a": Engines().factory()}) as here:
        for request_id, headers in (("with", SAMPLED), ("without", {})):
            await here.client.post(CHAT, json=chat(), headers={**headers, "x-request-id": request_id})
        found = [(await here.client.get(f"/status/requests/{name}")).json() for name in ("with", "without")]
        records = [one["requests"][0]["record"] for one in found]
        assert [one["trace_id"] for one in records] == [TRACE, ""]
        lines = [_fields(msgspec.convert(one, RequestRecord), {}) for one in records]
        assert [one.get("trace_id", "none") for one in lines] == [TRACE, "none"]


@pytest.mark.parametrize("headers", [NOT_SAMPLED, {}, {"traceparent": "00-nonsense-01"}], ids=["00", "none", "bad"])
async def test_an_unsampled_request_leaves_no_span(headers: dict[str, str]) -> None:
    engines = Engines()
    async with traced({"a": engines.factory()}, sample_ratio=1.0 if headers is NOT_SAMPLED else 0.0) as here:
        assert (await here.client.post(CHAT, json=chat(), headers=headers)).status_code == 200
        await here.client.post(CHAT, json=chat(), headers={"traceparent": f"00-{'a' * 32}-{PARENT}-01"})
        await here.receiver.trace("a" * 32)  # what came before it would be there
        assert {span.trace_id.hex() for span in here.receiver.spans} == {"a" * 32}
        assert [bool(one.trace_headers) for one in engines.attempts] == [False, True]


async def test_the_ratio_begins_traces_but_not_for_probes() -> None:
    async with traced({"a": Engines().factory()}, sample_ratio=1.0) as here:
        await here.client.get("/health")
        await here.client.get("/v1/models")
        await here.client.post(CHAT, json=chat(), headers={"x-request-id": "new"})
        record = (await here.client.get("/status/requests/new")).json()["requests"][0]["record"]
        request = only((await here.receiver.trace(record["trace_id"]))[f"chat {NAME}"])
        assert not request.parent_span_id
        names = [span.name for span in here.receiver.spans if span.kind == Span.SPAN_KIND_SERVER]
        assert names[:2] == ["GET /v1/models", f"chat {NAME}"]


@dataclass(frozen=True)
class OneKey:
    """A keys file with the key `good`."""

    def name_of(self, presented: str) -> str | None:
        return "ann" if presented == "good" else None

    def share_of(self, name: str) -> Share:
        return {"ann": Share()}[name]


async def test_who_has_no_key_or_route_does_not_decide_what_is_sampled() -> None:
    async with traced({"a": Engines().factory()}, keys=OneKey()) as here:
        known, unknown = ({**SAMPLED, "authorization": f"Bearer {key}"} for key in ("good", "bad"))
        refused = await here.client.post(CHAT, json=chat(), headers=unknown)
        unserved = await here.client.get("/nothing", headers=known)
        assert (refused.status_code, unserved.status_code) == (401, 404)
        await here.client.post(CHAT, json=chat(), headers={**known, "x-request-id": "mine"})
        spans = await here.receiver.trace(TRACE)
        assert [
            attributes(one)["step.request.id"]
            for named in spans.values()
            for one in named
            if one.kind == Span.SPAN_KIND_SERVER
        ] == ["mine"]


async def test_a_migration_is_two_linked_attempts() -> None:
    engines = Engines()
    slow = engines.factory(gap_s=0.001, faults=(Fault(FaultKind.HANG, at_token=5, every=1),))
    async with traced({"a": slow, "b": slow}, hang_after_s=1.0) as here:
        await here.client.post(CHAT, json=chat(), headers=SAMPLED)
        spans = await here.receiver.trace(TRACE)
        lost, last = sorted(spans["attempt"], key=lambda one: one.start_time_unix_nano)
        assert [attributes(one)["step.attempt.end"] for one in (lost, last)] == ["died", "finished"]
        assert lost.status.code == Status.STATUS_CODE_ERROR
        assert attributes(lost)["error.type"] == "died"
        assert last.status.code == Status.STATUS_CODE_UNSET
        assert [link.span_id for link in last.links] == [lost.span_id]
        assert len(spans["decode"]) == 2
        request = only(spans[f"chat {NAME}"])
        moved = only([event for event in request.events if event.name == "migration"])
        assert attributes(moved)["step.attempt.end"] == "died"
        assert only(spans["migration"]).parent_span_id == request.span_id
        parents = [one.trace_headers["traceparent"].split("-")[2] for one in engines.attempts]
        assert parents == [lost.span_id.hex(), last.span_id.hex()]


async def test_of_errors_only_the_servers_own_are_errors_of_the_span() -> None:
    async with traced({}, deadline_s=0.1) as here:
        bad = await here.client.post(CHAT, json={"model": NAME}, headers=SAMPLED)
        none = {"traceparent": f"00-{'b' * 32}-{PARENT}-01"}
        lost = await here.client.post(CHAT, json=chat(model=NAME), headers=none)
        assert (bad.status_code, lost.status_code) == (400, 503)
        refused = only((await here.receiver.trace(TRACE))["chat"])
        assert refused.status.code == Status.STATUS_CODE_UNSET
        assert attributes(refused)["error.type"] == "bad_request"
        failed = only((await here.receiver.trace("b" * 32))[f"chat {NAME}"])
        assert failed.status.code == Status.STATUS_CODE_ERROR
        assert attributes(failed)["error.type"] == "no_replica"
        assert failed.status.message


async def test_a_client_that_leaves_is_no_error() -> None:
    async with traced({"a": Engines().factory(gap_s=0.01, answer_tokens=(400, 400))}) as here:
        asked = chat(stream=True, max_tokens=400)
        async with here.client.stream("POST", CHAT, json=asked, headers=SAMPLED) as response:
            await anext(response.aiter_lines())
        spans = await here.receiver.trace(TRACE)
        assert attributes(only(spans[f"chat {NAME}"]))["step.outcome"] == "cancelled"
        assert attributes(only(spans["attempt"]))["step.attempt.end"] == "cancelled"
        assert {span.status.code for named in spans.values() for span in named} == {Status.STATUS_CODE_UNSET}


async def test_names_that_no_protobuf_takes_are_replaced() -> None:
    async with traced({"a": Engines().factory()}) as here:
        body = b'{"model": "x\\ud800", "messages": []}'
        headers = {**SAMPLED, "content-type": "application/json"}
        await here.client.post(CHAT, content=body, headers=headers)
        request = only((await here.receiver.trace(TRACE))["chat"])
        assert "\ud800" not in str(attributes(request))


async def test_otlp_over_http_carries_the_same() -> None:
    async with (
        http_receiver() as (receiver, url),
        tracing(f"{url}/v1/traces") as (one, dropped),
        service({"a": Engines().factory()}, tracing=one) as running,
        httpx.AsyncClient(base_url=running.url, timeout=60, trust_env=False) as client,
    ):
        await client.post(CHAT, json=chat(), headers=SAMPLED)
        assert {"attempt", "decode", f"chat {NAME}"} <= set(await receiver.trace(TRACE))
        assert not dropped


async def test_a_collector_that_is_away_costs_spans_and_no_time() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens there
        async with (
            tracing(f"http://127.0.0.1:{taken.getsockname()[1]}", sample_ratio=1.0) as (one, dropped),
            service({"a": Engines().factory(answer_tokens=(1, 1))}, tracing=one) as running,
            httpx.AsyncClient(base_url=running.url, timeout=60, trust_env=False) as client,
        ):
            answers = await asyncio.gather(*(client.get("/v1/models") for _ in range(20)))
            assert {answer.status_code for answer in answers} == {200}
            context = (await running.log.lines.get()).context
            for _ in range(MAX_WAITING_SPANS + 2000):
                one.request(context, "/v1/models", 200, Outcome.OK, 0.1)
            waiting = len(one._processor._batch_processor._queue)
            assert 0 < waiting <= MAX_WAITING_SPANS
            assert sum(dropped) >= 1000
    assert sum(dropped) > 2000  # those that waited at the end, too
