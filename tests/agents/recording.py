"""The service in this process, over scripted engines, with every request that a program sends kept as it came."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.engine.fake import FakeEngine
from serve_app.engine.fake_config import fake_engine_config
from serve_app.engine.replica import EngineFactory
from tests.agents.conversations import NOT_THE_TASK
from tests.http.harness import FLAGS, MODEL, Line, Service, listening, service

MAX_MODEL_LEN = 200_000


@dataclass
class Request:
    """One request as a program sent it, and the status and headers that it got. The times are of `time.monotonic()`."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    came_s: float
    status: int = 0
    answer_headers: dict[str, str] = field(default_factory=dict)
    answered_s: float = 0.0

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Recorder:
    """An ASGI app that keeps what goes through it."""

    app: ASGIApp
    requests: list[Request] = field(default_factory=list)
    answered: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def until_status(self, status: int) -> None:
        """Wait until a turn has been answered with it."""
        async with self.answered:
            await self.answered.wait_for(lambda: any(request.status == status for request in self.turns()))

    def turns(self) -> list[Request]:
        """The requests that are the task's turns, in the order in which they came."""
        return [
            one for one in self.requests if one.body and not any(text.encode() in one.body for text in NOT_THE_TASK)
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope["method"], scope["path"], _text(scope["headers"]), b"", time.monotonic())
        self.requests.append(request)

        async def receive_and_keep() -> Any:
            message = await receive()
            if message["type"] == "http.request":
                request.body += message.get("body", b"")
            return message

        async def send_and_keep(message: Any) -> None:
            if message["type"] == "http.response.start":
                request.status, request.answered_s = message["status"], time.monotonic()
                request.answer_headers = _text(message.get("headers", ()))
                async with self.answered:
                    self.answered.notify_all()
            await send(message)

        await self.app(scope, receive_and_keep, send_and_keep)


def _text(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers}


@dataclass(frozen=True)
class Recorded:
    """A running service: `url` goes through the recorder."""

    url: str
    recorder: Recorder
    service: Service

    def lines(self) -> list[Line]:
        """The access log since the last look."""
        queue = self.service.log.lines
        return [queue.get_nowait() for _ in range(queue.qsize())]


def scripted(script: Sequence[Any], **changes: Any) -> EngineFactory:
    """An engine that says this script (`serve_app/engine/fake_script.py`)."""
    settings = {"script": list(script), "tokens_per_step": 4, "max_model_len": MAX_MODEL_LEN, **changes}
    config = fake_engine_config(settings, tokenizer=str(MODEL))
    return lambda sink: FakeEngine(config, sink)


def argv(max_model_len: int = MAX_MODEL_LEN) -> list[str]:
    """The ingress's flags for so long a context."""
    flags = list(FLAGS)
    for name in ("--max-model-len", "--max-num-batched-tokens"):
        flags[flags.index(name) + 1] = str(max_model_len)
    return flags


@contextlib.asynccontextmanager
async def recorded(engines: dict[str, EngineFactory], **options: Any) -> AsyncIterator[Recorded]:
    """The service over these engines, by replica name."""
    options = {"argv": argv(), "max_body_bytes": 64 << 20, **options}
    async with service(engines, **options) as running:
        recorder = Recorder(running.middleware)
        async with listening(recorder) as url:
            yield Recorded(url, recorder, running)
