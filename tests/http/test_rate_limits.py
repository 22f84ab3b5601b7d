"""Keys with limits, over real sockets: what their clients are told."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import anthropic
import httpx
import openai
import pytest

from serve_app.engine.fake import FakeEngine
from serve_app.engine.fake_config import FakeEngineConfig
from serve_app.engine.replica import EngineFactory
from serve_app.ingress.auth import KeyLimits
from serve_app.ingress.rate_limits.limiter import RateLimiter
from serve_app.protocol.errors import LimitKind, Outcome, RateLimited
from serve_app.protocol.service_class import Share
from tests.http.harness import NAME, Service, service

HELLO = [{"role": "user", "content": "hello"}]
CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"


@dataclass
class Keys:
    """Each key is its owner's name, with these limits."""

    known: Mapping[str, KeyLimits] = field(default_factory=dict)
    shares: Mapping[str, Share] = field(default_factory=dict)

    def name_of(self, presented: str) -> str | None:
        return presented

    def share_of(self, name: str) -> Share:
        return self.shares.get(name, Share())

    def limits(self) -> Mapping[str, KeyLimits]:
        return self.known


def fake(**config: object) -> EngineFactory:
    return lambda sink: FakeEngine(FakeEngineConfig(plain_token_ids=(40, 90), **config), sink)  # type: ignore[arg-type]


def limited(**limits: int) -> dict[str, object]:
    """The options of a service whose key `ann` has these limits."""
    keys = Keys({"ann": KeyLimits(**limits)})
    return {"keys": keys, "limiter": RateLimiter(keys)}


def client_of(running: Service, key: str = "ann") -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=running.url, timeout=30, trust_env=False, headers={"x-api-key": key})


BODY = {"model": NAME, "messages": HELLO, "max_tokens": 4}


async def test_a_key_beyond_its_requests_gets_429_in_its_apis_shape() -> None:
    options = limited(requests_per_minute=2)
    async with service({"a": fake()}, **options) as running, client_of(running) as client:
        assert (await client.get("/v1/models")).status_code == 200
        for path in (CHAT, MESSAGES):
            assert (await client.post(path, json=BODY)).status_code == 200
        refused = {path: await client.post(path, json=BODY) for path in (CHAT, MESSAGES)}
        counted = await client.post("/v1/messages/count_tokens", json={"model": NAME, "messages": HELLO})
        async with client_of(running, "bob") as other:
            unlimited = await other.post(CHAT, json=BODY)
        lines = [running.log.lines.get_nowait() for _ in range(running.log.lines.qsize())]
    assert [one.status_code for one in refused.values()] == [429, 429]
    assert all(55 <= int(one.headers["retry-after"]) <= 60 for one in refused.values())
    error = refused[CHAT].json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert error["message"].startswith("Rate limit reached for this API key: 2 requests per minute.")
    assert refused[MESSAGES].json()["error"]["type"] == "rate_limit_error"
    assert counted.status_code == unlimited.status_code == 200
    assert not [name for name in unlimited.headers if "ratelimit" in name]
    errors = [line.context.error for line in lines if line.outcome is Outcome.RATE_LIMITED]
    assert [isinstance(one, RateLimited) and one.kind for one in errors] == [LimitKind.REQUESTS] * 2


@pytest.mark.parametrize("stream", [False, True])
async def test_answers_say_how_the_key_stands(stream: bool) -> None:  # a parameter of the test
    options = limited(requests_per_minute=100, tokens_per_minute=10_000)
    async with service({"a": fake()}, **options) as running, client_of(running) as client:
        first = await client.post(CHAT, json=BODY)
        used = first.json()["usage"]["total_tokens"]
        answer = await client.post(CHAT, json=BODY | {"stream": stream})
        told = (await client.post(MESSAGES, json=BODY | {"stream": stream})).headers
    assert answer.headers["x-ratelimit-limit-requests"] == "100"
    assert answer.headers["x-ratelimit-remaining-requests"] == "98"
    assert answer.headers["x-ratelimit-reset-requests"] in ("1m0s", "1m1s")
    assert answer.headers["x-ratelimit-limit-tokens"] == "10000"
    assert 10_000 - 2 * used <= int(answer.headers["x-ratelimit-remaining-tokens"]) <= 10_000 - used
    assert told["anthropic-ratelimit-requests-remaining"] == "97"
    assert told["anthropic-ratelimit-tokens-limit"] == "10000"
    reset = datetime.fromisoformat(told["anthropic-ratelimit-requests-reset"])
    assert 55 <= (reset - datetime.now(UTC)).total_seconds() <= 62
    assert not [name for name in told if name.startswith("x-ratelimit")]


async def test_tokens_of_a_running_answer_count_and_a_place_is_free_when_its_client_leaves() -> None:
    options = limited(tokens_per_minute=300, max_concurrent=2)
    slow = fake(gap_s=0.001, answer_tokens=(9000, 9000))
    async with service({"a": slow}, **options) as running, client_of(running) as client:
        async with client.stream("POST", CHAT, json=BODY | {"max_tokens": 4000, "stream": True}) as answer:
            tokens = 0
            async for line in answer.aiter_lines():
                tokens += line.startswith("data: ")
                if tokens > 400:
                    break
            refused = await client.post(CHAT, json=BODY)
        assert refused.status_code == 429
        assert "300 tokens per minute" in refused.json()["error"]["message"]
        lines = [await asyncio.wait_for(running.log.lines.get(), 5) for _ in range(2)]
    assert {line.outcome for line in lines} == {Outcome.RATE_LIMITED, Outcome.CANCELLED}


async def test_places_at_a_time_are_taken_until_an_answer_ends() -> None:
    options = limited(max_concurrent=1)
    slow = fake(gap_s=0.005, answer_tokens=(9000, 9000))
    async with service({"a": slow}, **options) as running, client_of(running) as client:
        async with client.stream("POST", MESSAGES, json=BODY | {"max_tokens": 4000, "stream": True}) as answer:
            await anext(answer.aiter_lines())
            refused = await client.post(MESSAGES, json=BODY)
        assert refused.status_code == 429
        assert "1 request at a time" in refused.json()["error"]["message"]
        await running.log.lines.get()
        await running.log.lines.get()
        assert (await client.post(MESSAGES, json=BODY)).status_code == 200


async def test_sdks_raise_their_rate_limit_errors() -> None:
    async with service({"a": fake()}, **limited(requests_per_minute=1)) as running:
        async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="ann", max_retries=0) as client:
            await client.chat.completions.create(model=NAME, messages=HELLO, max_tokens=2)
            with pytest.raises(openai.RateLimitError) as caught:
                await client.chat.completions.create(model=NAME, messages=HELLO, max_tokens=2)
            assert caught.value.code == "rate_limit_exceeded"
        async with anthropic.AsyncAnthropic(base_url=running.url, api_key="ann", max_retries=0) as other:
            with pytest.raises(anthropic.RateLimitError):
                await other.messages.create(model=NAME, messages=HELLO, max_tokens=2)
