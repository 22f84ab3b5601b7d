"""The mock server keeps its times, counts its own lateness, and fails in each way that it is configured to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from time import perf_counter

import pytest

from loadtest.mock.answers import MockConfig, MockRequest
from loadtest.mock.server import MockServer

StartMock = Callable[..., Awaitable[MockServer]]
CHAT = "/v1/chat/completions"


@dataclass
class Client:
    """One connection that sends requests in turn."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, path: str, body: object = None, **headers: str) -> None:
        data = json.dumps(body).encode() if body is not None else b""
        lines = [f"{'POST' if data else 'GET'} {path} HTTP/1.1", "Host: mock", f"Content-Length: {len(data)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + data)

    async def reply(self) -> tuple[int, str, bytes]:
        """Status, head and body of the next response; of a cut one, what arrived."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        status = int(head.split(" ")[1])
        if "chunked" not in head:
            length = int(head.lower().partition("content-length: ")[2].partition("\r\n")[0])
            return status, head, await self.reader.readexactly(length)
        body = b""
        try:
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                body += (await self.reader.readexactly(size + 2))[:-2]
            await self.reader.readexactly(2)
        except asyncio.IncompleteReadError:
            body += b"<cut>"
        return status, head, body

    async def ask(self, path: str, body: object = None, **headers: str) -> tuple[int, str, bytes]:
        await self.send(path, body, **headers)
        return await self.reply()


Connect = Callable[[MockServer], Awaitable[Client]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Opens connections, and closes them at the end."""
    async with AsyncExitStack() as stack:

        async def open_one(server: MockServer) -> Client:
            host, port = server.url.removeprefix("http://").split(":")
            client = Client(*await asyncio.open_connection(host, int(port)))
            stack.callback(client.writer.close)
            return client

        yield open_one


def request(tokens: int = 4, **fields: object) -> dict[str, object]:
    return {"model": "mock", "messages": [{"role": "user", "content": "hi"}], "max_tokens": tokens, **fields}


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition of the server, which runs on this loop."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # the server sets no event
            await asyncio.sleep(0)


def events(body: bytes) -> list[str]:
    return [line.removeprefix("data: ") for line in body.decode().split("\n") if line.startswith("data: ")]


async def test_chunks_come_at_their_times_and_lateness_is_counted(start_mock: StartMock, connect: Connect) -> None:
    server = await start_mock(MockConfig(first_s=0.04, gap_s=0.01))
    client = await connect(server)
    begin_s = perf_counter()
    await client.send(CHAT, request(4))
    await client.reader.readuntil(b"data: ")
    first_s = perf_counter() - begin_s
    await client.reader.readuntil(b"[DONE]")
    last_s = perf_counter() - begin_s
    assert first_s >= 0.04
    assert last_s >= 0.04 + 3 * 0.01
    await client.reader.readuntil(b"0\r\n\r\n")
    figures = json.loads((await client.ask("/mock/lateness"))[2])
    assert (figures["first_count"], figures["chunk_count"]) == (1, 3)
    assert -1 < figures["first_mean_ms"] <= (first_s - 0.04) * 1e3 + 0.01
    assert figures["first_p99_ms"] == pytest.approx(figures["first_mean_ms"])
    assert json.loads((await client.ask("/mock/lateness"))[2])["chunk_count"] == 0, "reading resets it"


@pytest.mark.parametrize(
    ("path", "usage", "end"),
    [
        (CHAT, '"completion_tokens":5', "[DONE]"),
        ("/v1/completions", '"completion_tokens":5', "[DONE]"),
        ("/v1/messages", '"output_tokens":5', '"message_stop"'),
    ],
)
async def test_each_api_streams_the_requested_tokens(
    start_mock: StartMock, connect: Connect, path: str, usage: str, end: str
) -> None:
    server = await start_mock(MockConfig(first_s=0.001, gap_s=0.001, tokens_per_chunk=2))
    status, _, body = await (await connect(server)).ask(path, request(5))
    text = body.decode()
    assert status == 200
    assert text.count(" word") == 5
    assert len([event for event in events(body) if " word" in event]) == 3, "2, 2 and 1"
    assert usage in text
    assert end in events(body)[-1]


async def test_reasoning_comes_first_and_cached_tokens_are_reported(start_mock: StartMock, connect: Connect) -> None:
    server = await start_mock(MockConfig(first_s=0.001, gap_s=0.001, reasoning_chunks=2, cached_tokens=7))
    body = (await (await connect(server)).ask(CHAT, request(3)))[2]
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events(body)[1:4]]
    assert [list(delta) for delta in deltas] == [["reasoning"], ["reasoning"], ["content"]]
    assert json.loads(events(body)[-2])["usage"]["prompt_tokens_details"] == {"cached_tokens": 7}


@pytest.mark.parametrize(
    ("fault", "status", "header", "content"),
    [
        ("full", 429, "retry-after: 7", "mock full"),
        ("unavailable", 503, "retry-after: 2", "mock unavailable"),
        ("error", 500, "", "mock error"),
        ("event", 200, "", "engine died"),
        ("cut", 200, "", "<cut>"),
        ("garbage", 200, "", "{not json}"),
        ("short", 200, "", '"completion_tokens":3'),
    ],
)
async def test_every_nth_request_gets_the_fault(
    start_mock: StartMock, connect: Connect, fault: str, status: int, header: str, content: str
) -> None:
    server = await start_mock(MockConfig(first_s=0.001, gap_s=0.001, fail_every=2, fault=fault))
    client = await connect(server)
    good = await client.ask(CHAT, request(6))
    assert good[0] == 200 and good[2].decode().count(" word") == 6
    bad = await client.ask(CHAT, request(6))
    assert bad[0] == status
    assert header in bad[1]
    assert content in bad[2].decode()
    if fault in ("cut", "event", "garbage", "short"):
        assert bad[2].decode().count(" word") == 3, "half of it"


async def test_a_silent_response_keeps_its_connection_and_sends_nothing_more(
    start_mock: StartMock, connect: Connect
) -> None:
    server = await start_mock(MockConfig(first_s=0.001, gap_s=0.001, fail_every=1, fault="silent"))
    client = await connect(server)
    await client.send(CHAT, request(4))
    for _ in range(3):  # the role, and half of the tokens
        await client.reader.readuntil(b"data: ")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.reader.readuntil(b"data: "), 0.05)
    assert not client.reader.at_eof()
    assert server.running == 0


async def test_requests_beyond_the_limit_are_queued_and_admitted_in_order(
    start_mock: StartMock, connect: Connect
) -> None:
    server = await start_mock(MockConfig(first_s=0.03, gap_s=0.001, max_inflight=1))
    clients = [await connect(server) for _ in range(3)]
    ends: list[int] = []

    async def ask(number: int) -> None:
        await clients[number].send(CHAT, request(2))
        await clients[number].reply()
        ends.append(number)

    begin_s = perf_counter()
    tasks = []
    for number in range(3):
        tasks.append(asyncio.create_task(ask(number)))
        await until(lambda: server.count == len(tasks))
    await asyncio.gather(*tasks)
    assert perf_counter() - begin_s >= 3 * 0.03
    assert ends == [0, 1, 2]


async def test_a_client_that_leaves_gives_its_place_to_the_next(start_mock: StartMock, connect: Connect) -> None:
    server = await start_mock(MockConfig(first_s=0.02, gap_s=3600, max_inflight=1))
    leaving, queued, waiting = [await connect(server) for _ in range(3)]
    await leaving.send(CHAT, request(2))
    await leaving.reader.readuntil(b"data: ")
    await queued.send(CHAT, request(2))
    await waiting.send(CHAT, request(1))
    await until(lambda: len(server.queue) == 2)
    queued.writer.close()
    leaving.writer.close()
    status, _, body = await waiting.reply()
    assert (status, body.decode().count(" word")) == (200, 1)


async def test_keys_models_and_paths_are_checked(start_mock: StartMock, connect: Connect) -> None:
    server = await start_mock(MockConfig(model="step", root="/models/step", api_key="secret"))
    client = await connect(server)
    assert (await client.ask("/v1/models"))[0] == 401
    for headers in ({"authorization": "Bearer secret"}, {"x_api_key": "secret"}):
        status, _, body = await client.ask("/v1/models", **headers)
        assert status == 200
        assert json.loads(body)["data"] == [
            {"id": "step", "object": "model", "root": "/models/step", "max_model_len": 262144}
        ]
    assert (await client.ask("/nowhere", x_api_key="secret"))[0] == 404
    status, _, body = await client.ask(CHAT, request(), x_api_key="secret")
    assert status == 404 and b"The model `mock` does not exist" in body


async def test_a_request_in_pieces_is_put_together(start_mock: StartMock, connect: Connect) -> None:
    server = await start_mock(MockConfig(first_s=0.001, gap_s=0.001))
    client = await connect(server)
    body = json.dumps(request(1)).encode()
    for piece in (
        b"POST /v1/chat/comp",
        b"letions HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body),
        body[:9],
        body[9:],
    ):
        client.writer.write(piece)
        await client.writer.drain()
    assert (await client.reply())[0] == 200


async def test_closing_the_server_closes_its_connections(connect: Connect) -> None:
    async with MockServer(MockConfig(gap_s=3600)) as server:
        client = await connect(server)
        assert (await client.ask("/v1/models"))[0] == 200
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await client.reader.readuntil(b"\n")
    with pytest.raises(RuntimeError, match="not started"):
        _ = MockServer(MockConfig()).url


def test_lengths_of_a_request_have_defaults() -> None:
    assert MockRequest().output_tokens() == 16
    assert MockRequest(max_tokens=3, max_completion_tokens=5).output_tokens() == 5
    assert MockRequest(prompt=[1, 2, 3]).prompt_tokens() == 3
    assert MockRequest(prompt="x" * 40).prompt_tokens() == 10
    assert MockRequest().prompt_tokens() == 1
