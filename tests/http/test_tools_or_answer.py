"""Tools and a format for the answer: the engine's grammar takes calls, or an answer in its format, on every API."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import pytest_asyncio
import xgrammar
from transformers import AutoTokenizer
from vllm.sampling_params import StructuredOutputsParams
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.serial_utils import MsgpackDecoder

from serve_app.engine.contract import StepSink
from serve_app.engine.fake import FakeEngine, FakeEngineConfig
from serve_app.ingress.requests.edits import HEADER
from serve_app.protocol.messages import AttemptRequest
from tests.http.asking import CHAT, LIMIT, MESSAGES, RESPONSES
from tests.http.harness import MODEL, NAME, service

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
FUNCTION = {"name": "get_weather", "parameters": PARAMETERS}
STRICT = {"type": "function", "function": FUNCTION | {"strict": True}}
ASKED = {"messages": [{"role": "user", "content": "Weather?"}]}

Taken = Callable[[str, str], bool]

ANSWER = '{"a": "x"}'
CALL = (
    "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>"
)  # fmt: skip


def chat(schema: dict[str, Any]) -> dict[str, Any]:
    """As the Vercel AI SDK asks."""
    form = {"type": "json_schema", "json_schema": {"schema": schema, "strict": True, "name": "response"}}
    return ASKED | {"tools": [{"type": "function", "function": FUNCTION}], "response_format": form}


def responses(schema: dict[str, Any]) -> dict[str, Any]:
    """As openai-agents ask."""
    form = {"type": "json_schema", "name": "final_output", "schema": schema, "strict": True}
    return {"input": "Weather?", "tools": [{"type": "function", **FUNCTION}], "text": {"format": form}}


def messages(schema: dict[str, Any]) -> dict[str, Any]:
    """As Anthropic's SDK asks."""
    form = {"type": "json_schema", "schema": schema}
    return ASKED | {"tools": [{"name": "get_weather", "input_schema": PARAMETERS}], "output_config": {"format": form}}


ASK = {CHAT: chat, RESPONSES: responses, MESSAGES: messages}
FIELD = {
    CHAT: "response_format.json_schema.schema",
    RESPONSES: "text.format.schema",
    MESSAGES: "response_format.json_schema.schema",
}


class Recording(FakeEngine):
    """Keeps the grammars that it was given."""

    def __init__(self, sink: StepSink, grammars: list[StructuredOutputsParams | None]) -> None:
        super().__init__(FakeEngineConfig(plain_token_ids=(40, 90)), sink)
        self._grammars = grammars

    async def run(self, attempt: AttemptRequest) -> None:
        request = MsgpackDecoder(EngineCoreRequest).decode(attempt.spec.payload)
        self._grammars.append(request.sampling_params.structured_outputs)
        await super().run(attempt)


@dataclass(frozen=True)
class Client:
    """Asks, and has what the engine was given."""

    http: httpx.AsyncClient
    grammars: list[StructuredOutputsParams | None]

    async def ask(self, path: str, body: dict[str, Any]) -> httpx.Response:
        self.grammars.clear()
        return await self.http.post(path, json={"model": NAME, LIMIT[path]: 6, **body})

    async def tag(self, path: str, body: dict[str, Any]) -> str:
        """The structural tag that the engine gets."""
        response = await self.ask(path, body)
        assert response.status_code == 200, response.text
        assert HEADER.decode() not in response.headers
        (given,) = self.grammars
        assert given is not None
        assert (given.json, given.json_object, given._backend) == (None, None, "xgrammar")
        assert given.structural_tag is not None
        return str(given.structural_tag)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client() -> AsyncIterator[Client]:
    grammars: list[StructuredOutputsParams | None] = []
    async with (
        service({"a": lambda sink: Recording(sink, grammars)}) as running,
        httpx.AsyncClient(base_url=running.url, timeout=60, trust_env=False) as http,
    ):
        yield Client(http, grammars)


@pytest.fixture(scope="module")
def taken() -> Callable[[str, str], bool]:
    """Whether a grammar takes the whole of a text, token by token, as an engine has it."""
    tokenizer = AutoTokenizer.from_pretrained(str(MODEL))
    compiler = xgrammar.GrammarCompiler(xgrammar.TokenizerInfo.from_huggingface(tokenizer))

    def take(tag: str, text: str) -> bool:
        matcher = xgrammar.GrammarMatcher(compiler.compile_structural_tag(tag))
        tokens = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
        return all(matcher.accept_token(token) for token in tokens)

    return take


@pytest.mark.parametrize("path", ASK)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_or_an_answer_in_its_format(client: Client, taken: Taken, path: str, *, stream: bool) -> None:
    tag = await client.tag(path, ASK[path](SCHEMA) | {"stream": stream})
    assert taken(tag, ANSWER)
    assert taken(tag, CALL)
    assert taken(tag, f"{CALL}\n{CALL}")
    for other in ("Sunny.", '{"b": 1}', f"{ANSWER}\n{CALL}", CALL.replace("get_weather", "rm")):
        assert not taken(tag, other)


@pytest.mark.parametrize(
    ("changed", "answer"),
    [
        ({"response_format": {"type": "json_object"}}, '{"b": 1}'),
        ({"response_format": None, "structured_outputs": {"regex": "(yes|no)"}}, "no"),
        ({"response_format": None, "structured_outputs": {"choice": ["yes", "no"]}}, "no"),
        ({"response_format": None, "structured_outputs": {"grammar": 'root ::= "no"'}}, "no"),
        ({"tools": [STRICT]}, ANSWER),
        ({"tool_choice": "auto"}, ANSWER),
    ],
)
async def test_formats_of_all_kinds(client: Client, taken: Taken, changed: dict[str, Any], answer: str) -> None:
    tag = await client.tag(CHAT, chat(SCHEMA) | changed)
    assert [taken(tag, text) for text in (answer, CALL, "Sunny.")] == [True, True, False]


async def test_one_call_where_parallel_ones_are_not_wanted(client: Client, taken: Taken) -> None:
    tag = await client.tag(CHAT, chat(SCHEMA) | {"parallel_tool_calls": False})
    assert [taken(tag, text) for text in (ANSWER, CALL, f"{CALL}\n{CALL}")] == [True, True, False]


@pytest.mark.parametrize("path", ASK)
async def test_a_format_that_no_grammar_has_beside_tools_is_left_out(client: Client, path: str) -> None:
    """xgrammar does not know `multipleOf`; guidance does, and has no tags of calls."""
    response = await client.ask(
        path, ASK[path]({"type": "object", "properties": {"a": {"type": "integer", "multipleOf": 5}}})
    )
    assert response.status_code == 200, response.text
    assert client.grammars == [None]
    assert response.headers[HEADER.decode()] == f"{FIELD[path]} (cannot be enforced beside tools)"


@pytest.mark.parametrize("path", ASK)
@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nope"},
        {"type": "object", "properties": {"a": {"type": "string", "pattern": "foo**"}}},
        {"properties": {f"p{n}": {"type": "string"} for n in range(200)}, "minProperties": 100, "maxProperties": 150},
    ],
)
async def test_a_format_that_cannot_work_is_refused_by_its_name(
    client: Client, path: str, schema: dict[str, Any]
) -> None:
    response = await client.ask(path, ASK[path]({"type": "object", **schema}))
    assert response.status_code == 400
    assert f"{FIELD[path]} cannot be enforced" in response.json()["error"]["message"]
    assert not client.grammars


async def test_a_grammar_that_is_none_is_refused_by_its_name(client: Client) -> None:
    for kind, value in (("json", "{"), ("grammar", "start: ("), ("regex", "foo**")):
        body = chat(SCHEMA) | {"response_format": None, "structured_outputs": {kind: value}}
        response = await client.ask(CHAT, body)
        assert response.status_code == 400
        assert f"structured_outputs.{kind} cannot be enforced" in response.json()["error"]["message"]


async def test_a_structural_tag_of_the_clients_own_is_left_alone(client: Client) -> None:
    own = json.dumps({"type": "structural_tag", "format": {"type": "const_string", "value": "no"}})
    tag = await client.tag(
        CHAT, chat(SCHEMA) | {"response_format": None, "structured_outputs": {"structural_tag": own}}
    )
    assert tag == own
