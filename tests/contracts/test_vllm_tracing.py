"""vLLM's own spans: of sampled requests only, as children of the attempt's span."""

from __future__ import annotations

import asyncio
import os

import msgspec
import pytest

pytest.importorskip("vllm")

from opentelemetry import trace
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.serial_utils import MsgpackDecoder

from serve_app.config.schema import TracingConfig
from serve_app.engine.vllm_io import engine_request
from serve_app.engine.vllm_tracing import prepare
from serve_app.protocol.messages import decode_request, encode_request
from serve_app.protocol.trace_context import TraceContext
from tests.contracts.harness import ENVIRONMENT, START_TIMEOUT_S, Subject, start_vllm, vllm_payload
from tests.otlp_receiver import attributes, grpc_receiver

pytestmark = [pytest.mark.engine, pytest.mark.timeout(START_TIMEOUT_S)]

CONTEXT = TraceContext(0xA1, 0xB2, state="vendor=1")
HEADERS = CONTEXT.headers(0xC3)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    # `prepare` and vLLM set them; the tests that come after must not have them.
    for name in ("PROTOCOL", "ENDPOINT"):
        monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_TRACES_{name}", "")
    for name in ("OTEL_SERVICE_NAME", "OTEL_TRACES_SAMPLER"):
        monkeypatch.setenv(name, "")
        os.environ.pop(name)


async def test_the_headers_of_an_attempt_are_those_of_its_engine_request() -> None:
    subject = Subject(object(), object(), object(), object(), vllm_payload)  # type: ignore[arg-type]  # payloads only
    sampled, plain = (
        msgspec.structs.replace(subject.attempt(max_tokens=2), trace_headers=headers) for headers in (HEADERS, {})
    )
    decoder = MsgpackDecoder(EngineCoreRequest)
    found = [engine_request(decode_request(encode_request(one)), 512, decoder, decoder) for one in (sampled, plain)]
    assert [one.trace_headers for one in found] == [HEADERS, None]


async def test_an_engine_has_a_span_for_each_sampled_request() -> None:
    async with grpc_receiver() as (receiver, url):
        subject = await start_vllm(*prepare(TracingConfig(endpoint=url)))
        try:
            for headers in ({}, HEADERS):
                attempt = msgspec.structs.replace(subject.attempt(max_tokens=6), trace_headers=headers)
                assert len(await subject.run(attempt)) == 6
            (span,) = (await receiver.trace(CONTEXT.trace_id_hex))["llm_request"]
            assert int(span.parent_span_id.hex(), 16) == 0xC3
            assert span.trace_state == "vendor=1"
            said = attributes(span)
            assert said["gen_ai.usage.completion_tokens"] == 6
            assert said["gen_ai.request.id"] == attempt.spec.request_id
            assert [one.name for one in receiver.spans] == ["llm_request"]
            assert receiver.resource["service.name"] == "step-serve"
        finally:
            await subject.engine.shutdown()
            await asyncio.to_thread(trace.get_tracer_provider().shutdown)  # type: ignore[attr-defined]  # vLLM's own
