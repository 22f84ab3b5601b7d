"""A share of the fuzzer's requests (`python -m tests.fuzz`), and what it has found."""

from __future__ import annotations

import json

import httpx
import pytest

from serve_app.engine.fake import FakeEngine
from serve_app.engine.fake_config import FakeEngineConfig
from tests.fuzz.requests import stream
from tests.fuzz.run import run
from tests.http.harness import NAME, service

SHARE = 500


@pytest.mark.asyncio
async def test_no_bytes_make_the_service_fail() -> None:
    findings = await run(SHARE, seed=16)
    assert not findings.problems
    assert not findings.tracebacks
    assert findings.statuses.total() == SHARE
    assert findings.statuses[200] > 20
    assert findings.statuses[400] > 100


def test_the_same_seed_makes_the_same_requests() -> None:
    first, second = stream(7), stream(7)
    assert [next(first) for _ in range(50)] == [next(second) for _ in range(50)]


@pytest.mark.asyncio
async def test_what_the_fuzzer_has_found_is_a_400_that_says_what_is_wrong() -> None:
    deep = b"[" * 100_000
    hello = [{"role": "user", "content": "hello"}]
    chat, messages, responses = "/v1/chat/completions", "/v1/messages", "/v1/responses"
    nested: object = 1
    for _ in range(300):
        nested = [nested]
    part = {"type": None, "image_url": {"url": "data:,"}}
    call = {"id": "c", "type": "function", "function": {"name": [], "arguments": "{}"}}
    found: list[tuple[str, object, str]] = [
        (chat, deep, "nested too deeply"),
        (messages, deep, "nested too deeply"),
        (responses, {"input": "hello", "metadata": nested}, "nested too deeply"),
        (chat, {"messages": None}, "`messages` is required."),
        (chat, {"messages": 2**63}, "`messages` must be an array."),
        (chat, {"messages": [{"role": "user", "content": [part]}]}, "Only base64 data URLs"),
        (chat, {"messages": hello, "structured_outputs": "x"}, "`structured_outputs`"),
        (
            chat,
            {"messages": [{"role": "assistant", "content": None, "tool_calls": [call]}, *hello]},
            "`messages.0.tool_calls.0.function.name` must be a string.",
        ),
        (messages, {"messages": hello, "max_tokens": 3, "top_k": 10**400}, ""),
        (messages, {"messages": hello, "max_tokens": 3, "thinking": {}}, "`thinking.type` is required."),
        (chat, b'"x"', "must be a JSON object"),
        (chat, b"\xff", "not valid UTF-8"),
    ]
    config = FakeEngineConfig(plain_token_ids=(40, 90))
    async with (
        service({"a": lambda sink: FakeEngine(config, sink)}) as running,
        httpx.AsyncClient(base_url=running.url, timeout=30, trust_env=False) as client,
    ):
        for path, body, says in found:
            data = body if isinstance(body, bytes) else json.dumps({"model": NAME, **body}).encode()  # type: ignore[dict-item]  # an object
            response = await client.post(path, content=data, headers={"content-type": "application/json"})
            assert response.status_code == 400, body
            assert says in response.json()["error"]["message"]
