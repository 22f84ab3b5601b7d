"""What is sent by repetition is what vLLM's own code would have sent."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import httpx
import pytest
import pytest_asyncio
from transformers import AutoTokenizer

from tests.http.harness import MODEL, NAME, Service, service
from tests.http.saying import Saying

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOKENIZER = AutoTokenizer.from_pretrained(MODEL, trust_remote_code=True)
THOUGHT = "I think that one and one is two, and I think so again and again.\n</think>\n"
WORDS = "one two one two one two one two \n\n one two <b> one two one two one two one two"
CALL = "\n<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>"
TOOL = {"type": "object", "properties": {"city": {"type": "string"}}}
USER = [{"role": "user", "content": "hi"}]
CHAT, COMPLETIONS, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"

OWN_TO_A_REQUEST = re.compile(r'"(id|item_id|signature|created|created_at|call_id|completed_at)":("[^"]*"|[0-9.]+)')
TEXTS = ("content", "reasoning", "text", "thinking", "delta", "partial_json")


@dataclass
class Asking:
    """Asks the service, and vLLM's app in it without our middleware, when the model says the same."""

    running: Service
    saying: Saying
    http: httpx.AsyncClient
    bare: httpx.AsyncClient

    async def ask(self, path: str, said: str, *, through_us: bool, **fields: Any) -> str:
        ids = [*TOKENIZER.encode(said, add_special_tokens=False), self.saying.eos]
        self.saying.answers += [[[one] for one in ids]] * fields.get("n", 1)
        names = {COMPLETIONS: "prompt", RESPONSES: "input"}
        prompt: Any = "hi" if path in names else USER
        limit = "max_output_tokens" if path == RESPONSES else "max_tokens"
        body = {"model": NAME, names.get(path, "messages"): prompt, limit: 500, "stream": True} | fields
        answer = await (self.http if through_us else self.bare).post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.text


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def asking() -> AsyncIterator[Asking]:
    saying = Saying(TOKENIZER.eos_token_id)
    async with (
        service({"a": saying.engine}) as running,
        httpx.AsyncClient(base_url=running.url) as http,
        httpx.AsyncClient(transport=httpx.ASGITransport(running.middleware.app), base_url="http://bare") as bare,
    ):
        yield Asking(running, saying, http, bare)


def shape(stream: str) -> tuple[list[str], dict[str, str]]:
    """The events without their texts, of equal ones in a row only the first; and each kind's text put together.

    How many tokens come in one event is a matter of time.
    """
    texts: dict[str, str] = {}
    shapes: list[str] = []
    for block in stream.strip().split("\n\n"):
        *names, data = block.split("\n")
        if not data.startswith("data: {"):
            shapes.append(block)
            continue
        event = json.loads(OWN_TO_A_REQUEST.sub(r'"\1":0', data[6:]))
        place = event.get("delta") if isinstance(event.get("delta"), dict) else event
        for choice in event.get("choices", ()):
            place = choice.get("delta", choice)
        for name in TEXTS:
            if isinstance(place.get(name), str) and not event.get("type", "").endswith((".done", ".completed")):
                kind = f"{event.get('type', '')} {name}"
                texts[kind] = texts.get(kind, "") + place[name]
                place[name] = "..."
        event.pop("sequence_number", None)
        shapes.append("\n".join([*names, json.dumps(event)]))
    return [one for one, _ in groupby(shapes)], texts


TOOLS: dict[str, Any] = {
    CHAT: [{"type": "function", "function": {"name": "get_weather", "parameters": TOOL}}],
    MESSAGES: [{"name": "get_weather", "input_schema": TOOL}],
    RESPONSES: [{"type": "function", "name": "get_weather", "parameters": TOOL}],
}
REPEATING: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {}),
    (CHAT, {"stream_options": {"include_usage": True}}),
    (CHAT, {"tools": TOOLS[CHAT]}),
    (CHAT, {"tools": TOOLS[CHAT], "parallel_tool_calls": False}),
    (CHAT, {"stop": ["one two \n\n one two <b> one"]}),
    (CHAT, {"include_reasoning": False}),
    (CHAT, {"max_tokens": 41, "stream_options": {"include_usage": True}}),
    (COMPLETIONS, {}),
    (COMPLETIONS, {"stream_options": {"include_usage": True}}),
    (COMPLETIONS, {"echo": True}),
    (COMPLETIONS, {"stop": ["<b> one"], "stream_options": {"include_usage": True}}),
    (MESSAGES, {}),
    (MESSAGES, {"tools": TOOLS[MESSAGES]}),
    (MESSAGES, {"stop_sequences": ["<b> one"]}),
    (RESPONSES, {}),
    (RESPONSES, {"tools": TOOLS[RESPONSES]}),
    (RESPONSES, {"max_output_tokens": 41}),
]
NOT_REPEATING: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"n": 2}),
    (CHAT, {"return_token_ids": True}),
    (CHAT, {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}),
    (COMPLETIONS, {"n": 2}),
    (COMPLETIONS, {"return_token_ids": True}),
    (COMPLETIONS, {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}),
]


ANSWERS = [THOUGHT + WORDS, THOUGHT + WORDS + CALL, THOUGHT + WORDS + CALL + CALL + WORDS, WORDS]


@pytest.mark.parametrize("said", ANSWERS)
@pytest.mark.parametrize(("path", "fields"), [*REPEATING, *NOT_REPEATING], ids=str)
async def test_a_stream_is_as_vllms(asking: Asking, path: str, fields: dict[str, Any], said: str) -> None:
    theirs = await asking.ask(path, said, through_us=False, **fields)
    ours = await asking.ask(path, said, through_us=True, **fields)
    context = (await asking.running.log.lines.get()).context
    if fields.get("continuous_usage_stats") or "return_token_ids" in fields:
        assert shape(ours)[1] == shape(theirs)[1]
    else:
        assert shape(ours) == shape(theirs)
    if path == RESPONSES:
        numbers = [int(number) for number in re.findall(r'"sequence_number":(\d+)', ours)]
        assert numbers == list(range(ours.count("event: ")))
    is_hidden = "include_reasoning" in fields and THOUGHT not in said  # all of it
    assert (context.repeated_chunks > 0) == ((path, fields) in REPEATING and not is_hidden)
