"""Where a cut hurts most: in a character or a stop string, at the first and last token, twice, with nobody left."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
import pytest_asyncio

from serve_app.engine.contract import StepSink
from serve_app.engine.fake import FakeEngine, FakeEngineConfig, Fault, FaultKind
from serve_app.engine.replica import EngineFactory, EngineReplica
from serve_app.engine.watchdog import WatchdogLimits
from serve_app.protocol.errors import Outcome
from tests.http.harness import NAME, Service, service

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

LETTERS = (32, 57)
HALF_CHARACTERS = (94, 187)
"""The byte-level tokenizer's tokens of the bytes from 0xA1 on: nearly every one ends, or begins, inside a character."""

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
MESSAGES = "/v1/messages"
TOKENS = 40
CUT = 17

HELLO = [{"role": "user", "content": "Tell me a story."}]
ASKED: dict[str, dict[str, object]] = {
    CHAT: {"messages": HELLO, "max_tokens": TOKENS},
    COMPLETIONS: {"prompt": "Once upon a time", "max_tokens": TOKENS, "echo": True},
    MESSAGES: {"messages": HELLO, "max_tokens": TOKENS},
}


def engine(*faults: Fault, tokens: tuple[int, int] = LETTERS, gap_s: float = 0.002) -> EngineFactory:
    config = FakeEngineConfig(plain_token_ids=tokens, answer_tokens=(60, 60), gap_s=gap_s, faults=faults)
    return lambda sink: FakeEngine(config, sink)


def crash(at_token: int = CUT, *, on_resume: bool = False) -> Fault:
    return Fault(FaultKind.CRASH, at_token, every=1, on_resume=on_resume)


def fleet(requests: int, *faults: Fault, tokens: tuple[int, int] = LETTERS) -> dict[str, EngineFactory]:
    """A replica for every request to lose, and one more."""
    return {f"replica-{number}": engine(*faults, tokens=tokens) for number in range(requests + 1)}


async def post(running: Service, path: str, **more: object) -> httpx.Response:
    async with httpx.AsyncClient(base_url=running.url, timeout=30, trust_env=False) as client:
        return await client.post(path, json={"model": NAME, **ASKED[path], **more})


async def said(running: Service, path: str, **more: object) -> str:
    """The whole answer as it came, without ids and times."""
    response = await post(running, path, **more)
    assert response.status_code == 200, response.text
    text = "\n".join(line for line in response.text.splitlines() if line and line[0] != ":")
    text = re.sub(r'"(id|signature)":\s*"[^"]*"', r'"\1":""', text)
    return re.sub(r'"created":\s*\d+', '"created":0', text)


async def resumes(running: Service) -> list[int]:
    line = await asyncio.wait_for(running.log.lines.get(), 5)
    return [flight.migrations for flight in line.context.sequences]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def calm() -> AsyncIterator[Service]:
    async with service({"calm": engine()}) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def calm_halves() -> AsyncIterator[Service]:
    async with service({"calm": engine(tokens=HALF_CHARACTERS)}) as running:
        yield running


@pytest.mark.parametrize("at_token", [1, CUT, TOKENS - 1])
async def test_a_cut_in_a_character_leaves_no_trace(calm_halves: Service, at_token: int) -> None:
    cases = [(path, stream) for path in ASKED for stream in (True, False)]
    async with service(fleet(len(cases), crash(at_token), tokens=HALF_CHARACTERS)) as stormy:
        for path, stream in cases:
            expected = await said(calm_halves, path, stream=stream)
            assert await said(stormy, path, stream=stream) == expected
            assert await resumes(stormy) == [1]


async def test_an_engine_may_die_before_the_first_token(calm: Service) -> None:
    engines: list[FakeEngine] = []

    def slow(sink: StepSink) -> FakeEngine:
        config = FakeEngineConfig(plain_token_ids=LETTERS, answer_tokens=(60, 60), first_token_s=0.2)
        engines.append(FakeEngine(config, sink))
        return engines[-1]

    async with service({"a": slow, "b": slow}) as running:
        asking = asyncio.create_task(said(running, CHAT, stream=True))
        while not (busy := [one for one in engines if one.stats().unfinished]):  # noqa: ASYNC110  # no event
            await asyncio.sleep(0)
        busy[0].fail("killed")
        assert await asking == await said(calm, CHAT, stream=True)
        assert await resumes(running) == [1]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_stop_string_on_both_sides_of_the_cut_is_seen(calm: Service, stream: bool) -> None:
    whole = (await post(calm, COMPLETIONS, echo=False)).json()["choices"][0]["text"]
    stop = whole[CUT - 3 : CUT + 3]
    assert whole.index(stop) == CUT - 3
    asked = {"stop": [stop], "stream": stream, "echo": False}
    expected = await said(calm, COMPLETIONS, **asked)
    assert '"finish_reason":"stop"' in expected
    async with service(fleet(1, crash())) as stormy:
        assert await said(stormy, COMPLETIONS, **asked) == expected
        assert await resumes(stormy) == [1]


@pytest.mark.parametrize(("path", "event"), [(CHAT, 'data: {"error"'), (MESSAGES, "event: error")])
async def test_a_request_that_two_engines_die_of_is_told_so(path: str, event: str) -> None:
    deadly = crash(on_resume=True)
    async with service(fleet(2, deadly)) as one:
        response = await post(one, path, stream=True)
        assert response.status_code == 200  # it had begun
        assert response.text.count(event) == 1
        assert "2 replicas failed" in response.text
        assert (await asyncio.wait_for(one.log.lines.get(), 5)).outcome is Outcome.POISON
    async with service(fleet(2, deadly)) as other:
        response = await post(other, path)
        assert response.status_code == 500
        assert "2 replicas failed" in response.text


@asynccontextmanager
async def started(name: str) -> AsyncIterator[EngineReplica]:
    replica = EngineReplica(name, engine(), WatchdogLimits())
    await replica.start()
    try:
        yield replica
    finally:
        await replica.stop()


async def test_with_nobody_left_a_stream_waits_and_goes_on_with_the_next_replica(calm: Service) -> None:
    async with (
        service({"only": engine(crash())}, keep_alive_s=0.1) as running,
        started("next") as successor,
    ):
        expected = await said(calm, CHAT, stream=True)
        asking = asyncio.create_task(said(running, CHAT, stream=True))
        while running.client.dispatcher.replicas_up() or not running.client.dispatcher.in_flight:  # noqa: ASYNC110  # no event
            await asyncio.sleep(0)
        running.transport.live = {"next": successor}
        assert await asking == expected
        assert await resumes(running) == [1]


@pytest.mark.parametrize(("path", "event"), [(CHAT, 'data: {"error"'), (MESSAGES, "event: error")])
async def test_with_nobody_left_until_its_deadline_a_stream_ends_with_an_error_and_an_answer_is_a_503(
    path: str, event: str
) -> None:
    async with service({"only": engine(crash())}, deadline_s=0.3) as running:
        response = await post(running, path, stream=True)
        assert response.status_code == 200
        assert response.text.count(event) == 1
        assert "No replica" in response.text
        assert (await asyncio.wait_for(running.log.lines.get(), 5)).outcome is Outcome.NO_REPLICA
        refused = await post(running, path)
        assert refused.status_code == (529 if path == MESSAGES else 503)
        assert int(refused.headers["retry-after"]) >= 1
        assert json.loads(refused.text)["error"]["message"].startswith("No replica")
