"""A request that kills engines takes one, on every API, streamed or not; who sends it again takes no second."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from serve_app.engine.contract import FAILED_BY_ITSELF
from serve_app.engine.fake import FakeEngine, FakeEngineConfig
from serve_app.protocol.errors import EngineDead
from serve_app.protocol.messages import AttemptRequest
from tests.http.harness import NAME, LocalTransport, service

ASKED = [{"role": "user", "content": "Kill."}]
BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": ASKED, "max_tokens": 5}),
    ("/v1/completions", {"prompt": "Kill.", "max_tokens": 5}),
    ("/v1/responses", {"input": "Kill.", "max_output_tokens": 5}),
    ("/v1/messages", {"messages": ASKED, "max_tokens": 5}),
]


class Mortal(FakeEngine):
    """An engine that dies of its first request's first step, as of an illegal memory access."""

    async def run(self, attempt: AttemptRequest) -> None:  # noqa: ARG002  # the signature of an engine
        words = f"it {FAILED_BY_ITSELF}: illegal memory access"
        self.fail(words)
        raise EngineDead(words)


@pytest.mark.asyncio
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), BODIES)
async def test_a_request_that_an_engine_dies_of_takes_no_second_one(
    path: str, body: dict[str, Any], stream: bool
) -> None:
    engines = {name: lambda sink: Mortal(FakeEngineConfig(), sink) for name in ("a", "b")}
    async with (
        service(engines) as running,
        httpx.AsyncClient(base_url=running.url, timeout=60, trust_env=False) as http,
    ):
        for model in (NAME, "gpt-4o"):
            response = await http.post(path, json={"model": model, "stream": stream, **body})
            assert response.status_code == 500, response.text
            assert "a replica failed while working on it" in response.json()["error"]["message"]
            assert response.headers["x-should-retry"] == "false"
        # What another ingress hears of the replicas that are left.
        hellos, _ = await LocalTransport("another", running.transport.live).replicas()
        assert [name.split()[0] for hello in hellos for name in hello.quarantine] == ["prompt", "prompt"]
        dead = [name for name, replica in running.transport.live.items() if replica._engine_dead]  # no public sign
        assert len(dead) == 1
