"""An image goes to a replica once, and every attempt runs with its images, whatever the replica has let go."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from PIL import Image

from serve_app.engine.fake import FakeEngine, FakeEngineConfig
from serve_app.engine.fake_script import Fault, FaultKind
from serve_app.protocol.messages import AttemptRequest
from tests.http.harness import NAME, Service, service

Part = dict[str, Any]

ANSWER = FakeEngineConfig(plain_token_ids=(40, 90))


class RecordingEngine(FakeEngine):
    """A `FakeEngine` that keeps the attempts it was given."""

    def __init__(self, attempts: list[AttemptRequest], config: FakeEngineConfig, sink: Any) -> None:
        super().__init__(config, sink)
        self._received = attempts

    async def run(self, attempt: AttemptRequest) -> None:
        self._received.append(attempt)
        await super().run(attempt)


@dataclass
class Seen:
    """What went over the wire to each replica, and what its engine got."""

    sent: dict[str, list[AttemptRequest]] = field(default_factory=dict)
    run: dict[str, list[AttemptRequest]] = field(default_factory=dict)

    def watch(self, running: Service) -> None:
        send = running.transport.run_attempt

        async def run_attempt(replica_id: str, attempt: AttemptRequest) -> None:
            self.sent.setdefault(replica_id, []).append(attempt)
            await send(replica_id, attempt)

        running.client.dispatcher._transport.run_attempt = run_attempt  # type: ignore[method-assign]

    def engine(self, name: str, config: FakeEngineConfig = ANSWER) -> Any:
        return lambda sink: RecordingEngine(self.run.setdefault(name, []), config, sink)


def picture(colour: str) -> dict[str, Any]:
    file = io.BytesIO()
    Image.new("RGB", (60, 40), colour).save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": url}}


async def ask(url: str, *parts: dict[str, Any], **options: Any) -> httpx.Response:
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": "What is it?"}]}]
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
        body = {"model": NAME, "messages": messages, "max_tokens": 4, **options}
        response = await client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    return response


@pytest.mark.asyncio
async def test_a_later_turn_sends_no_image_again() -> None:
    seen = Seen()
    async with service({"a": seen.engine("a")}) as running:
        seen.watch(running)
        await ask(running.url, picture("red"), picture("blue"))
        await ask(running.url, picture("red"), picture("blue"), picture("green"))
        await ask(running.url, picture("blue"), picture("red"))
    assert [len(attempt.images) for attempt in seen.sent["a"]] == [2, 1, 0]
    first, second, third = seen.run["a"]
    assert first.images.items() <= second.images.items()
    assert third.images == first.images
    assert third.spec.images == first.spec.images[::-1]
    assert len(second.images) == 3


@pytest.mark.asyncio
async def test_the_same_image_twice_in_a_request_is_sent_once() -> None:
    seen = Seen()
    async with service({"a": seen.engine("a")}) as running:
        seen.watch(running)
        await ask(running.url, picture("red"), picture("red"), n=2)
    attempts = seen.sent["a"]
    assert sorted(len(attempt.images) for attempt in attempts) == [0, 1]
    assert all(len(attempt.spec.images) == 2 for attempt in attempts)
    assert all(len(attempt.images) == 1 for attempt in seen.run["a"])


@pytest.mark.asyncio
async def test_an_image_that_the_replica_has_let_go_is_sent_again() -> None:
    """As if other ingresses had filled its store."""
    seen = Seen()
    async with service({"a": seen.engine("a")}) as running:
        seen.watch(running)
        await ask(running.url, picture("red"))
        running.transport.live["a"]._images.clear()
        await ask(running.url, picture("red"))
    assert [len(attempt.images) for attempt in seen.sent["a"]] == [1, 0, 1]
    assert [attempt.images for attempt in seen.run["a"]] == [seen.run["a"][0].images] * 2


@pytest.mark.asyncio
async def test_a_replica_that_keeps_nothing_gets_every_image() -> None:
    seen = Seen()
    async with service({"a": seen.engine("a")}, image_bytes=0) as running:
        seen.watch(running)
        for _ in range(3):
            await ask(running.url, picture("red"))
    assert [len(attempt.images) for attempt in seen.sent["a"]] == [1, 1, 1]


@pytest.mark.asyncio
async def test_a_migration_takes_the_images_along() -> None:
    """Each engine dies at the third token of a request that did not die elsewhere."""
    seen = Seen()
    dies = FakeEngineConfig(plain_token_ids=(40, 90), faults=(Fault(FaultKind.CRASH, at_token=2, every=1),))
    async with service({name: seen.engine(name, dies) for name in "ab"}) as running:
        seen.watch(running)
        response = await ask(running.url, picture("red"))
    assert response.json()["usage"]["completion_tokens"] == 4
    (first,), (second,) = seen.sent.values()
    assert len(second.emitted_token_ids) == 2
    assert first.images == second.images != {}
    assert [len(attempts) for attempts in seen.run.values()] == [1, 1]


def without_type(part: Part) -> Part:
    return {"image_url": part["image_url"]["url"]}


@pytest.mark.parametrize("form", [dict, without_type])
@pytest.mark.asyncio
async def test_a_name_that_a_client_gives_an_image_is_not_used(
    form: Callable[[dict[str, Any]], dict[str, Any]],
) -> None:
    """vLLM's `uuid` would let one client name the image of another, or put its own in its place."""
    seen = Seen()
    async with service({"a": seen.engine("a")}) as running:
        await ask(running.url, {**form(picture("red")), "uuid": "mine"})
        response = await ask(running.url, {**form(picture("blue")), "uuid": "mine"})
    red, blue = seen.run["a"]
    assert red.spec.images != blue.spec.images
    assert "mine" not in json.dumps([red.spec.images, blue.spec.images])
    assert "uuid" in response.headers["x-step-ignored"]
