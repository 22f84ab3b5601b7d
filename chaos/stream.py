"""Sends one request, reads the response to its end, and stamps the arrival of each piece of text.

A failed request raises nothing: the `Recording` says what went wrong. Only cancellation is passed on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx
import msgspec

from chaos.events import record_event, record_whole_response
from chaos.request_spec import RequestSpec
from chaos.response_recorder import Answer, Recorder
from loadtest.http.event_stream import BadFraming, EventFeed

BODY_KEPT = 2_000
"""Characters of a failed response that are kept for the report."""


@dataclass(frozen=True)
class Recording:
    """One request and its response. Times are the event loop's clock, in seconds."""

    spec: RequestSpec
    request_id: str
    status: int
    answer: Answer
    error: str
    """Why the request failed; empty if it did not."""
    body: str
    """The last characters of a failed response."""
    start_s: float
    end_s: float
    text_s: tuple[float, ...] = field(repr=False)
    """Arrival of each piece of text."""

    @property
    def finished(self) -> bool:
        """Whether the response is complete and well-formed. Its text may still be wrong."""
        return not self.error


OnText = Callable[[int], None]
"""Called when a stream brings text, with the number of characters so far."""


async def send_request(
    client: httpx.AsyncClient, spec: RequestSpec, request_id: str, deadline_s: float, on_text: OnText
) -> Recording:
    """Send a request and read its response, for at most `deadline_s`."""
    reader = _ResponseReader(spec, on_text)
    loop = asyncio.get_running_loop()
    start_s, error = loop.time(), ""
    try:
        async with asyncio.timeout(deadline_s):
            await reader.read(client, request_id)
    except TimeoutError:
        error = f"not finished after {deadline_s:g} s"
    except httpx.HTTPError as failed:
        error = f"{type(failed).__name__}: {failed}"
    except (msgspec.DecodeError, BadFraming, UnicodeDecodeError) as malformed:
        error = f"malformed response: {malformed}"
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

    async def read(self, client: httpx.AsyncClient, request_id: str) -> None:
        headers = {"content-type": "application/json", "x-request-id": request_id}
        async with client.stream("POST", self._spec.path, content=self._spec.body, headers=headers) as response:
            self.status = response.status_code
            if response.status_code != 200 or not self._spec.stream:
                self.last_bytes += await response.aread()
                if response.status_code == 200:
                    record_whole_response(self._spec.api, self.recorder, bytes(self.last_bytes))
                return
            feed = EventFeed(chunked=False)  # httpx has already decoded the chunks
            number = 0
            async for read in response.aiter_bytes():
                self._record(feed, read, number)
                number += 1
            for event in feed.finish():
                record_event(self._spec.api, self.recorder, event.data)

    def _record(self, feed: EventFeed, read: bytes, number: int) -> None:
        self.last_bytes = (self.last_bytes + read)[-BODY_KEPT:]
        before = self.recorder.characters
        for event in feed.feed(read, number):
            record_event(self._spec.api, self.recorder, event.data)
        if self.recorder.characters > before:
            self.text_s.append(asyncio.get_running_loop().time())
            self._on_text(self.recorder.characters)
