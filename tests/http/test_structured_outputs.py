"""A grammar that cannot work is refused on every API, names its field, and never reaches an engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from vllm.v1.engine import FinishReason

from serve_app.engine.fake import FakeEngine, FakeEngineConfig
from serve_app.protocol.messages import AttemptRequest, TokenDelta
from tests.http.harness import NAME, Service, service

pytestmark = pytest.mark.asyncio(loop_scope="module")

ASKED = [{"role": "user", "content": "Say yes."}]
BAD_PATTERN = {"type": "object", "properties": {"a": {"type": "string", "pattern": "foo**"}}}
CHAT, COMPLETIONS, RESPONSES, MESSAGES = (
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages",
)  # fmt: skip
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": ASKED, "max_tokens": 5},
    COMPLETIONS: {"prompt": "Say yes.", "max_tokens": 5},
    RESPONSES: {"input": "Say yes.", "max_output_tokens": 5},
    MESSAGES: {"messages": ASKED, "max_tokens": 5},
}

CANNOT_WORK: list[tuple[str, Any]] = [
    ("regex", "foo**"),
    ("regex", "+"),
    ("regex", "["),
    ("regex", "(?=a)b"),
    ("regex", "a" * 200_000),
    ("choice", []),
    ("choice", ["x" * 200_000]),
    ("grammar", "root ::= ("),
    ("grammar", " "),
    ("json", "{"),
    ("json", {"type": "nope"}),
    ("json", {"$ref": "#/nowhere"}),
    ("json", BAD_PATTERN),
    ("json", {"patternProperties": {"x**": {}}}),
    ("json", {"enum": [f"value {number}" for number in range(80_000)]}),
    ("structural_tag", "{"),
]

EXPLOSIVE: list[tuple[str, Any]] = [
    ("regex", "a?" * 5000 + "a" * 5000),
    ("regex", "(a|b)?" * 20_000),
    ("json", {
        "type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(200)},
        "minProperties": 100, "maxProperties": 150,
    }),
    ("json", {
        "type": "object",
        "properties": {f"p{n}": {"type": "string", "pattern": f"[a-z]{{1,{100 + n}}}"} for n in range(1000)},
    }),
]  # fmt: skip
"""Small enough to be taken, and compiled for minutes by xgrammar 0.2.8."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served() -> AsyncIterator[Service]:
    config = FakeEngineConfig(plain_token_ids=(40, 90))
    async with service({"a": lambda sink: FakeEngine(config, sink)}, max_body_bytes=8 << 20) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(served: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=served.url, timeout=180, trust_env=False) as client:
        yield client


async def refused(served: Service, http: httpx.AsyncClient, path: str, asked: dict[str, Any]) -> dict[str, Any]:
    """The error, the same streamed or not."""
    errors = []
    for stream in (False, True):
        response = await http.post(path, json={"model": NAME, "stream": stream, **BODIES[path], **asked})
        assert response.status_code == 400, response.text[:300]
        errors.append(response.json()["error"])
        line = await asyncio.wait_for(served.log.lines.get(), 5)
        assert not line.context.sequences, "it never reached an engine"
    assert errors[0]["message"] == errors[1]["message"]
    error: dict[str, Any] = errors[0]
    return error


@pytest.mark.parametrize(("kind", "value"), CANNOT_WORK)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES])
async def test_a_grammar_that_cannot_work_is_named(
    served: Service, http: httpx.AsyncClient, path: str, kind: str, value: Any
) -> None:
    error = await refused(served, http, path, {"structured_outputs": {kind: value}})
    assert f"structured_outputs.{kind}" in error["message"] or kind == "structural_tag"


@pytest.mark.parametrize(("kind", "value"), EXPLOSIVE)
async def test_a_grammar_that_explodes_is_stopped_and_named(
    served: Service, http: httpx.AsyncClient, kind: str, value: Any
) -> None:
    for path in (CHAT, COMPLETIONS, RESPONSES):
        error = await refused(served, http, path, {"structured_outputs": {kind: value}})
        assert f"structured_outputs.{kind}" in error["message"]
        assert "make it simpler" in error["message"]


@pytest.mark.parametrize("schema", [BAD_PATTERN, {"type": "nope"}])
@pytest.mark.parametrize(
    ("path", "field"),
    [
        (CHAT, "response_format.json_schema.schema"),
        (COMPLETIONS, "response_format.json_schema.schema"),
        (RESPONSES, "text.format.schema"),
        (MESSAGES, ""),
    ],
)
async def test_a_schema_that_cannot_work_is_named(
    served: Service, http: httpx.AsyncClient, path: str, field: str, schema: dict[str, Any]
) -> None:
    forms: dict[str, dict[str, Any]] = {
        CHAT: {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}},
        RESPONSES: {"text": {"format": {"type": "json_schema", "name": "x", "schema": schema}}},
        MESSAGES: {"output_config": {"format": {"type": "json_schema", "schema": schema}}},
    }
    error = await refused(served, http, path, forms.get(path, forms[CHAT]))
    assert field in error["message"]


async def test_a_schema_of_chat_completions_is_optional(http: httpx.AsyncClient) -> None:
    """OpenAI's `json_schema` may have a name only: any object will do."""
    for schema in ({"name": "x"}, {"name": "x", "schema": None}):
        asked = {"response_format": {"type": "json_schema", "json_schema": schema}}
        response = await http.post(CHAT, json={"model": NAME, **BODIES[CHAT], **asked})
        assert response.status_code == 200, response.text[:300]


class CannotCompile(FakeEngine):
    """An engine that fails each request before its first token, as vLLM's does where a grammar does not compile."""

    async def run(self, attempt: AttemptRequest) -> None:
        self._sink([TokenDelta(attempt.attempt_id, 0, [], finish_reason=FinishReason.ERROR.value)])


async def test_a_grammar_that_only_the_engine_refuses_is_the_requests_fault(served: Service) -> None:
    async with (
        service({"a": lambda sink: CannotCompile(FakeEngineConfig(), sink)}, keep_alive_s=60) as running,
        httpx.AsyncClient(base_url=running.url, timeout=180, trust_env=False) as http,
    ):
        running.client.grammars = served.client.grammars  # its worker runs
        for path in (CHAT, COMPLETIONS, RESPONSES):
            for stream in (False, True):
                asked = BODIES[path] | {"structured_outputs": {"regex": "a"}, "stream": stream}
                response = await http.post(path, json={"model": NAME, **asked})
                assert response.status_code == 400, response.text
                assert "does not compile" in response.text


class FailsLater(FakeEngine):
    """An engine that gives up a grammar after some tokens."""

    async def run(self, attempt: AttemptRequest) -> None:
        self._sink([TokenDelta(attempt.attempt_id, 0, [40])])
        self._sink([TokenDelta(attempt.attempt_id, 1, [], finish_reason=FinishReason.ERROR.value)])


async def test_a_grammar_that_an_engine_gives_up_later_is_the_requests_fault(served: Service) -> None:
    async with (
        service({"a": lambda sink: FailsLater(FakeEngineConfig(), sink)}, keep_alive_s=60) as running,
        httpx.AsyncClient(base_url=running.url, timeout=180, trust_env=False) as http,
    ):
        running.client.grammars = served.client.grammars  # its worker runs
        for path in (CHAT, COMPLETIONS, RESPONSES):
            asked = BODIES[path] | {"structured_outputs": {"regex": "a"}}
            response = await http.post(path, json={"model": NAME, **asked})
            assert response.status_code == 400, response.text
            assert "takes too long for each token" in response.text
            response = await http.post(path, json={"model": NAME, "stream": True, **asked})
            assert "takes too long for each token" in response.text


@pytest.mark.parametrize(
    "asked",
    [
        {"structured_outputs": {"choice": ["yes", "no"]}, "include_reasoning": False},
        {"structured_outputs": {"regex": r"\p{L}+"}},
        {"structured_outputs": {"regex": "a{1,1000000}"}},
        {"structured_outputs": {"json": {"type": "object", "properties": {"pattern": {"type": "string"}}}}},
        {"structured_outputs": {"json": {"const": {"pattern": "**"}}}},
        {"structured_outputs": {"json": {"$ref": "#"}}},
        {"structured_outputs": {"json_object": True}},
        {"structured_outputs": {"grammar": 'root ::= "yes" | "no"'}},
        {"response_format": {"type": "json_object"}},
    ],
)
async def test_a_grammar_that_works_is_taken(http: httpx.AsyncClient, asked: dict[str, Any]) -> None:
    response = await http.post(CHAT, json={"model": NAME, **BODIES[CHAT], **asked})
    assert response.status_code == 200, response.text
