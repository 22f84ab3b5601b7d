"""Whatever ends an attempt early, a client does not notice: each API, streamed and not, against an undisturbed run."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from serve_app.engine.fake import FakeEngine, FakeEngineConfig, Fault, FaultKind
from serve_app.engine.replica import EngineFactory
from tests.http.harness import NAME, Service, service

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

HELLO = [{"role": "user", "content": "Tell me a story."}]
ASKED: dict[str, dict[str, object]] = {
    "/v1/chat/completions": {"messages": HELLO, "max_tokens": 40, "logprobs": False, "n": 2},
    "/v1/completions": {"prompt": "Once upon a time", "max_tokens": 40},
    "/v1/responses": {"input": "Tell me a story.", "max_output_tokens": 40},
    "/v1/messages": {"messages": HELLO, "max_tokens": 40},
}
CASES = [(path, stream) for path in ASKED for stream in (False, True)]

HANG_AFTER_S = 1.0


def engine(*faults: Fault) -> EngineFactory:
    config = FakeEngineConfig(plain_token_ids=(40, 90), answer_tokens=(60, 60), gap_s=0.002, faults=faults)
    return lambda sink: FakeEngine(config, sink)


def replicas(kind: FaultKind) -> dict[str, EngineFactory]:
    """One for every request that is to lose its replica, and one more. What resumes is spared."""
    struck = engine(Fault(kind, at_token=17, every=1))
    return {f"replica-{i}": struck for i in range(2 * len(CASES) + 1)}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def calm() -> AsyncIterator[Service]:
    async with service({"calm": engine()}) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[FaultKind.CRASH, FaultKind.HANG])
async def stormy(request: pytest.FixtureRequest) -> AsyncIterator[Service]:
    async with service(replicas(request.param), hang_after_s=HANG_AFTER_S) as running:
        yield running


async def said(running: Service, path: str, *, stream: bool) -> str:
    """The whole answer as it came, without ids and times."""
    async with httpx.AsyncClient(base_url=running.url, timeout=30, trust_env=False) as client:
        response = await client.post(path, json={"model": NAME, **ASKED[path], "stream": stream})
    assert response.status_code == 200, response.text
    text = "\n".join(line for line in response.text.splitlines() if line and line[0] != ":")
    text = re.sub(r'"(id|item_id|request_id|response_id|signature)":\s*"[^"]*"', r'"\1":""', text)
    text = re.sub(r'"(created|created_at|completed_at)":\s*[0-9.]+', r'"\1":0', text)
    assert "error" not in text.replace('"error":null', "")
    if path == "/v1/chat/completions" and stream:
        # Of two sequences in one stream, who speaks first is chance.
        events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        return json.dumps(sorted(events, key=lambda event: event["choices"][0]["index"] if event["choices"] else 9))
    return text


@pytest.mark.parametrize(("path", "stream"), CASES)
async def test_a_client_does_not_notice(calm: Service, stormy: Service, path: str, *, stream: bool) -> None:
    expected = await said(calm, path, stream=stream)
    assert await said(stormy, path, stream=stream) == expected
    line = await asyncio.wait_for(stormy.log.lines.get(), 5)
    # More than once, when the replica it moved to is the one that the other sequence is about to end.
    assert all(1 <= flight.migrations == len(set(flight.replicas)) - 1 for flight in line.context.sequences)
