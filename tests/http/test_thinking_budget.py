"""A thinking budget is accepted on every API that can ask for one, and reaches the engine as it was asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.serial_utils import MsgpackDecoder

from serve_app.engine.fake import FakeEngine, FakeEngineConfig
from serve_app.protocol.messages import AttemptRequest
from tests.http.harness import NAME, Service, service

pytestmark = pytest.mark.asyncio(loop_scope="module")

ASKED = [{"role": "user", "content": "What is 17 + 25?"}]
THINKING = {"type": "enabled", "budget_tokens": 1024}

BUDGETS: list[tuple[str, dict[str, Any], int | None]] = [
    ("/v1/messages", {"messages": ASKED, "max_tokens": 2048, "thinking": THINKING}, 1024),
    ("/v1/messages", {"messages": ASKED, "max_tokens": 9, "thinking": {"type": "adaptive"}}, None),
    ("/v1/messages", {"messages": ASKED, "max_tokens": 9, "thinking": {"type": "disabled"}}, None),
    ("/v1/messages", {"messages": ASKED, "max_tokens": 9, "output_config": {"effort": "max"}}, None),
    ("/v1/chat/completions", {"messages": ASKED, "max_tokens": 9, "thinking_token_budget": 512}, 512),
    ("/v1/chat/completions", {"messages": ASKED, "max_tokens": 9, "thinking_token_budget": 0}, 0),
    ("/v1/chat/completions", {"messages": ASKED, "max_tokens": 9, "thinking_token_budget": -1}, None),
    ("/v1/chat/completions", {"messages": ASKED, "max_tokens": 9, "reasoning_effort": "none"}, None),
    (
        "/v1/chat/completions",
        {"messages": ASKED, "max_tokens": 9, "chat_template_kwargs": {"enable_thinking": False}},
        None,
    ),
    ("/v1/completions", {"prompt": "hello", "max_tokens": 9, "thinking_token_budget": 1}, 1),
    ("/v1/responses", {"input": "hello", "max_output_tokens": 9, "thinking_token_budget": 7}, 7),
    ("/v1/responses", {"input": "hello", "max_output_tokens": 9, "reasoning": {"effort": "none"}}, None),
]

REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("/v1/messages", {"messages": ASKED, "max_tokens": 1024, "thinking": THINKING}),
    ("/v1/messages", {"messages": ASKED, "max_tokens": 2048, "thinking": THINKING | {"budget_tokens": 1023}}),
    ("/v1/chat/completions", {"messages": ASKED, "thinking_token_budget": -2}),
    ("/v1/chat/completions", {"messages": ASKED, "thinking_token_budget": "many"}),
    ("/v1/completions", {"prompt": "hello", "thinking_token_budget": 1.5}),
    ("/v1/responses", {"input": "hello", "thinking_token_budget": -2}),
    ("/v1/responses", {"input": "hello", "thinking_token_budget": True}),
]


class RecordingEngine(FakeEngine):
    """A `FakeEngine` that keeps the attempts it was given."""

    attempts: list[AttemptRequest]

    async def run(self, attempt: AttemptRequest) -> None:
        self.attempts.append(attempt)
        await super().run(attempt)


ATTEMPTS: list[AttemptRequest] = []


def recording(sink):  # noqa: ANN001, ANN201  # an EngineFactory
    engine = RecordingEngine(FakeEngineConfig(plain_token_ids=(40, 90)), sink)
    engine.attempts = ATTEMPTS
    return engine


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served() -> AsyncIterator[Service]:
    async with service({"a": recording}) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(served: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=served.url, timeout=30, trust_env=False) as client:
        yield client


def sampling_params() -> Any:
    """What the engine was last asked to do."""
    buffers = [bytearray(buffer) for buffer in ATTEMPTS[-1].spec.payload]
    return MsgpackDecoder(EngineCoreRequest).decode(buffers).sampling_params


@pytest.mark.parametrize(("path", "body", "budget"), BUDGETS)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", [NAME, "claude-sonnet-4-5"])
async def test_a_budget_reaches_the_engine(
    http: httpx.AsyncClient, path: str, body: dict[str, Any], budget: int | None, model: str, stream: bool
) -> None:
    response = await http.post(path, json={"model": model, "stream": stream, **body})
    assert response.status_code == 200, response.text
    assert "error" not in response.text[:20]
    assert sampling_params().thinking_token_budget == budget


@pytest.mark.parametrize(("path", "body"), REFUSED)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_budget_that_makes_no_sense_is_refused_streamed_or_not(
    http: httpx.AsyncClient, path: str, body: dict[str, Any], stream: bool
) -> None:
    before = len(ATTEMPTS)
    response = await http.post(path, json={"model": NAME, "stream": stream, **body})
    assert response.status_code == 400, response.text
    assert "budget" in response.json()["error"]["message"]
    assert len(ATTEMPTS) == before, "it never reached an engine"
