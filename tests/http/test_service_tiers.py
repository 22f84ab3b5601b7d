"""Classes of keys and the tiers that requests ask for, on every API."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from serve_app.protocol.messages import AttemptRequest
from serve_app.protocol.service_class import ServiceClass, Share
from tests.http.harness import NAME, Service, service
from tests.http.test_rate_limits import Keys, client_of, fake

BATCH, STANDARD, INTERACTIVE = ServiceClass
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
USER = [{"role": "user", "content": "hello"}]
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": NAME, "messages": USER, "max_tokens": 4},
    COMPLETIONS: {"model": NAME, "prompt": "hello", "max_tokens": 4},
    RESPONSES: {"model": NAME, "input": "hello", "max_output_tokens": 16},
    MESSAGES: {"model": NAME, "messages": USER, "max_tokens": 4},
}
SHARES = {"ann": Share(INTERACTIVE, 4), "batch": Share(BATCH)}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running() -> AsyncIterator[Service]:
    async with service({"a": fake()}, keys=Keys(shares=SHARES)) as running:
        yield running


async def sent(running: Service, client: httpx.AsyncClient, path: str, **more: Any) -> tuple[httpx.Response, str]:
    """The answer, and class and weight with which the request went to the engine."""
    seen: list[AttemptRequest] = []
    run = running.transport.run_attempt

    async def run_attempt(replica_id: str, attempt: AttemptRequest) -> None:
        seen.append(attempt)
        await run(replica_id, attempt)

    running.transport.run_attempt = run_attempt  # type: ignore[method-assign]
    try:
        answer = await client.post(path, json=BODIES[path] | more)
    finally:
        running.transport.run_attempt = run  # type: ignore[method-assign]
    assert answer.status_code == 200, answer.text
    line = await running.log.lines.get()
    spec = seen[0].spec
    assert line.context.share.service_class == spec.rank
    return answer, f"{ServiceClass(spec.rank).word} {spec.weight:g}"


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("path", list(BODIES))
async def test_a_request_is_served_in_its_keys_class_or_a_lower_one_and_hears_which(
    running: Service, path: str
) -> None:
    async with client_of(running) as ann, client_of(running, "bob") as bob, client_of(running, "batch") as batch:
        assert (await sent(running, ann, path))[1] == "interactive 4"
        assert (await sent(running, bob, path))[1] == "standard 1"
        assert (await sent(running, ann, path, priority=3))[1] == "batch 4"
        answers = {
            ("ann", "auto"): await sent(running, ann, path, service_tier="auto"),
            ("ann", "flex"): await sent(running, ann, path, service_tier="flex"),
            ("bob", "priority"): await sent(running, bob, path, service_tier="priority"),
            ("batch", "default"): await sent(running, batch, path, service_tier="default"),
        }
        unknown, _ = await sent(running, bob, path, service_tier="gold")
    assert [found for _, found in answers.values()] == ["interactive 4", "batch 4", "standard 1", "batch 1"]
    assert "service_tier (gold)" in unknown.headers["x-step-ignored"]
    assert not [one for one, _ in answers.values() if "x-step-ignored" in one.headers]
    if path != MESSAGES:  # vLLM's answer has no field for it
        told = [one.json()["service_tier"] for one, _ in answers.values()]
        assert told == ["priority", "flex", "default", "flex"]


@pytest.mark.asyncio(loop_scope="module")
async def test_anthropics_names_and_vllms_header_are_understood(running: Service) -> None:
    async with client_of(running) as ann:
        assert (await sent(running, ann, MESSAGES, service_tier="standard_only"))[1] == "standard 4"
        assert (await sent(running, ann, MESSAGES, service_tier="auto"))[1] == "interactive 4"
        answer, _ = await sent(running, ann, CHAT)
        assert answer.json()["service_tier"] is None
        ann.headers["x-vllm-priority"] = "2"
        answer, found = await sent(running, ann, CHAT, service_tier="auto")
        assert (answer.json()["service_tier"], found) == ("flex", "batch 4")
        answer, found = await sent(running, ann, RESPONSES, service_tier="auto")
        assert (answer.json()["service_tier"], found) == ("flex", "batch 4")


@pytest.mark.asyncio(loop_scope="module")
async def test_a_stream_of_responses_names_the_tier(running: Service) -> None:
    async with client_of(running, "bob") as bob:
        answer = await bob.post(RESPONSES, json=BODIES[RESPONSES] | {"stream": True, "service_tier": "flex"})
    await running.log.lines.get()
    assert answer.text.count('"service_tier":"flex"') >= 2  # at its beginning and its end
