"""`/v1/responses`: how an answer ends, whole, cut or failed, streamed or not; and that OpenAI's client reads it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
from transformers import AutoTokenizer

from serve_app.engine.fake import FakeEngine, FakeEngineConfig, Fault, FaultKind
from serve_app.engine.replica import EngineFactory
from tests.http.harness import MODEL, NAME, Service, service

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATH = "/v1/responses"
THINK_END = AutoTokenizer.from_pretrained(MODEL).convert_tokens_to_ids("</think>")
THOUGHT = 4
"""Tokens of the fake engine's thought."""


def thinking(*faults: Fault) -> EngineFactory:
    config = FakeEngineConfig(
        plain_token_ids=(40, 90), think_tokens=THOUGHT, think_end_token_id=THINK_END, eos_token_id=1005, faults=faults,
        answer_tokens=(10, 10),
    )  # fmt: skip
    return lambda sink: FakeEngine(config, sink)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served() -> AsyncIterator[Service]:
    async with service({"a": thinking()}) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(served: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=served.url, timeout=30, trust_env=False) as client:
        yield client


def events_of(text: str) -> list[dict[str, Any]]:
    blocks = [block.split("\n") for block in text.split("\n\n") if block and not block.startswith(":")]
    events = []
    for lines in blocks:
        fields = dict(line.split(": ", 1) for line in lines)
        data = json.loads(fields["data"])
        assert data["type"] == fields["event"]
        events.append(data)
    return events


async def streamed(http: httpx.AsyncClient, **asked: Any) -> list[dict[str, Any]]:
    response = await http.post(PATH, json={"model": NAME, "input": "hello", "stream": True, **asked})
    assert response.status_code == 200, response.text
    events = events_of(response.text)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    return events


def statuses(response: dict[str, Any]) -> list[tuple[str, str | None]]:
    return [(item["type"], item["status"]) for item in response["output"]]


CUTS = [
    (2, [("reasoning", "incomplete")]),
    (THOUGHT + 5, [("reasoning", None), ("message", "incomplete")]),
]
"""`max_output_tokens`, and the items of the answer that was cut there. vLLM gives a whole thought no status."""


@pytest.mark.parametrize(("limit", "items"), CUTS)
async def test_an_answer_that_is_cut_is_incomplete(
    http: httpx.AsyncClient, limit: int, items: list[tuple[str, str | None]]
) -> None:
    answer = (await http.post(PATH, json={"model": NAME, "input": "hello", "max_output_tokens": limit})).json()
    assert answer["status"] == "incomplete"
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
    assert statuses(answer) == items


@pytest.mark.parametrize(("limit", "items"), CUTS)
async def test_a_stream_that_is_cut_ends_with_incomplete(
    http: httpx.AsyncClient, limit: int, items: list[tuple[str, str | None]]
) -> None:
    events = await streamed(http, max_output_tokens=limit)
    assert events[-1]["type"] == "response.incomplete"
    response = events[-1]["response"]
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["usage"]["output_tokens"] == limit
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == response["output"]
    assert [(item["type"], item["status"] == "incomplete") for item in done] == [
        (kind, status == "incomplete") for kind, status in items
    ]


async def test_a_whole_answer_is_completed_streamed_or_not(http: httpx.AsyncClient) -> None:
    whole = (await http.post(PATH, json={"model": NAME, "input": "hello"})).json()
    events = await streamed(http)
    assert whole["status"] == "completed"
    assert events[-1]["type"] == "response.completed"
    assert events[-1]["response"]["status"] == "completed"
    assert "incomplete" not in [status for _, status in statuses(whole) + statuses(events[-1]["response"])]


async def test_openais_client_reads_a_stream_to_its_end(served: Service) -> None:
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        for limit, status in ((THOUGHT + 5, "incomplete"), (50, "completed")):
            async with client.responses.stream(model=NAME, input="hello", max_output_tokens=limit) as stream:
                kinds = [event.type async for event in stream]
            assert kinds[0] == "response.created"
            assert kinds[-1] == f"response.{status}"


async def test_a_stream_that_fails_says_so_in_its_last_event() -> None:
    """Every engine dies at the same token: the answer has begun, and there is nobody left to go on with it."""
    dies = thinking(Fault(FaultKind.CRASH, at_token=6, every=1, on_resume=True))
    async with (
        service({"a": dies, "b": dies}, deadline_s=2) as running,
        httpx.AsyncClient(base_url=running.url, timeout=30, trust_env=False) as http,
    ):
        events = await streamed(http, max_output_tokens=50)
        assert [event["type"] for event in events].count("response.failed") == 1
        assert events[-1]["type"] == "response.failed"
        assert events[-1]["response"]["status"] == "failed"
        assert events[-1]["response"]["id"] == events[0]["response"]["id"]
        assert events[-1]["response"]["error"]["code"] == "server_error"
        assert events[-1]["response"]["error"]["message"]


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({"input": "1 " * 9000}, 400),
        ({"top_p": 7}, 400),
        ({"structured_outputs": {"choice": []}}, 400),
        ({"min_p": 0.4}, 400),
        ({"model": "nobody"}, 404),
    ],
)
async def test_what_is_refused_is_refused_alike_with_a_stream(
    http: httpx.AsyncClient, asked: dict[str, Any], status: int
) -> None:
    bodies = [{"model": NAME, "input": "hello", "stream": stream, **asked} for stream in (False, True)]
    whole, stream = [await http.post(PATH, json=body) for body in bodies]
    assert (whole.status_code, stream.status_code) == (status, status), stream.text
    assert stream.json()["error"]["message"] == whole.json()["error"]["message"]
