"""The field that an error names is the request's own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.http.asking import CHAT, COUNT, MESSAGES, RESPONSES, Asking, asking

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client() -> AsyncIterator[Asking]:
    async with asking() as running:
        yield running


async def test_a_message_without_a_role_misses_its_role(client: Asking) -> None:
    answer = await client.ask(CHAT, {"messages": [{"content": "hi"}]})
    assert (answer.status, answer.error["param"]) == (400, "messages.0.role")


@pytest.mark.parametrize(
    ("part", "field"),
    [
        ({"type": "text", "text": 5}, "text"), ({"type": "text", "text": {"a": 1}}, "text"), ({"text": 5}, "text"),
        ({"type": "image_url", "image_url": {"url": 5}}, "image_url.url"), ({"type": 5}, "type"),
        ({"ok": True}, "type"),
        ({"type": "image_url", "image_url": 5}, "image_url"), ({"type": "refusal", "refusal": 5}, "refusal"), (5, ""),
    ],
)  # fmt: skip
@pytest.mark.parametrize("role", ["user", "system", "assistant"])
async def test_a_wrong_part_is_named_with_its_place(client: Asking, role: str, part: object, field: str) -> None:
    first = {"type": "text", "text": "a"}
    messages = [
        {"role": "user", "content": "q"},
        {"role": role, "content": [first, part]},
        {"role": "user", "content": "b"},
    ]
    answer = await client.ask(CHAT, {"messages": messages})
    place = f"messages.1.content.1.{field}".rstrip(".")
    assert (answer.status, answer.error["param"]) == (400, place)
    assert f"`{place}`" in answer.error["message"]


async def test_an_image_of_responses_that_is_no_address_is_named(client: Asking) -> None:
    image = {"type": "input_image", "image_url": 5}
    answer = await client.ask(RESPONSES, {"input": [{"role": "user", "content": [image]}]})
    assert (answer.status, answer.error["param"]) == (400, "input.0.content.0.image_url")


@pytest.mark.parametrize("item", [{"role": "function"}, {"role": 5}, {"type": "message"}])
@pytest.mark.parametrize("content", ["x", [{"type": "input_text", "text": "x"}]])
async def test_the_role_of_an_item_is_looked_at_first(client: Asking, item: dict[str, Any], content: object) -> None:
    answer = await client.ask(RESPONSES, {"input": [{**item, "content": content}]})
    assert (answer.status, answer.error["param"]) == (400, "input.0.role")
    assert "role" not in item or '"user", "assistant", "system", "developer", "tool"' in answer.error["message"]


@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES, COUNT, "/tokenize"])
async def test_a_conversation_without_messages_is_named(client: Asking, path: str) -> None:
    field = "input" if path == RESPONSES else "messages"
    answer = await client.ask(path, {field: []})
    assert (answer.status, answer.error["message"]) == (400, f"`{field}` must not be empty.")
    assert path in (MESSAGES, COUNT) or answer.error["param"] == field


async def test_instructions_are_enough_for_a_response(client: Asking) -> None:
    assert (await client.ask(RESPONSES, {"input": [], "instructions": "Say hello."})).status == 200


@pytest.mark.parametrize(
    ("content", "field"), [([{"type": "text"}], "content.0.text"), ("", "content")], ids=["text", "beginning"]
)
async def test_a_message_of_nothing_is_named(client: Asking, content: object, field: str) -> None:
    role = "user" if content else "assistant"
    answer = await client.ask(MESSAGES, {"messages": [{"role": role, "content": content}]})
    assert answer.status == 400
    assert f"`messages.0.{field}`" in answer.error["message"]


@pytest.mark.parametrize("field", [{"logit_bias": {"5": 1}}, {"min_p": 0.2}])
@pytest.mark.parametrize("stream", [False, True])
async def test_of_two_parameters_that_vllm_refuses_the_one_that_was_sent_is_named(
    client: Asking, field: dict[str, Any], *, stream: bool
) -> None:
    answer = await client.ask(CHAT, {"messages": [{"role": "user", "content": "hi"}], "stream": stream, **field})
    assert (answer.status, answer.error["param"]) == (400, next(iter(field)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0), ("top_k", -2), ("presence_penalty", 9), ("repetition_penalty", 0), ("min_tokens", -1),
        ("bad_words", [""]), ("temperature", -1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_wrong_with_a_sampling_parameter_is_said_of_it(
    client: Asking, field: str, value: object, stream: bool
) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], field: value, "stream": stream}
    answer = await client.ask(CHAT, body)
    assert (answer.status, answer.error["param"]) == (400, field)


@pytest.mark.parametrize("name", ["messages", "tools"])
async def test_what_the_template_gets_anyway_is_refused_among_its_variables(client: Asking, name: str) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "chat_template_kwargs": {name: []}}
    answer = await client.ask(CHAT, body)
    assert (answer.status, answer.error["param"]) == (400, f"chat_template_kwargs.{name}")
