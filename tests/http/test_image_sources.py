"""An image that names none, or none that can be: one sentence that names the field, never an answer without it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.http.asking import CHAT, COUNT, MESSAGES, PNG, RESPONSES, Asking, asking

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXT = {"type": "text", "text": "What is this?"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client() -> AsyncIterator[Asking]:
    async with asking() as running:
        yield running


def anthropic(image: dict[str, Any], *, in_tool_result: bool) -> dict[str, Any]:
    if not in_tool_result:
        return {"messages": [{"role": "user", "content": [image, TEXT]}]}
    call = {"type": "tool_use", "id": "t1", "name": "read", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [image]}
    return {
        "messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": [call]},
            {"role": "user", "content": [result]},
        ]
    }


@pytest.mark.parametrize("path", [MESSAGES, COUNT])
@pytest.mark.parametrize("in_tool_result", [False, True])
@pytest.mark.parametrize(
    ("source", "field"),
    [
        (None, "source"),
        ({}, "source"),
        ("x", "source"),
        ({"type": "url"}, "source.url"),
        ({"type": "url", "url": ""}, "source.url"),
        ({"type": "base64", "media_type": "image/png"}, "source.data"),
        ({"type": "base64", "media_type": "image/png", "data": ""}, "source.data"),
        ({"type": "base64", "media_type": ["image/png"], "data": PNG}, "source.media_type"),
        ({"type": "of_next_year"}, "source.data"),
    ],
)
async def test_an_anthropic_image_without_an_image_is_refused(
    client: Asking, path: str, source: object, field: str, in_tool_result: bool
) -> None:
    body = anthropic({"type": "image", "source": source}, in_tool_result=in_tool_result)
    answer = await client.ask(path, body)
    assert answer.status == 400
    place = "messages.2.content.0.content.0" if in_tool_result else "messages.0.content.0"
    assert f"`{place}.{field}`" in answer.error["message"]


@pytest.mark.parametrize("url", ["", " "])
async def test_an_empty_address_is_refused_by_name(client: Asking, url: str) -> None:
    for image_url, field in ((url, "image_url"), ({"url": url}, "image_url.url")):
        parts = [{"type": "image_url", "image_url": image_url}, TEXT]
        answer = await client.ask(CHAT, {"messages": [{"role": "user", "content": parts}]})
        assert (answer.status, answer.error["param"]) == (400, f"messages.0.content.0.{field}")
    parts = [{"type": "input_image", "image_url": url}, {"type": "input_text", "text": "hi"}]
    answer = await client.ask(RESPONSES, {"input": [{"role": "user", "content": parts}]})
    assert (answer.status, answer.error["param"]) == (400, "input.0.content.0.image_url")


async def test_truncation_that_cannot_work_is_left_out(client: Asking) -> None:
    answer = await client.ask(RESPONSES, {"input": "word " * 9000, "truncation": "auto"})
    assert answer.error["code"] == "context_length_exceeded"
    assert " 8192 tokens. " in answer.error["message"]
    answer = await client.ask(RESPONSES, {"input": "hi", "truncation": "auto"})
    assert (answer.status, answer.ignored) == (200, "truncation (auto)")
