"""A full fleet over HTTP: a status and a time to come back, on every API, also where only the replica knows."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from serve_app.engine.contract import StepSink
from serve_app.engine.fake import FakeEngine, FakeEngineConfig
from serve_app.protocol.errors import Outcome
from serve_app.router.admission_control import AdmissionControl
from tests.http.harness import NAME, service

HELLO = [{"role": "user", "content": "Hello."}]
ASKED = {
    "/v1/chat/completions": {"messages": HELLO, "max_tokens": 8},
    "/v1/completions": {"prompt": "Hello.", "max_tokens": 8},
    "/v1/responses": {"input": "Hello.", "max_output_tokens": 8},
    "/v1/messages": {"messages": HELLO, "max_tokens": 8},
}


@pytest.mark.parametrize("heard", [True, False])
async def test_21_and_22_a_full_fleet_is_a_429_that_says_when_on_every_api(
    heard: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`heard`: whether the ingress knows; it does not where others have just filled the replica."""
    engines: list[FakeEngine] = []

    def narrow(sink: StepSink) -> FakeEngine:
        config = FakeEngineConfig(plain_token_ids=(40, 90), gap_s=0.01, answer_tokens=(9000, 9000), max_num_seqs=1)
        engines.append(FakeEngine(config, sink))
        return engines[0]

    async with (
        service({"a": narrow}, max_queued_requests=0) as running,
        httpx.AsyncClient(base_url=running.url, timeout=30, trust_env=False) as client,
    ):
        chat = {"model": NAME, **ASKED["/v1/chat/completions"]}
        assert (await client.post("/v1/chat/completions", json=chat)).status_code == 200  # measured by this one
        engines[0].first_token_sent.clear()
        links = running.client.dispatcher._pool
        async with asyncio.timeout(10):
            while links.taking_work()[0].capacity.service_s is None:  # noqa: ASYNC110  # said once a second; no event
                await asyncio.sleep(0)
        asked = {**chat, "max_tokens": 4000, "stream": True}
        first = asyncio.create_task(client.post("/v1/chat/completions", json=asked))
        await asyncio.wait_for(engines[0].first_token_sent.wait(), 10)
        if not heard:
            monkeypatch.setattr(AdmissionControl, "check", lambda *_: None)
        while not running.log.lines.empty():
            running.log.lines.get_nowait()
        for path, body in ASKED.items():
            for model in (NAME, "claude-opus"):
                for stream in (False, True):
                    answer = await client.post(path, json={"model": model, **body, "stream": stream})
                    assert answer.status_code == 429, (path, stream, answer.text)
                    assert int(answer.headers["retry-after"]) >= 1
                    assert "The server is full: it holds 1 requests" in answer.text
                    assert "(measured)" in answer.text
                    line = await running.log.lines.get()
                    assert (line.status, line.outcome) == (429, Outcome.SHED_QUEUE_FULL)
        first.cancel()
        await asyncio.wait({first})
