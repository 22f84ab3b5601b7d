"""The endpoint on the fake engine, over real sockets: who may ask, what is refused and how, what a client sees."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator

import anthropic
import httpx
import openai
import pytest
import pytest_asyncio

from serve_app.engine.fake import FakeEngine
from serve_app.engine.fake_config import FakeEngineConfig
from serve_app.engine.replica import EngineFactory
from serve_app.protocol.errors import Outcome
from serve_app.protocol.service_class import Share
from tests.http.harness import NAME, Service, service

pytestmark = pytest.mark.asyncio(loop_scope="module")

HELLO = [{"role": "user", "content": "hello"}]
THINK_END = 1001
"""Stands in for `</think>`; read off the tokenizer by the fixture that needs the true one."""


def fake(config: FakeEngineConfig | None = None) -> EngineFactory:
    return lambda sink: FakeEngine(config or FakeEngineConfig(plain_token_ids=(40, 90)), sink)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served() -> AsyncIterator[Service]:
    async with service({"a": fake(), "b": fake()}) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(served: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with talking_to(served) as client:
        yield client


def talking_to(running: Service) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=running.url, timeout=30, trust_env=False)


async def last_line(served: Service, request_id: str):  # noqa: ANN201  # a line of the log
    while True:
        line = await asyncio.wait_for(served.log.lines.get(), 5)
        if line.context.request_id == request_id:
            return line


async def test_openai_and_anthropic_clients_get_the_same_words(served: Service) -> None:
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        whole = await client.chat.completions.create(model=NAME, messages=HELLO, max_tokens=12)
        stream = await client.chat.completions.create(model=NAME, messages=HELLO, max_tokens=12, stream=True)
        parts = [chunk.choices[0].delta async for chunk in stream]
    async with anthropic.AsyncAnthropic(base_url=served.url, api_key="none", max_retries=0) as client:
        message = await client.messages.create(model="claude-opus-4", messages=HELLO, max_tokens=12)
    said = whole.choices[0].message.reasoning
    assert said
    assert "".join(getattr(part, "reasoning", None) or "" for part in parts) == said
    assert message.content[0].thinking == said
    assert message.usage.output_tokens == whole.usage.completion_tokens == 12


@pytest.mark.parametrize(
    "path",
    ["/scale_elastic_ep", "/is_scaling_elastic_ep", "/collective_rpc", "/sleep", "/wake_up", "/start_profile", "/ping",
     "/invocations", "/metrics", "/docs", "/redoc", "/inference/v1/generate", "/v1/chat/completions/render"],
)  # fmt: skip
async def test_administration_routes_are_not_there(http: httpx.AsyncClient, path: str) -> None:
    for method in ("GET", "POST"):
        response = await http.request(method, path, json={} if method == "POST" else None)
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "unknown_url"


async def test_what_probes_and_sdks_look_at_first(http: httpx.AsyncClient) -> None:
    assert (await http.get("/health")).status_code == 200
    assert (await http.head("/")).status_code == 200
    assert (await http.get("/")).json()["model"] == NAME
    assert "version" in (await http.get("/version")).json()
    assert [model["id"] for model in (await http.get("/v1/models")).json()["data"]] == [NAME]
    assert (await http.get(f"/v1/models/{NAME}")).json()["id"] == NAME
    assert (await http.get("/v1/models/other")).json()["error"]["param"] == "model"


async def test_tokenize_and_detokenize_are_inverse(http: httpx.AsyncClient) -> None:
    tokens = (await http.post("/tokenize", json={"model": NAME, "prompt": "hello there"})).json()["tokens"]
    assert (await http.post("/detokenize", json={"model": NAME, "tokens": tokens})).json()["prompt"] == "hello there"


PNG = b"\x89PNG\r\n\x1a\n" + b"broken"


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/v1/chat/completions", {"model": NAME}, 400, "messages"),
        ("/v1/chat/completions", {"model": NAME, "messages": "hello"}, 400, "messages"),
        ("/v1/chat/completions", {"model": NAME, "messages": HELLO, "temperature": "hot"}, 400, "temperature"),
        ("/v1/chat/completions", {"model": NAME, "messages": HELLO, "n": -1}, 400, "n"),
        ("/v1/chat/completions", {"model": NAME, "messages": HELLO, "n": 10_000}, 400, "10000 sequences"),
        ("/v1/chat/completions", {"model": "nobody", "messages": HELLO}, 404, "nobody"),
        ("/v1/chat/completions", {"model": NAME, "messages": HELLO, "min_p": 0.2}, 400, "min_p"),
        ("/v1/chat/completions", {"model": NAME, "messages": HELLO, "logit_bias": {"5": 1}}, 400, "logit_bias"),
        ("/v1/completions", {"model": NAME, "prompt": "1 " * 9000}, 400, "8192"),
        ("/v1/responses", {"model": NAME}, 400, "input"),
        ("/v1/messages", {"model": NAME, "messages": HELLO}, 400, "max_tokens"),
        ("/v1/messages", {"model": "nobody", "messages": HELLO, "max_tokens": 5}, 404, "nobody"),
        ("/v1/messages/count_tokens", {"model": NAME}, 400, "messages"),
        (
            "/v1/chat/completions",
            {
                "model": NAME,
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {
                                "type": "image_url",
                                "image_url": {"url": "data:image/png;base64," + base64.b64encode(PNG).decode()},
                            }
                        ],
                    }
                ],
            },
            400,
            "image",
        ),
    ],
)
async def test_bad_input_is_named_and_never_reaches_an_engine(
    served: Service, http: httpx.AsyncClient, path: str, body: dict[str, object], status: int, says: str
) -> None:
    response = await http.post(path, json=body)
    error = response.json()
    assert response.status_code == status
    assert says in json.dumps(error)
    assert ("type" in error) is path.startswith("/v1/messages")
    line = await last_line(served, response.headers["x-request-id"])
    assert not line.context.sequences
    assert line.outcome in (Outcome.BAD_REQUEST, Outcome.NOT_FOUND)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("file:///etc/hostname", "local files"),
        ("http://127.0.0.1:9/nobody.png", "public addresses"),
        ("data:image/png;base64," + base64.b64encode(PNG[:20]).decode(), "image"),
        ("data:text/plain,hello", "base64"),
        ("gopher://nowhere", "URL"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
async def test_an_image_that_cannot_be_had_is_the_clients_to_mend(
    http: httpx.AsyncClient, path: str, address: str, says: str
) -> None:
    if path == "/v1/responses":
        part: dict[str, object] = {"type": "input_image", "image_url": address, "detail": "auto"}
        body: dict[str, object] = {"input": [{"role": "user", "content": [part]}]}
    else:
        part = {"type": "image_url", "image_url": {"url": address}}
        body = {"messages": [{"role": "user", "content": [part]}]}
    response = await http.post(path, json={"model": NAME, **body})
    assert response.status_code == 400
    assert says in response.json()["error"]["message"]
    assert response.json()["error"]["param"] == "image_url"


async def test_broken_json_and_the_wrong_content_type_are_refused(http: httpx.AsyncClient) -> None:
    for path in ("/v1/chat/completions", "/v1/messages"):
        broken = await http.post(path, content=b'{"model": ', headers={"content-type": "application/json"})
        typed = await http.post(path, content=b"{}", headers={"content-type": "text/plain"})
        for response in (broken, typed):
            assert 400 <= response.status_code < 500
            assert response.json()["error"]["message"]


async def test_a_body_over_the_limit_is_refused_declared_or_not(http: httpx.AsyncClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x" * (1 << 19)

    declared = await http.post("/v1/messages", content=b"x" * ((1 << 20) + 1))
    streamed = await http.post("/v1/chat/completions", content=chunks())
    assert (declared.status_code, declared.json()["error"]["type"]) == (413, "request_too_large")
    assert (streamed.status_code, streamed.json()["error"]["code"]) == (413, "request_too_large")


async def test_the_request_id_is_taken_or_made_and_is_the_engines(served: Service, http: httpx.AsyncClient) -> None:
    body = {"model": NAME, "messages": HELLO, "max_tokens": 2}
    given = await http.post("/v1/chat/completions", json=body, headers={"x-request-id": "mine-42"})
    assert given.headers.get_list("x-request-id") == ["mine-42"]
    assert given.json()["id"] == "chatcmpl-mine-42"
    spaced = await http.post("/v1/chat/completions", json=body, headers={"x-request-id": "my job 7"})
    assert spaced.headers.get_list("x-request-id") == ["my job 7"]
    assert spaced.json()["id"] == "chatcmpl-my job 7"
    made = await http.post("/v1/chat/completions", json=body)
    assert made.headers["x-request-id"] in made.json()["id"]
    line = await last_line(served, "mine-42")
    assert line.context.sequences[0].output_tokens == 2
    assert line.context.sequences[0].replicas
    assert line.outcome is Outcome.OK


@pytest.mark.parametrize(
    ("path", "given", "told"),
    [
        ("/v1/chat/completions", {"reasoning_effort": "max"}, "high"),
        ("/v1/chat/completions", {"reasoning_effort": "minimal"}, "low"),
        ("/v1/chat/completions", {}, "medium"),
        ("/v1/messages", {"output_config": {"effort": "max"}}, "high"),
    ],
)
async def test_efforts_the_model_does_not_know_become_the_nearest(
    http: httpx.AsyncClient, path: str, given: dict[str, object], told: str
) -> None:
    """The effort shows in the prompt's length: it is asked for by the same prompt with the effort it should become."""
    body = {"model": NAME, "messages": HELLO, "max_tokens": 1}
    used = (await http.post(path, json=body | given)).json()["usage"]
    meant = (await http.post("/v1/chat/completions", json=body | {"reasoning_effort": told})).json()["usage"]
    assert used.get("prompt_tokens", used.get("input_tokens")) == meant["prompt_tokens"]


class OneKey:
    def name_of(self, presented: str) -> str | None:
        return "team-a" if presented == "sk-good" else None

    def share_of(self, name: str) -> Share:  # noqa: ARG002  # all alike
        return Share()


async def test_keys_work_as_bearer_and_as_x_api_key_and_nothing_else_does() -> None:
    async with service({"a": fake()}, keys=OneKey()) as running, talking_to(running) as client:
        for headers in ({"authorization": "Bearer sk-good"}, {"x-api-key": "sk-good"}):
            assert (await client.get("/v1/models", headers=headers)).status_code == 200
        for path in ("/v1/chat/completions", "/v1/messages", "/tokenize"):
            for headers in ({}, {"authorization": "Bearer sk-bad"}, {"x-api-key": "sk-bad"}):
                response = await client.post(path, json={}, headers=headers)
                assert response.status_code == 401
                assert "sk-bad" not in response.text
        anthropic_error = (await client.post("/v1/messages", json={})).json()
        assert anthropic_error["error"]["type"] == "authentication_error"
        assert (await client.get("/health")).status_code == 200
        asks = {"origin": "https://somewhere", "access-control-request-method": "POST"}
        assert (await client.options("/v1/chat/completions", headers=asks)).status_code != 401


class TwoKeys:
    def name_of(self, presented: str) -> str | None:
        return {"sk-a": "team-a", "sk-b": "team-b"}.get(presented)

    def share_of(self, name: str) -> Share:  # noqa: ARG002  # all alike
        return Share()


@pytest.mark.parametrize(
    ("path", "headers", "fields", "source"),
    [
        ("/v1/messages", {"x-claude-code-session-id": "one"}, {"messages": HELLO}, "x-claude-code-session-id"),
        ("/v1/responses", {}, {"input": "hello", "prompt_cache_key": "one"}, "prompt_cache_key"),
        ("/v1/completions", {}, {"prompt": "hello", "session_id": "one"}, "session_id"),
        ("/v1/chat/completions", {"x-session-affinity": "one"}, {"messages": HELLO}, "x-session-affinity"),
    ],
)
async def test_a_session_is_found_and_is_not_shared_by_two_keys(
    path: str, headers: dict[str, str], fields: dict[str, object], source: str
) -> None:
    body = {"model": NAME, "max_output_tokens" if path == "/v1/responses" else "max_tokens": 2} | fields
    async with service({"a": fake()}, keys=TwoKeys()) as running, talking_to(running) as client:
        found = []
        for key in ("sk-a", "sk-b", "sk-a"):
            answer = await client.post(path, json=body, headers=headers | {"x-api-key": key})
            assert answer.status_code == 200
            found.append((await last_line(running, answer.headers["x-request-id"])).context)
    assert {(one.session.name, one.session.source) for one in found} == {("one", source)}
    first, other, again = (one.session_id for one in found)
    assert first == again != other


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_frees_the_slot(stream: bool) -> None:  # a parameter of the test
    engines: list[FakeEngine] = []

    def slow(sink):  # noqa: ANN001, ANN202  # an EngineFactory
        engines.append(
            FakeEngine(FakeEngineConfig(plain_token_ids=(40, 90), gap_s=0.01, answer_tokens=(9000, 9000)), sink)
        )
        return engines[0]

    body = {"model": NAME, "messages": HELLO, "max_tokens": 4000, "stream": stream}
    async with service({"a": slow}) as running, talking_to(running) as client:
        task = asyncio.create_task(client.post("/v1/chat/completions", json=body))
        await asyncio.wait_for(engines[0].first_token_sent.wait(), 5)
        task.cancel()
        await asyncio.wait({task})
        await asyncio.wait_for(engines[0].aborted.wait(), 1)
        assert engines[0].stats().unfinished == 0
        line = await asyncio.wait_for(running.log.lines.get(), 5)
        assert line.outcome is Outcome.CANCELLED


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/chat/completions", {"messages": HELLO, "max_tokens": 4000}),
        ("/v1/completions", {"prompt": "hello", "max_tokens": 4000}),
        ("/v1/messages", {"messages": HELLO, "max_tokens": 4000}),
        ("/v1/responses", {"input": "hello", "max_output_tokens": 4000}),
    ],
)
async def test_a_request_that_serve_cancels_stops_in_the_engine(path: str, asked: dict[str, object]) -> None:
    """Ray Serve cancels the ASGI app when a client leaves; vLLM's handlers expect to be told of a disconnect."""
    engines: list[FakeEngine] = []

    def endless(sink):  # noqa: ANN001, ANN202  # an EngineFactory
        engines.append(
            FakeEngine(FakeEngineConfig(plain_token_ids=(40, 90), gap_s=0.01, answer_tokens=(9000, 9000)), sink)
        )
        return engines[0]

    body = json.dumps({"model": NAME} | asked).encode()
    requests = [{"type": "http.request", "body": body, "more_body": False}]
    never = asyncio.Event()

    async def receive() -> dict[str, object]:
        if not requests:
            await never.wait()
        return requests.pop()

    async def send(_message: object) -> None:
        pass

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b"", "root_path": ""}
    async with service({"a": endless}) as running:
        task = asyncio.create_task(running.middleware(scope, receive, send))
        await asyncio.wait_for(engines[0].first_token_sent.wait(), 5)
        task.cancel()
        await asyncio.wait_for(engines[0].aborted.wait(), 1)
        await asyncio.wait({task})
        line = await asyncio.wait_for(running.log.lines.get(), 5)
    assert line.outcome is Outcome.CANCELLED


async def test_a_full_house_says_429_and_when_to_come_back() -> None:
    engines: list[FakeEngine] = []

    def narrow(sink):  # noqa: ANN001, ANN202  # an EngineFactory
        config = FakeEngineConfig(plain_token_ids=(40, 90), gap_s=0.01, answer_tokens=(9000, 9000), max_num_seqs=1)
        engines.append(FakeEngine(config, sink))
        return engines[0]

    async with service({"a": narrow}, max_queued_requests=0) as running, talking_to(running) as client:
        body = {"model": NAME, "messages": HELLO, "max_tokens": 4000, "stream": True}
        first = asyncio.create_task(client.post("/v1/chat/completions", json=body))
        await asyncio.wait_for(engines[0].first_token_sent.wait(), 5)
        for path, kind in (("/v1/chat/completions", None), ("/v1/messages", "rate_limit_error")):
            response = await client.post(path, json=body)
            assert response.status_code == 429
            assert int(response.headers["retry-after"]) >= 1
            assert kind is None or response.json()["error"]["type"] == kind
        first.cancel()
        await asyncio.wait({first})


async def test_nobody_to_serve_is_a_real_503_before_the_first_byte() -> None:
    async with service({}, deadline_s=0.1) as running, talking_to(running) as client:
        body = {"model": NAME, "messages": HELLO, "max_tokens": 4}
        for stream in (True, False):
            response = await client.post("/v1/chat/completions", json=body | {"stream": stream})
            assert response.status_code == 503
            assert "retry-after" in response.headers
        assert (await client.get("/health")).status_code == 503


async def test_a_fleet_that_sleeps_takes_requests_and_says_what_they_wait_for() -> None:
    async with service({}, deadline_s=0.5, keep_alive_s=0.1, may_sleep=True) as running, talking_to(running) as client:
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/v1/models")).status_code == 200
        assert (await client.get("/")).json()["engines"].startswith("asleep: the next request starts an engine")
        assert (await client.get("/status/fleet")).json()["state"] == "asleep"
        body = {"model": NAME, "messages": HELLO, "max_tokens": 4}
        answer = await client.post("/v1/chat/completions", json=body | {"stream": True})
        assert answer.text.startswith(
            ": keep-alive, starting: an engine should be up (after a time that is not known yet)\n\n"
        )
        assert "No replica of the model is available" in answer.text
        whole = await client.post("/v1/messages", json=body)
        assert whole.status_code in {503, 529}
        assert running.transport.wakes == 2


async def test_a_stream_that_waits_is_kept_alive_and_starts_with_its_first_token() -> None:
    patient = fake(FakeEngineConfig(plain_token_ids=(40, 90), first_token_s=0.6))
    async with service({"a": patient}, keep_alive_s=0.1) as running, talking_to(running) as client:
        body = {"model": NAME, "messages": HELLO, "max_tokens": 2, "stream": True}
        openai_text = (await client.post("/v1/chat/completions", json=body)).text
        anthropic_text = (await client.post("/v1/messages", json=body)).text
        count = (await client.post("/v1/messages/count_tokens", json={"model": NAME, "messages": HELLO})).json()
    assert openai_text.startswith(": keep-alive\n\n: keep-alive")
    assert openai_text.rstrip().endswith("data: [DONE]")
    events = anthropic_text.split("\n\n")
    assert events[0].startswith("event: message_start")
    start = json.loads(events[0].split("data: ")[1])["message"]
    assert start["usage"]["input_tokens"] == count["input_tokens"]
    assert events[1] == 'event: ping\ndata: {"type": "ping"}'
    assert anthropic_text.count("event: message_start") == 1
    assert "event: message_stop" in anthropic_text


async def test_a_stream_in_a_queue_is_told_how_long_that_is() -> None:
    busy = fake(FakeEngineConfig(plain_token_ids=(40, 90), answer_tokens=(12, 12), max_num_seqs=1, gap_s=0.1))
    async with service({"a": busy}, keep_alive_s=0.1) as running, talking_to(running) as client:
        body = {"model": NAME, "messages": HELLO, "max_tokens": 12, "stream": True}
        asked = [client.post("/v1/chat/completions", json=body) for _ in range(3)]
        texts = [answer.text for answer in await asyncio.gather(*asked)]
    lines = {line for text in texts for line in text.split("\n\n") if "this engine" in line}
    told = {line.removeprefix(": keep-alive, ") for line in lines}
    for words in ("2 requests wait", "1 request waits"):
        assert any(one.startswith(f"{words} at this engine") for one in told), told
    for text in texts:
        assert text.rstrip().endswith("data: [DONE]")
        answer = text[text.index("data: ") :]
        assert "this engine" not in answer, "nothing of it once there are tokens"


async def test_nothing_is_counted_for_a_metrics_page_that_is_not_served(
    served: Service, http: httpx.AsyncClient
) -> None:
    assert (await http.get("/health")).status_code == 200  # the first request builds what it goes through
    layer = getattr(served.middleware.app, "middleware_stack")  # noqa: B009  # `App` may be any callable
    modules = []
    while layer is not None:
        modules.append(type(layer).__module__)
        layer = getattr(layer, "app", None)
    assert len(modules) > 3
    assert not [module for module in modules if module.startswith("prometheus")]
