"""Sending one request: its response is read to the end, and whatever fails is recorded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from chaos.stream import send_request
from tests.unit.chaos_examples import ANSWER, CHAT, SPEC

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


@asynccontextmanager
async def server(answer: bytes, *, closes: bool = True) -> AsyncIterator[httpx.AsyncClient]:
    """Answers every request with these bytes, then closes the connection or keeps it open."""
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        if not closes:
            await over.wait()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    async with listening, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        yield client
        over.set()


def chunked(events: list[bytes], *, end: bool = True) -> bytes:
    data = b": keep-alive\n\n" + b"".join(b"data: " + event + b"\n\n" for event in events)
    return HEAD + b"%x\r\n%s\r\n" % (len(data), data) + (b"0\r\n\r\n" if end else b"")


async def test_a_stream_is_read_to_its_end_and_reports_its_progress() -> None:
    progress: list[int] = []
    async with server(chunked(CHAT)) as client:
        recording = await send_request(client, SPEC, "id-1", 5.0, progress.append)
    assert recording.finished
    assert recording.answer == ANSWER
    assert progress[-1] == ANSWER.characters
    assert len(recording.text_s) == len(progress)


@pytest.mark.parametrize(
    ("answer", "closes", "error"),
    [
        (chunked(CHAT[:4], end=False), True, "RemoteProtocolError"),
        (chunked(CHAT[:4]), True, "end marker"),
        (chunked(CHAT[:4], end=False), False, "not finished after"),
        (chunked([b"{half"]), True, "malformed response"),
        (b"HTTP/1.1 503 No\r\ncontent-length: 4\r\n\r\nbusy", True, "HTTP 503"),
    ],
)
async def test_a_failed_request_is_recorded_with_its_error(answer: bytes, *, closes: bool, error: str) -> None:
    async with server(answer, closes=closes) as client:
        recording = await send_request(client, SPEC, "id-1", 10.0 if closes else 2.0, lambda _: None)
    assert error in recording.error
    assert not recording.finished
    assert recording.body


async def test_an_endpoint_that_does_not_answer_is_recorded() -> None:
    async with httpx.AsyncClient(base_url="http://127.0.0.1:9", trust_env=False) as client:
        recording = await send_request(client, SPEC, "id-1", 5.0, lambda _: None)
    assert (recording.status, recording.finished) == (0, False)
