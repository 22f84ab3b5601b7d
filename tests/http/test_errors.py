"""One shape of errors for each API: whatever goes wrong, wherever, streamed or not."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from serve_app.engine.contract import StepSink
from serve_app.engine.fake import FakeEngine
from serve_app.engine.fake_config import FakeEngineConfig
from serve_app.engine.fake_script import Fault, FaultKind
from serve_app.engine.replica import EngineFactory
from serve_app.protocol.errors import AttemptRefused, Outcome
from serve_app.protocol.messages import AttemptRequest
from tests.http.harness import NAME, Service, service

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
APIS = (CHAT, COMPLETIONS, RESPONSES, MESSAGES)
HELLO = [{"role": "user", "content": "hello"}]
LIMIT = 8192

FOREIGN = re.compile(r"validation error|pydantic|https?://|Traceback|<class|\[type=|input_value|object at|\{'|\('")


def asking(path: str, prompt: object, **more: object) -> dict[str, Any]:
    """The smallest request of an API with this prompt."""
    field = {CHAT: "messages", MESSAGES: "messages", COMPLETIONS: "prompt", RESPONSES: "input"}[path]
    if field == "messages" and isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    limit = {MESSAGES: {"max_tokens": 4}}.get(path, {})
    return {"model": NAME, field: prompt, **limit, **more}


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error, after a look at its shape."""
    body = response.json()
    error = body["error"]
    if response.request.url.path.startswith(MESSAGES):
        assert body.keys() == {"type", "error", "request_id"}
        assert body["type"] == "error"
        assert body["request_id"] == response.headers["request-id"]
        assert error.keys() == {"type", "message"}
    else:
        assert body.keys() == {"error"}
        assert error.keys() == {"message", "type", "param", "code"}
        assert error["code"] is None or isinstance(error["code"], str)
        assert error["param"] is None or (isinstance(error["param"], str) and not error["param"].startswith("body"))
    assert isinstance(error["message"], str)
    assert 5 < len(error["message"]) <= 400
    assert not FOREIGN.search(error["message"]), error["message"]
    assert response.headers["content-type"] == "application/json"
    return dict(error)


def talking_to(running: Service) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=running.url, timeout=60, trust_env=False)


def fake() -> Any:
    return lambda sink: FakeEngine(FakeEngineConfig(plain_token_ids=(40, 90)), sink)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served() -> AsyncIterator[Service]:
    async with service({"a": fake()}, max_body_bytes=16 << 20) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(served: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with talking_to(served) as client:
        yield client


WRONG: list[tuple[str, dict[str, Any], str | None, str]] = [
    (CHAT, {"messages": {"role": "user", "content": "hi"}}, "messages", "`messages` must be an array."),
    (CHAT, {"messages": "hi"}, "messages", "`messages` must be an array."),
    (CHAT, {}, "messages", "`messages` is required."),
    (
        CHAT,
        {"messages": [{"role": "user", "content": 5}]},
        "messages.0.content",
        "`messages.0.content` must be a string or an array.",
    ),
    (CHAT, {"messages": HELLO, "temperature": "hot"}, "temperature", "`temperature` must be a number."),
    (CHAT, {"messages": HELLO, "tools": {"a": 1}}, "tools", "`tools` must be an array."),
    (
        CHAT,
        {"messages": HELLO, "tools": [{"type": "function"}]},
        "tools.0.function",
        "`tools.0.function` must be an object",
    ),
    (CHAT, {"messages": HELLO, "stop": 5}, "stop", "`stop` must be a string or an array."),
    (CHAT, {"messages": HELLO, "top_p": 7}, "top_p", "top_p"),
    (CHAT, {"messages": HELLO, "response_format": {"type": "xml"}}, "response_format.type", "json_schema"),
    (COMPLETIONS, {"prompt": {"a": 1}}, "prompt", "`prompt` must be"),
    (COMPLETIONS, {}, "prompt", "prompt"),
    (COMPLETIONS, {"prompt": "x", "max_tokens": "many"}, "max_tokens", "`max_tokens` must be an integer."),
    (RESPONSES, {"input": 5}, "input", "`input` must be a string or an array."),
    (RESPONSES, {}, "input", "`input` is required."),
    (RESPONSES, {"input": [{"role": "user", "content": 5}]}, "input.0.content", "must be a string or an array."),
    (RESPONSES, {"input": "x", "max_output_tokens": "many"}, "max_output_tokens", "must be an integer."),
    (MESSAGES, {"messages": "hi", "max_tokens": 4}, None, "`messages` must be an array."),
    (MESSAGES, {"messages": HELLO}, None, "`max_tokens` is required."),
    (MESSAGES, {"messages": [{"role": "user", "content": 7}], "max_tokens": 4}, None, "`messages.0.content` must be"),
    (MESSAGES, {"messages": [{"role": "bot", "content": "x"}], "max_tokens": 4}, None, '"user", "assistant"'),
    (MESSAGES, {"messages": HELLO, "max_tokens": 4, "tools": [{"input_schema": {}}]}, None, "`tools.0.name`"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body", "param", "says"), WRONG)
async def test_a_wrong_field_is_one_sentence_that_names_it(
    http: httpx.AsyncClient, path: str, body: dict[str, Any], param: str | None, says: str, stream: bool
) -> None:
    for name in (NAME, "claude-opus-4"):
        response = await http.post(path, json={"model": name, **body, "stream": stream})
        error = error_of(response)
        assert response.status_code == 400
        assert error["type"] == "invalid_request_error"
        assert says in error["message"]
        assert error.get("param") == param


@pytest.mark.parametrize("path", APIS)
async def test_what_is_refused_without_stream_is_refused_alike_with_it(http: httpx.AsyncClient, path: str) -> None:
    """Also what vLLM finds only when its stream has begun (a thinking budget, a logit bias that is out of range)."""
    refused = 0
    for wrong in (
        {"thinking_token_budget": 5},
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        {"min_p": 0.2},
        {"logit_bias": {"999999": 1}},
        {"allowed_token_ids": [999_999]},
        {"logprobs": 500},
        {"n": 10_000},
        {"bad_words": [""]},
        {"temperature": -1},
        {"model": "nobody"},
    ):
        body = asking(path, "hello") | wrong
        body |= {"max_tokens": 2000} if path == MESSAGES else {}
        whole = await http.post(path, json=body)
        streamed = await http.post(path, json=body | {"stream": True})
        assert whole.status_code == streamed.status_code, wrong
        if whole.status_code != 200:
            refused += 1
            assert error_of(whole) == error_of(streamed)
            assert whole.status_code < 500
    assert refused >= 2


async def test_an_unknown_model_has_the_code_that_sdks_look_for(http: httpx.AsyncClient) -> None:
    for path in (CHAT, COMPLETIONS, RESPONSES):
        response = await http.post(path, json=asking(path, "hello", model="nobody"))
        error = error_of(response)
        assert (response.status_code, error["type"]) == (404, "invalid_request_error")
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        assert "nobody" in error["message"]
    response = await http.post(MESSAGES, json=asking(MESSAGES, "hello", model="nobody"))
    assert (response.status_code, error_of(response)["type"]) == (404, "not_found_error")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [*APIS, "/v1/messages/count_tokens"])
async def test_a_prompt_that_is_too_long_is_counted_in_the_words_that_agents_read(
    http: httpx.AsyncClient, path: str, stream: bool
) -> None:
    api = MESSAGES if path.startswith(MESSAGES) else path
    short = await http.post("/v1/messages/count_tokens", json=asking(MESSAGES, "1 " * 10))
    template = short.json()["input_tokens"] - 20
    response = await http.post(path, json=asking(api, "1 " * 9000, stream=stream))
    error = error_of(response)
    assert (response.status_code, error["type"]) == (400, "invalid_request_error")
    tokens = 18_000 if path == COMPLETIONS else 18_000 + template
    if api == MESSAGES:
        assert error["message"] == f"prompt is too long: {tokens} tokens > {LIMIT} maximum"
        return
    assert error["code"] == "context_length_exceeded"
    assert error["message"].startswith(
        f"This model's maximum context length is {LIMIT} tokens. However, your messages resulted in {tokens} tokens."
    )
    assert "context_length_exceeded" in error["message"], "LangChain looks for it in the exception's text"
    assert error["param"] == {CHAT: "messages", COMPLETIONS: "prompt", RESPONSES: "input"}[path]


async def test_a_prompt_that_leaves_no_room_for_an_answer_is_too_long(http: httpx.AsyncClient) -> None:
    exact = await http.post(COMPLETIONS, json=asking(COMPLETIONS, [40] * LIMIT, max_tokens=1))
    assert error_of(exact)["code"] == "context_length_exceeded"
    assert f"maximum context length is {LIMIT - 1} tokens" in error_of(exact)["message"]
    fits = await http.post(COMPLETIONS, json=asking(COMPLETIONS, [40] * (LIMIT - 1), max_tokens=100))
    assert fits.status_code == 200
    assert fits.json()["usage"]["completion_tokens"] == 1


async def test_a_text_of_more_characters_than_could_fit_is_refused_with_an_estimate(
    served: Service, http: httpx.AsyncClient
) -> None:
    longest = served.client.renderer.tokenizer.max_chars_per_token
    assert longest * LIMIT < served.middleware.settings.max_body_bytes
    response = await http.post(MESSAGES, json=asking(MESSAGES, "w" * (longest * LIMIT + 1)))
    found = re.fullmatch(r"prompt is too long: (\d+) tokens > (\d+) maximum", error_of(response)["message"])
    assert found
    assert int(found[1]) > int(found[2]) == LIMIT


async def test_a_long_text_is_tokenised_only_where_its_samples_say_that_it_may_fit(
    served: Service, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = served.client.renderer.tokenizer
    dense, sparse = "1 " * (LIMIT * 5), '": {"type": "string"}' * (LIMIT // 2)
    assert min(len(dense), len(sparse)) > LIMIT * 8
    tokenised: list[int] = []
    encode = type(tokenizer).__call__

    def counting(self: Any, text: str, *args: Any, **named: Any) -> Any:
        tokenised.append(len(text))
        return encode(self, text, *args, **named)

    monkeypatch.setattr(type(tokenizer), "__call__", counting)
    refused = await http.post(COMPLETIONS, json=asking(COMPLETIONS, dense, max_tokens=1))
    assert error_of(refused)["code"] == "context_length_exceeded"
    assert len(dense) not in tokenised
    served_whole = await http.post(COMPLETIONS, json=asking(COMPLETIONS, sparse, max_tokens=1))
    assert served_whole.status_code == 200, "twenty characters a token: the samples say that it may fit"
    assert served_whole.json()["usage"]["prompt_tokens"] == LIMIT // 2
    assert len(sparse) in tokenised


@pytest.mark.parametrize("stream", [False, True])
async def test_more_output_than_the_context_holds_is_refused_in_the_vendors_words(
    http: httpx.AsyncClient, stream: bool
) -> None:
    for path, field in ((CHAT, "max_completion_tokens"), (COMPLETIONS, "max_tokens"), (RESPONSES, "max_output_tokens")):
        response = await http.post(path, json=asking(path, "hello", stream=stream) | {field: 9000})
        error = error_of(response)
        assert (response.status_code, error["param"]) == (400, field)
        assert error["message"].startswith(f"{field} is too large: 9000. This model supports at most {LIMIT}")
    response = await http.post(MESSAGES, json=asking(MESSAGES, "hello", stream=stream) | {"max_tokens": 9000})
    assert error_of(response)["message"].startswith(f"max_tokens: 9000 > {LIMIT}, which is the maximum")


async def test_prompt_and_output_that_do_not_fit_together_are_cut_to_what_fits(http: httpx.AsyncClient) -> None:
    response = await http.post(MESSAGES, json=asking(MESSAGES, "1 " * 4050) | {"max_tokens": 8000})
    assert response.status_code == 200
    usage = response.json()["usage"]
    assert usage["input_tokens"] + usage["output_tokens"] <= LIMIT


class Refusing(FakeEngine):
    """An engine that refuses what the ingress has let through, as one of another version may."""

    def __init__(self, sink: StepSink, reason: str) -> None:
        super().__init__(FakeEngineConfig(plain_token_ids=(40, 90)), sink)
        self._reason = reason

    async def run(self, attempt: AttemptRequest) -> None:  # noqa: ARG002  # the contract's signature
        raise AttemptRefused(self._reason)


@pytest.mark.parametrize(
    ("reason", "says"),
    [
        ("the prompt has 9000 tokens; the engine holds 8192 with the answer", "9000 tokens"),
        ("not a request of this vLLM: <object at 0x7f>", "not valid"),
    ],
)
async def test_what_an_engine_refuses_is_a_400_streamed_or_not(reason: str, says: str) -> None:
    async with service({"a": lambda sink: Refusing(sink, reason)}) as running, talking_to(running) as client:
        for path in APIS:
            whole = await client.post(path, json=asking(path, "hello"))
            streamed = await client.post(path, json=asking(path, "hello", stream=True))
            assert whole.status_code == streamed.status_code == 400
            assert says in error_of(whole)["message"]
            assert error_of(whole) == error_of(streamed)


async def test_nobody_to_serve_is_overloaded_in_anthropics_words_and_503_elsewhere() -> None:
    async with service({}, deadline_s=0.1) as running, talking_to(running) as client:
        for path in APIS:
            for stream in (False, True):
                response = await client.post(path, json=asking(path, "hello", stream=stream))
                error = error_of(response)
                assert response.status_code == (529 if path == MESSAGES else 503)
                assert error["type"] == ("overloaded_error" if path == MESSAGES else "server_error")
                assert int(response.headers["retry-after"]) >= 1
                line = await running.log.lines.get()
                assert line.outcome is Outcome.NO_REPLICA


@pytest.mark.parametrize("path", APIS)
async def test_an_engine_that_fails_under_a_stream_ends_it_with_an_error_event(path: str) -> None:
    """After the first event there is no status to change: the stream says what happened, in its API's shape."""
    fault = Fault(FaultKind.CRASH, at_token=5, every=1, on_resume=True)
    config = FakeEngineConfig(plain_token_ids=(40, 90), gap_s=0.01, answer_tokens=(4000, 4000), faults=(fault,))
    engines: dict[str, EngineFactory] = {name: lambda sink: FakeEngine(config, sink) for name in ("a", "b")}
    limit = {("max_output_tokens" if path == RESPONSES else "max_tokens"): 4000}
    async with service(engines, deadline_s=1) as running, talking_to(running) as client:
        response = await client.post(path, json=asking(path, "hello", stream=True) | limit)
    assert response.status_code == 200
    events = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
    failures = [event for event in events if event.get("error") or event.get("type") == "response.failed"]
    assert len(failures) == 1
    error = failures[0].get("error") or failures[0]["response"]["error"]
    assert not FOREIGN.search(error["message"])
    if path == RESPONSES:
        assert failures[0]["response"]["status"] == "failed"
        assert error["code"] == "server_error"
    else:
        assert error["type"] == ("api_error" if path == MESSAGES else "server_error")
