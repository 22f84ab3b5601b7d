"""Text, an image and a tool, through each API on the GPU build's front end: rendered, and served over a fake engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.http.asking import CHAT, COMPLETIONS, IMAGE, MESSAGES, PNG, RESPONSES, Asking, asking
from tests.http.harness import NAME

pytestmark = pytest.mark.asyncio(loop_scope="module")

DATA_URL = f"data:image/png;base64,{PNG}"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "get_weather", "description": "How the sky is.", "parameters": SCHEMA}


def user(*content: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(content)}]


REQUESTS: dict[tuple[str, str], dict[str, Any]] = {
    (CHAT, "text"): {"messages": user({"type": "text", "text": "Good morning"})},
    (CHAT, "image"): {"messages": user({"type": "image_url", "image_url": {"url": DATA_URL}})},
    (CHAT, "tool"): {
        "messages": user({"type": "text", "text": "Good morning"}),
        "tools": [{"type": "function", "function": FUNCTION}],
    },
    (RESPONSES, "text"): {"input": "Good morning"},
    (RESPONSES, "image"): {"input": user({"type": "input_image", "image_url": DATA_URL, "detail": "auto"})},
    (RESPONSES, "tool"): {"input": "Good morning", "tools": [{"type": "function", **FUNCTION}]},
    (MESSAGES, "text"): {"messages": user({"type": "text", "text": "Good morning"})},
    (MESSAGES, "image"): {
        "messages": user({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}})
    },
    (MESSAGES, "tool"): {
        "messages": user({"type": "text", "text": "Good morning"}),
        "tools": [{"name": "get_weather", "description": "How the sky is.", "input_schema": SCHEMA}],
    },
    (COMPLETIONS, "text"): {"prompt": "Good morning"},
}
"""By API and what is in it. Completions take neither images nor tools."""

SHOWS = {"text": "Good morning", "image": IMAGE, "tool": "get_weather"}
"""What of it the prompt holds that reaches the engine."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client() -> AsyncIterator[Asking]:
    async with asking() as running:
        yield running


@pytest.mark.parametrize("model", [NAME, "claude-sonnet-4-5"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "kind"), list(REQUESTS))
async def test_each_api_renders_and_serves_it(client: Asking, path: str, kind: str, stream: bool, model: str) -> None:
    answer = await client.ask(path, {**REQUESTS[path, kind], "stream": stream, "model": model})
    assert answer.status == 200, answer.response.text
    assert SHOWS[kind] in answer.prompt
    assert (answer.response.headers["content-type"].split(";")[0] == "text/event-stream") is stream
    assert '"error"' not in answer.response.text.replace('"error":null', "")
