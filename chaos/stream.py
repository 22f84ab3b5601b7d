"""One request on the wire: sent, followed to its end, and every piece of text stamped when it came.

Failures are data here: whatever happens to a request, a `Recording` comes back. Only the end of the run passes through.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx
import msgspec

from chaos.events import take_event, take_whole
from chaos.request_spec import RequestSpec
from chaos.response_recorder import Answer, Recorder
from loadtest.http.event_stream import BadFraming, EventFeed

BODY_KEPT = 2_000
"""Characters of a failed answer that are kept for the report."""


@dataclass(frozen=True)
class Recording:
    """What one client saw. Times are the event loop's clock, in seconds."""

    spec: RequestSpec
    request_id: str
    status: int
    answer: Answer
    error: str
    """Why this is no answer; empty where it is one."""
    body: str
    """The start of a response that is no answer."""
    start_s: float
    end_s: float
    text_s: tuple[float, ...] = field(repr=False)
    """When each event with text came."""

    @property
    def finished(self) -> bool:
        """A proper answer to its end, equal to anything or not."""
        return not self.error


OnText = Callable[[int], None]
"""Told how many characters a stream has brought so far, whenever it brings some."""


async def send_request(
    client: httpx.AsyncClient, spec: RequestSpec, request_id: str, deadline_s: float, on_text: OnText
) -> Recording:
    """Send a request and follow the answer."""
    reader = _ResponseReader(spec, on_text)
    loop = asyncio.get_running_loop()
    start_s, error = loop.time(), ""
    try:
        async with asyncio.timeout(deadline_s):
            await reader.follow(client, request_id)
    except TimeoutError:
        error = f"not over after {deadline_s:g} s"
    except httpx.HTTPError as lost:
        error = f"{type(lost).__name__}: {lost}"
    except (msgspec.DecodeError, BadFraming, UnicodeDecodeError) as bad:
        error = f"not what the protocol says: {bad}"
    answer = reader.recorder.answer()
    if not error and reader.status != 200:
        error = f"HTTP {reader.status}"
    error = error or "; ".join(answer.flaws)
    body = bytes(reader.last_bytes[-BODY_KEPT:]).decode(errors="replace") if error else ""
    return Recording(spec, request_id, reader.status, answer, error, body, start_s, loop.time(), tuple(reader.text_s))


class _ResponseReader:
    def __init__(self, spec: RequestSpec, on_text: OnText) -> None:
        self.recorder = Recorder()
        self.status = 0
        self.text_s: list[float] = []
        self.last_bytes = bytearray()
        self._spec = spec
        self._on_text = on_text

    async def follow(self, client: httpx.AsyncClient, request_id: str) -> None:
        headers = {"content-type": "application/json", "x-request-id": request_id}
        async with client.stream("POST", self._spec.path, content=self._spec.body, headers=headers) as response:
            self.status = response.status_code
            if response.status_code != 200 or not self._spec.stream:
                self.last_bytes += await response.aread()
                if response.status_code == 200:
                    take_whole(self._spec.api, self.recorder, bytes(self.last_bytes))
                return
            feed = EventFeed(chunked=False)  # httpx has taken the chunks off
            number = 0
            async for read in response.aiter_bytes():
                self._take(feed, read, number)
                number += 1
            for event in feed.finish():
                take_event(self._spec.api, self.recorder, event.data)

    def _take(self, feed: EventFeed, read: bytes, number: int) -> None:
        self.last_bytes = (self.last_bytes + read)[-BODY_KEPT:]
        before = self.recorder.characters
        for event in feed.feed(read, number):
            take_event(self._spec.api, self.recorder, event.data)
        if self.recorder.characters > before:
            self.text_s.append(asyncio.get_running_loop().time())
            self._on_text(self.recorder.characters)
