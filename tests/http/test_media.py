"""Images by URL: private addresses are not asked, however they are written and wherever the URL leads."""

from __future__ import annotations

import io
import ipaddress
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import pytest_asyncio
from aiohttp import web
from PIL import Image
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY

from serve_app.engine.fake import FakeEngine, FakeEngineConfig
from serve_app.ingress import media
from serve_app.ingress.media import MAX_BYTES, REFUSED, is_public
from tests.http.harness import NAME, service

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass
class ImageServer:
    """Serves an image, redirects, and too much, on a port of the loopback; counts who asks."""

    port: int = 0
    asked: list[str] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        if request.path == "/image":
            return web.Response(body=png(), content_type="image/png")
        if request.path == "/to-loopback":
            raise web.HTTPFound(f"http://127.0.0.1:{self.port}/image")
        if request.path == "/around":
            raise web.HTTPFound(f"http://localhost:{self.port}/around")
        if request.path == "/large":
            return web.Response(body=b"x", headers={"content-length": str(MAX_BYTES + 1)})
        if request.path == "/endless":
            stream = web.StreamResponse()
            await stream.prepare(request)
            while True:
                await stream.write(bytes(1 << 20))
        raise web.HTTPNotFound


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (60, 40), "red").save(buffer, "PNG")
    return buffer.getvalue()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def images() -> AsyncIterator[ImageServer]:
    server = ImageServer()
    app = web.Application()
    app.router.add_get("/{tail:.*}", server.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.port = runner.addresses[0][1]
    yield server
    await runner.cleanup()


@asynccontextmanager
async def asking(*allowed: str) -> AsyncIterator[httpx.AsyncClient]:
    config = FakeEngineConfig(plain_token_ids=(40, 90))
    async with (
        service({"a": lambda sink: FakeEngine(config, sink)}, allowed_media_hosts=allowed) as running,
        httpx.AsyncClient(base_url=running.url, timeout=60, trust_env=False) as client,
    ):
        yield client


def requests(url: str) -> dict[str, dict[str, Any]]:
    """A request with the image for each place that takes one."""
    chat = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}
    source = {"type": "image", "source": {"type": "url", "url": url}}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [source]}
    use = {"type": "tool_use", "id": "t1", "name": "look", "input": {}}
    item = {"role": "user", "content": [{"type": "input_image", "image_url": url, "detail": "auto"}]}
    return {
        "/v1/chat/completions": {"messages": [chat], "max_tokens": 3},
        "/v1/responses": {"input": [item], "max_output_tokens": 3},
        "/v1/messages": {"messages": [{"role": "user", "content": [source]}], "max_tokens": 3},
        "/v1/messages?tool_result": {
            "messages": [
                {"role": "user", "content": "look"},
                {"role": "assistant", "content": [use]},
                {"role": "user", "content": [result]},
            ],
            "max_tokens": 3,
        },
    }


async def ask(http: httpx.AsyncClient, path: str, url: str, *, stream: bool = False) -> httpx.Response:
    return await http.post(path, json={"model": NAME, "stream": stream, **requests(url)[path]})


PRIVATE_HOSTS = [
    "127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0.0.0.0", "[::1]",
    "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]",
]  # fmt: skip
"""Ways to write the loopback address: in each of them the test's server would be found."""


async def test_a_private_address_is_refused_however_it_is_written(images: ImageServer) -> None:
    before = list(images.asked)
    async with asking() as http:
        for host in [*PRIVATE_HOSTS, "10.0.0.1", "169.254.169.254", "100.64.0.1", "224.0.0.1", "[fd00::1]"]:
            response = await ask(http, "/v1/chat/completions", f"http://{host}:{images.port}/image")
            assert response.status_code == 400, host
            assert REFUSED in response.json()["error"]["message"], host
        closed, listening = [
            (await ask(http, "/v1/chat/completions", f"http://127.0.0.1:{port}/image")).text.replace(
                f":{port}/", ":PORT/"
            )
            for port in ("1", images.port)
        ]
        assert closed == listening, "open and closed ports look the same"
    assert images.asked == before, "it was never asked"


@pytest.mark.parametrize("path", list(requests("")))
@pytest.mark.parametrize("stream", [False, True])
async def test_every_api_refuses_it(images: ImageServer, path: str, stream: bool) -> None:
    async with asking() as http:
        response = await ask(http, path, f"http://127.0.0.1:{images.port}/image", stream=stream)
        assert response.status_code == 400
        assert REFUSED in response.json()["error"]["message"]
        local = await ask(http, path, "file:///etc/hostname", stream=stream)
        assert local.status_code == 400


async def test_an_allowed_host_is_asked_but_not_where_it_redirects_to(images: ImageServer) -> None:
    url = f"http://localhost:{images.port}"
    async with asking("LOCALHOST") as http:
        for path in requests(""):
            assert (await ask(http, path, f"{url}/image")).status_code == 200
        redirected = await ask(http, "/v1/chat/completions", f"{url}/to-loopback")
        assert (redirected.status_code, REFUSED in redirected.text) == (400, True)
        for where, says in (("around", "redirected"), ("large", "64 MiB"), ("endless", "64 MiB"), ("none", "404")):
            response = await ask(http, "/v1/chat/completions", f"{url}/{where}")
            assert response.status_code == 400
            assert says in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True), ("2606:4700::1111", True), ("10.1.2.3", False), ("172.16.0.1", False),
        ("192.168.1.1", False), ("127.0.0.9", False), ("169.254.169.254", False), ("100.64.0.1", False),
        ("0.0.0.0", False), ("224.0.1.1", False), ("239.1.1.1", False), ("240.0.0.1", False),
        ("255.255.255.255", False), ("::1", False), ("::", False), ("fe80::1", False), ("fc00::1", False),
        ("fec0::1", False), ("ff0e::1", False), ("::ffff:10.0.0.1", False), ("::ffff:8.8.8.8", True),
        ("64:ff9b::a00:1", False), ("64:ff9b::808:808", True), ("2002:7f00:1::", False),
    ],
)  # fmt: skip
async def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public


async def test_an_unknown_host_is_refused_in_the_same_words() -> None:
    async with asking() as http:
        response = await ask(http, "/v1/chat/completions", "http://no-such-host.invalid/image.png")
    assert response.status_code == 400
    assert REFUSED in response.json()["error"]["message"]


async def test_other_processes_are_not_sent_to_look_for_our_connector(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name in the environment would reach engines and whatever else is started here, which do not have it."""
    monkeypatch.delenv("VLLM_MEDIA_CONNECTOR", raising=False)
    before = dict(os.environ)
    media.use()
    assert dict(os.environ) == before
    connector = MEDIA_CONNECTOR_REGISTRY.load("http", media_io_kwargs=None)
    assert isinstance(connector, media.RefusingConnector)
