"""Asks the whole service in one process, and shows the prompt that reached the engine, as text."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx
from transformers import AutoTokenizer

from serve_app.engine.contract import StepSink
from serve_app.engine.fake import FakeEngine
from serve_app.engine.fake_config import FakeEngineConfig
from serve_app.ingress.requests.edits import HEADER
from serve_app.protocol.messages import AttemptRequest
from tests.http.harness import MODEL, NAME, Service, service

CHAT, RESPONSES, MESSAGES, COUNT = "/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens"
COMPLETIONS = "/v1/completions"

LIMIT = {CHAT: "max_tokens", MESSAGES: "max_tokens", COMPLETIONS: "max_tokens", RESPONSES: "max_output_tokens"}

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="  # one pixel
IMAGE = "<im_patch>"
"""What the prompt holds where an image is."""


class RecordingEngine(FakeEngine):
    """A fake engine that keeps the prompts it was given."""

    def __init__(self, sink: StepSink, prompts: list[list[int]]) -> None:
        super().__init__(FakeEngineConfig(plain_token_ids=(40, 90)), sink)
        self._prompts = prompts

    async def run(self, attempt: AttemptRequest) -> None:
        self._prompts.append(attempt.spec.prompt_token_ids)
        await super().run(attempt)


@dataclass(frozen=True)
class Answer:
    """A response, what was said to be left out, and the prompt (empty: none reached the engine)."""

    response: httpx.Response
    ignored: str
    prompt: str

    @property
    def status(self) -> int:
        return self.response.status_code

    @property
    def error(self) -> dict[str, Any]:
        return dict(self.response.json()["error"])


@dataclass(frozen=True)
class Asking:
    """A client of a running service."""

    served: Service
    http: httpx.AsyncClient
    prompts: list[list[int]]
    tokenizer: Any = field(default_factory=lambda: AutoTokenizer.from_pretrained(str(MODEL)))

    async def ask(self, path: str, body: bytes | dict[str, Any]) -> Answer:
        """Post `body`: as it is, or an object with what each request needs added."""
        self.prompts.clear()
        if isinstance(body, dict):
            limit = {LIMIT[path]: 6} if path in LIMIT else {}
            body = json.dumps({"model": NAME, **limit, **body}).encode()
        response = await self.http.post(path, content=body, headers={"content-type": "application/json"})
        prompt = self.tokenizer.decode(self.prompts[0]) if self.prompts else ""
        return Answer(response, response.headers.get(HEADER.decode(), ""), prompt)


@contextlib.asynccontextmanager
async def asking() -> AsyncIterator[Asking]:
    """The service with one recording engine, and a client of it."""
    prompts: list[list[int]] = []
    async with (
        service({"a": lambda sink: RecordingEngine(sink, prompts)}) as served,
        httpx.AsyncClient(base_url=served.url, timeout=30, trust_env=False) as http,
    ):
        yield Asking(served, http, prompts)
