"""A stream that broke off is taken up again, at any ingress, by who asks the same with the same key."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from chaos.events import record_event, record_whole_response
from chaos.request_spec import ChaosApi
from chaos.response_recorder import Answer, Recorder
from serve_app.engine.contract import StepSink
from serve_app.engine.fake import FakeEngine, FakeEngineConfig
from serve_app.ingress.auth import KeyStore, line_for
from serve_app.protocol.errors import Outcome
from tests.http.harness import NAME, Service, service

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

HELLO = [{"role": "user", "content": "Tell me a story."}]
ASKED: dict[ChaosApi, tuple[str, dict[str, object]]] = {
    ChaosApi.CHAT: (
        "/v1/chat/completions",
        {"messages": HELLO, "max_tokens": 60, "stream_options": {"include_usage": True}},
    ),
    ChaosApi.COMPLETIONS: (
        "/v1/completions",
        {"prompt": "Once upon a time", "max_tokens": 60, "stream_options": {"include_usage": True}},
    ),
    ChaosApi.MESSAGES: ("/v1/messages", {"messages": HELLO, "max_tokens": 60}),
    ChaosApi.RESPONSES: ("/v1/responses", {"input": "Tell me a story.", "max_output_tokens": 60}),
}
KEYS = {name: f"sk-step-{name}" for name in ("alice", "bob")}


def slow(sink: StepSink) -> FakeEngine:
    return FakeEngine(FakeEngineConfig(plain_token_ids=(32, 57), answer_tokens=(90, 90), gap_s=0.005), sink)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ingresses(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Service, Service]]:
    """Two over the same replicas."""
    file = tmp_path_factory.mktemp("keys") / "keys.txt"
    file.write_text("\n".join(line_for(name, key) for name, key in KEYS.items()))
    keys = KeyStore.load(file)
    async with (
        service({"a": slow, "b": slow}, keys=keys) as one,
        service({}, keys=keys, ingress_id="ingress-2") as other,
    ):
        other.transport.live = one.transport.live
        await other.client.dispatcher.wait_for_replica(10)
        yield one, other


def asking(api: ChaosApi, key: str, *, stream: bool = True, **headers: str) -> dict[str, object]:
    path, body = ASKED[api]
    if not stream:
        body = {name: value for name, value in body.items() if name != "stream_options"}
    headers |= {"authorization": f"Bearer {KEYS[key]}"}
    return {"url": path, "json": {"model": NAME, **body, "stream": stream}, "headers": headers}


async def break_off(at: Service, api: ChaosApi, request_id: str, events: int) -> None:
    """Ask, and leave after so many events."""
    async with httpx.AsyncClient(base_url=at.url, timeout=30, trust_env=False) as client:
        asked = asking(api, "alice", **{"x-request-id": request_id})
        async with client.stream("POST", **asked) as response:  # type: ignore[arg-type]
            seen = 0
            async for line in response.aiter_lines():
                seen += line.startswith("data:")
                if seen >= events:
                    break
    assert (await asyncio.wait_for(at.log.lines.get(), 5)).outcome is Outcome.CANCELLED


async def answer(
    at: Service, api: ChaosApi, key: str = "alice", *, stream: bool, take_up: str = ""
) -> tuple[Answer, int]:
    """What is said, and how many tokens of it were there already."""
    async with httpx.AsyncClient(base_url=at.url, timeout=30, trust_env=False) as client:
        asked = asking(api, key, stream=stream, **({"x-resume-request-id": take_up} if take_up else {}))
        response = await client.post(**asked)  # type: ignore[arg-type]
    assert response.status_code == 200, response.text
    recorder = Recorder()
    if stream:
        for line in response.text.splitlines():
            if line.startswith("data:"):
                record_event(api, recorder, line.removeprefix("data:").strip().encode())
    else:
        record_whole_response(api, recorder, response.content)
    line = await asyncio.wait_for(at.log.lines.get(), 5)
    return recorder.answer(), sum(trace.resumed_tokens for trace in line.context.sequences)


@pytest.mark.parametrize("api", list(ChaosApi))
async def test_what_was_said_comes_at_once_and_the_rest_follows(
    ingresses: tuple[Service, Service], api: ChaosApi
) -> None:
    one, other = ingresses
    whole, nothing = await answer(one, api, stream=True)
    assert (whole.flaws, nothing) == ((), 0)
    await break_off(one, api, f"broken-{api.value}", events=12)
    again, taken_up = await answer(other, api, stream=True, take_up=f"broken-{api.value}")
    assert again == whole
    assert 5 <= taken_up < 60


async def test_what_a_stream_has_said_may_be_asked_for_in_one_piece_but_is_another_request(
    ingresses: tuple[Service, Service],
) -> None:
    one, other = ingresses
    await break_off(one, ChaosApi.CHAT, "changed", events=12)
    _, taken_up = await answer(other, ChaosApi.CHAT, stream=False, take_up="changed")
    assert taken_up == 0


async def test_another_key_gets_nothing_of_it(ingresses: tuple[Service, Service]) -> None:
    one, other = ingresses
    await break_off(one, ChaosApi.CHAT, "alices", events=12)
    for key, tokens in (("bob", False), ("alice", True)):
        _, taken_up = await answer(other, ChaosApi.CHAT, key, stream=True, take_up="alices")
        assert bool(taken_up) is tokens


async def test_an_unknown_id_is_an_ordinary_request(ingresses: tuple[Service, Service]) -> None:
    one, _ = ingresses
    assert await answer(one, ChaosApi.CHAT, stream=True, take_up="never-heard-of") == await answer(
        one, ChaosApi.CHAT, stream=True
    )
