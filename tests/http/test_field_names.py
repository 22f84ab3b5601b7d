"""The field that an error names is the request's own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.http.asking import CHAT, Asking, asking

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client() -> AsyncIterator[Asking]:
    async with asking() as running:
        yield running


async def test_a_message_without_a_role_misses_its_role(client: Asking) -> None:
    answer = await client.ask(CHAT, {"messages": [{"content": "hi"}]})
    assert (answer.status, answer.error["param"]) == (400, "messages.0.role")


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
