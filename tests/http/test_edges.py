"""The edges of HTTP as SDKs, browsers and people with curl meet them: paths, methods, encodings, headers, lists."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import anthropic
import httpx
import openai
import pytest
import pytest_asyncio

from serve_app.engine.fake import FakeEngine
from serve_app.engine.fake_config import FakeEngineConfig
from serve_app.protocol.service_class import Share
from tests.http.harness import NAME, Service, service

pytestmark = pytest.mark.asyncio(loop_scope="module")

HELLO = [{"role": "user", "content": "hello"}]
CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": NAME, "messages": HELLO, "max_tokens": 2}
JSON = {"content-type": "application/json"}
PAGE = "https://app.example"


class OneKey:
    def name_of(self, presented: str) -> str | None:
        return "team-a" if presented == "sk-good" else None

    def share_of(self, name: str) -> Share:  # noqa: ARG002  # all alike
        return Share()


KEY = {"authorization": "Bearer sk-good"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served() -> AsyncIterator[Service]:
    config = FakeEngineConfig(plain_token_ids=(40, 90))
    origins = (PAGE, "http://localhost:*")
    async with service({"a": lambda sink: FakeEngine(config, sink)}, keys=OneKey(), allowed_origins=origins) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(served: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=served.url, timeout=30, trust_env=False, headers=KEY) as client:
        yield client


async def raw(served: Service, request: bytes) -> bytes:
    """What the server sends back for these bytes until it closes the connection."""
    address = urlsplit(served.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(request)
    await writer.drain()
    answer = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    await writer.wait_closed()
    return answer


async def test_a_model_is_found_by_its_name_and_by_any_alias(served: Service, http: httpx.AsyncClient) -> None:
    for name in (NAME, "claude-opus-4-1", "gpt-4o"):
        assert (await http.get(f"/v1/models/{name}")).json()["id"] == NAME
    assert (await http.get("/v1/models/gpt-5")).status_code == 404
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="sk-good", max_retries=0) as client:
        assert (await client.models.retrieve("gpt-4o")).id == NAME
        assert [model.id async for model in await client.models.list()] == [NAME]
        with pytest.raises(openai.NotFoundError) as caught:
            await client.models.retrieve("nobody")
        assert caught.value.code == "model_not_found"
    async with anthropic.AsyncAnthropic(base_url=served.url, api_key="sk-good", max_retries=0) as client:
        model = await client.models.retrieve("claude-opus-4-1")
        assert (model.id, model.type, model.display_name) == (NAME, "model", NAME)
        assert model.created_at.year >= 2025
        assert [model.id async for model in await client.models.list()] == [NAME]
        with pytest.raises(anthropic.NotFoundError) as refused:
            await client.models.retrieve("nobody")
        assert refused.value.body["error"]["type"] == "not_found_error"


async def test_the_model_list_has_the_shape_of_the_api_that_asks(http: httpx.AsyncClient) -> None:
    first, second = [(await http.get("/v1/models")).json() for _ in range(2)]
    assert first["data"][0]["created"] == second["data"][0]["created"]
    assert "/" not in first["data"][0]["root"]
    listed = (await http.get("/v1/models", headers={"anthropic-version": "2023-06-01"})).json()
    assert listed.keys() == {"data", "has_more", "first_id", "last_id"}
    assert listed["data"][0].keys() == {"type", "id", "display_name", "created_at"}
    assert (listed["has_more"], listed["first_id"], listed["last_id"]) == (False, NAME, NAME)


@pytest.mark.parametrize("path", ["/v1/models/", "//v1/models", "/v1//models", "/v1/models//", "/v1%2Fmodels"])
async def test_slashes_too_many_are_not_minded(served: Service, path: str) -> None:
    answer = await raw(
        served, f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer sk-good\r\n\r\n".encode()
    )
    assert answer.startswith(b"HTTP/1.1 200")


async def test_slashes_and_query_strings_work_with_a_body_too(http: httpx.AsyncClient, served: Service) -> None:
    for path in ("/v1/messages?beta=true", "/v1/messages/?beta=true", "/v1/chat/completions/"):
        response = await http.post(path, json=BODY, headers={"anthropic-beta": "x-1,y-2"})
        assert response.status_code == 200
    assert (await http.post(f"{served.url}//v1/chat/completions", json=BODY)).status_code == 200
    assert (await http.post("/v1/v1/chat/completions", json=BODY)).status_code == 404


async def test_head_is_a_get_without_its_body(http: httpx.AsyncClient) -> None:
    for path in ("/", "/health", "/version", "/v1/models", f"/v1/models/{NAME}", "/openapi.json"):
        response = await http.head(path)
        assert (response.status_code, response.content) == (200, b"")
    missing = await http.head("/v1/models/nobody")
    assert (missing.status_code, missing.content) == (404, b"")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", CHAT, "OPTIONS, POST"),
        ("HEAD", "/v1/messages", "OPTIONS, POST"),
        ("PUT", "/v1/messages", "OPTIONS, POST"),
        ("POST", "/v1/models", "GET, HEAD, OPTIONS"),
        ("DELETE", "/v1/models/x", "GET, HEAD, OPTIONS"),
        ("TRACE", "/", "GET, HEAD, OPTIONS"),
    ],
)
async def test_another_method_is_405_and_says_which_there_are(
    http: httpx.AsyncClient, method: str, path: str, allow: str
) -> None:
    response = await http.request(method, path)
    assert (response.status_code, response.headers["allow"]) == (405, allow)
    if method != "HEAD":
        error = response.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert ("code" in error) is not path.startswith("/v1/messages")
    options = await http.request("OPTIONS", path)
    assert (options.status_code, options.headers["allow"]) == (204, allow)


async def test_request_ids_come_back_where_each_sdk_looks(served: Service, http: httpx.AsyncClient) -> None:
    asked = {"x-request-id": "mine-7"}
    message = await http.post("/v1/messages", json=BODY, headers=asked)
    assert (message.headers["request-id"], message.headers["x-request-id"]) == ("mine-7", "mine-7")
    for path, status in (("/v1/messages", 400), ("/v1/messages/nothing", 404)):
        response = await http.post(path, json={}, headers=asked)
        assert response.status_code == status
        assert response.json()["request_id"] == response.headers["request-id"] == "mine-7"
    chat = await http.post(CHAT, json={})
    assert chat.headers["x-request-id"]
    assert "request-id" not in chat.headers
    async with anthropic.AsyncAnthropic(base_url=served.url, api_key="sk-good", max_retries=0) as client:
        answer = await client.messages.create(model=NAME, messages=HELLO, max_tokens=2)
        assert answer._request_id


async def test_a_browser_may_call_from_the_origins_of_the_configuration(http: httpx.AsyncClient) -> None:
    async with httpx.AsyncClient(base_url=http.base_url, timeout=30, trust_env=False) as browser:  # without a key
        for origin in (PAGE, "http://localhost:3000"):
            asks = {
                "origin": origin,
                "access-control-request-method": "POST",
                "access-control-request-headers": "authorization,content-type,x-stainless-os",
            }
            preflight = await browser.options(CHAT, headers=asks)
            assert preflight.status_code == 204
            assert preflight.headers["access-control-allow-origin"] == origin
            assert "POST" in preflight.headers["access-control-allow-methods"]
            assert "x-stainless-os" in preflight.headers["access-control-allow-headers"]
            for headers, status in (({}, 401), (KEY, 400)):
                answer = await browser.post(CHAT, json={}, headers={"origin": origin, **headers})
                assert answer.status_code == status
                assert answer.headers["access-control-allow-origin"] == origin
                exposed = answer.headers["access-control-expose-headers"].split(", ")
                assert {"retry-after", "x-request-id", "x-ratelimit-remaining-tokens"} <= set(exposed)
                assert "anthropic-ratelimit-requests-reset" in exposed
                assert answer.headers["vary"] == "Origin"
        streamed = await browser.post(CHAT, json=BODY | {"stream": True}, headers={"origin": PAGE, **KEY})
        assert streamed.headers["access-control-allow-origin"] == PAGE


@pytest.mark.parametrize(
    "origin", ["https://elsewhere.example", "https://app.example.evil", "null", "http://localhost.evil:1"]
)
async def test_a_browser_may_not_call_from_elsewhere(http: httpx.AsyncClient, origin: str) -> None:
    preflight = await http.options(CHAT, headers={"origin": origin, "access-control-request-method": "POST"})
    assert preflight.status_code == 403
    assert "ingress.allowed_origins" in preflight.json()["error"]["message"]
    answer = await http.post(CHAT, json=BODY, headers={"origin": origin})
    assert "access-control-allow-origin" not in answer.headers


async def test_compressed_bodies_are_unpacked(http: httpx.AsyncClient) -> None:
    plain = json.dumps(BODY).encode()
    squeeze = zlib.compressobj(wbits=-15)
    for encoding, body in (
        ("gzip", gzip.compress(plain, mtime=0)),
        ("x-gzip", gzip.compress(plain, mtime=0)),
        ("deflate", zlib.compress(plain)),
        ("deflate", squeeze.compress(plain) + squeeze.flush()),
        ("identity", plain),
        ("GZIP", gzip.compress(plain, mtime=0)),
    ):
        response = await http.post(CHAT, content=body, headers={**JSON, "content-encoding": encoding})
        assert response.status_code == 200, encoding


async def test_a_compressed_body_is_no_way_around_the_size_limit(http: httpx.AsyncClient) -> None:
    bomb = gzip.compress(b" " * (64 << 20), mtime=0)
    assert len(bomb) < 1 << 17
    response = await http.post(CHAT, content=bomb, headers={**JSON, "content-encoding": "gzip"})
    assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")


@pytest.mark.parametrize(
    ("encoding", "body", "status"),
    [
        ("br", b"x", 415),
        ("zstd", b"x", 415),
        ("gzip, gzip", b"x", 415),
        ("gzip", b"not gzip", 400),
        ("gzip", gzip.compress(b"{}" * 100, mtime=0)[:20], 400),
        ("deflate", b"not deflate", 400),
    ],
)
async def test_what_cannot_be_unpacked_is_refused_with_what_can(
    http: httpx.AsyncClient, encoding: str, body: bytes, status: int
) -> None:
    response = await http.post(CHAT, content=body, headers={**JSON, "content-encoding": encoding})
    assert response.status_code == status
    assert response.json()["error"]["type"] == "invalid_request_error"
    if status == 415:
        assert response.headers["accept-encoding"] == "gzip, deflate"
        assert "gzip" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        (None, 200),
        ("application/json", 200),
        ("application/json; charset=utf-8", 200),
        ("Application/JSON;charset=UTF-8", 200),
        ("application/vnd.api+json", 200),
        ("application/x-www-form-urlencoded", 200),
        ("text/plain", 415),
        ("multipart/form-data; boundary=x", 415),
        ("application/json; charset=nonsense", 415),
    ],
)
async def test_json_is_read_whatever_curl_calls_it(
    http: httpx.AsyncClient, content_type: str | None, status: int
) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    for path in (CHAT, "/v1/messages"):
        response = await http.post(path, content=json.dumps(BODY).encode(), headers=headers)
        assert response.status_code == status


async def test_a_browser_cannot_send_json_as_a_form(http: httpx.AsyncClient) -> None:
    """A form needs no preflight: any page could have it sent to an endpoint without keys."""
    for headers in ({}, {"content-type": "application/x-www-form-urlencoded"}):
        response = await http.post(CHAT, content=json.dumps(BODY).encode(), headers={"origin": PAGE, **headers})
        assert response.status_code == 415


async def test_a_body_in_another_charset_is_read_as_what_it_is(http: httpx.AsyncClient) -> None:
    text = json.dumps({"model": NAME, "prompt": "Zürich"}, ensure_ascii=False)
    latin = await http.post(
        "/tokenize", content=text.encode("latin-1"), headers={"content-type": "application/json; charset=latin-1"}
    )
    plain = await http.post("/tokenize", content=text.encode(), headers=JSON)
    assert latin.json()["tokens"] == plain.json()["tokens"]


async def test_expect_100_continue_and_http_1_0_are_understood(served: Service) -> None:
    body = json.dumps(BODY).encode()
    head = "host: x\r\nauthorization: Bearer sk-good\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(body)}\r\n"
    expecting = f"POST {CHAT} HTTP/1.1\r\n{head}connection: close\r\nexpect: 100-continue\r\n\r\n".encode()
    answer = await raw(served, expecting + body)
    assert answer.startswith(b"HTTP/1.1 100")
    assert b"HTTP/1.1 200" in answer
    old = await raw(served, f"POST {CHAT} HTTP/1.0\r\n{head}\r\n".encode() + body)
    assert b" 200 " in old.split(b"\r\n")[0]


async def test_the_description_has_every_served_route_and_no_other(http: httpx.AsyncClient) -> None:
    async with httpx.AsyncClient(base_url=http.base_url, trust_env=False) as anybody:  # without a key
        described = (await anybody.get("/openapi.json")).json()
    assert set(described["paths"]) == {
        "/", "/health", "/version", "/v1/models", "/v1/models/{model_id}", CHAT, "/v1/completions", "/v1/responses",
        "/v1/responses/{response_id}", "/v1/responses/{response_id}/cancel", "/v1/messages",
        "/v1/messages/count_tokens", "/tokenize", "/detokenize", "/status/fleet", "/status/requests",
        "/status/requests/{request_id}",
    }  # fmt: skip
    chat = described["paths"][CHAT]["post"]["responses"]
    assert chat["429"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/OpenAIError"}
    assert "529" in described["paths"]["/v1/messages"]["post"]["responses"]
    assert "HTTPValidationError" not in json.dumps(described["paths"])
