"""A last message from the assistant is the beginning of the answer: it is continued, on every API, streamed or not."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.http.asking import CHAT, COUNT, MESSAGES, RESPONSES, Answer, Asking, asking

pytestmark = pytest.mark.asyncio(loop_scope="module")

QUESTION = {"role": "user", "content": "Sum of 1 and 2 as JSON?"}
APIS = pytest.mark.parametrize("path", [CHAT, MESSAGES, RESPONSES])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client() -> AsyncIterator[Asking]:
    async with asking() as running:
        yield running


def ending(path: str, content: object, **fields: Any) -> dict[str, Any]:
    return {
        "input" if path == RESPONSES else "messages": [QUESTION, {"role": "assistant", "content": content}],
        **fields,
    }


def events(answer: Answer) -> list[dict[str, Any]]:
    lines = [line[6:] for line in answer.response.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def said(path: str, answer: Answer, *, stream: bool) -> tuple[str, bool]:
    """The answer's text, and whether any of it is reasoning."""
    if path == CHAT:
        key = "delta" if stream else "message"
        every = events(answer) if stream else [answer.response.json()]
        messages = [one["choices"][0][key] for one in every if one["choices"]]
        return "".join(one.get("content") or "" for one in messages), any(one.get("reasoning") for one in messages)
    if path == MESSAGES and stream:
        deltas = [one["delta"] for one in events(answer) if one["type"] == "content_block_delta"]
        return "".join(one.get("text", "") for one in deltas), any("thinking" in one for one in deltas)
    if path == MESSAGES:
        blocks = answer.response.json()["content"]
        return "".join(one.get("text", "") for one in blocks), any(one["type"] == "thinking" for one in blocks)
    body = events(answer)[-1]["response"] if stream else answer.response.json()
    texts = [one["content"][0]["text"] for one in body["output"] if one["type"] == "message"]
    return "".join(texts), any(one["type"] == "reasoning" for one in body["output"])


@APIS
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("content", ['{"sum":', "Two words ", "line\n", "\n  indented"])
async def test_the_beginning_of_an_answer_is_continued(
    client: Asking, path: str, content: str, *, stream: bool
) -> None:
    answer = await client.ask(path, ending(path, content, stream=stream))
    assert (answer.status, answer.ignored) == (200, "")
    assert answer.prompt.endswith(f"<|im_start|>assistant\n<think>\n\n</think>\n{content}")
    text, has_reasoning = said(path, answer, stream=stream)
    assert len(text) == 6  # every token of the engine's, and nothing of the beginning
    assert not has_reasoning


@pytest.mark.parametrize("stream", [False, True])
async def test_none_of_a_continued_answer_is_counted_as_reasoning(client: Asking, *, stream: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if stream else {}
    answer = await client.ask(CHAT, ending(CHAT, "x", stream=stream, **options))
    usage = (events(answer)[-1] if stream else answer.response.json())["usage"]
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 0
    plain = await client.ask(CHAT, {"messages": [QUESTION], "stream": stream, **options})
    usage = (events(plain)[-1] if stream else plain.response.json())["usage"]
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 6


async def test_each_chunk_counts_the_reasoning_so_far(client: Asking) -> None:
    options = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    plain = await client.ask(CHAT, {"messages": [QUESTION], "stream": True, **options})
    usages = [event["usage"] for event in events(plain) if event.get("usage")]
    counts = [usage["completion_tokens_details"]["reasoning_tokens"] for usage in usages]
    assert counts == [usage["completion_tokens"] for usage in usages]  # all of this answer is reasoning
    assert counts[0] == 0
    assert counts[-1] == 6


@APIS
async def test_parts_are_one_beginning(client: Asking, path: str) -> None:
    kind = "output_text" if path == RESPONSES else "text"
    parts = [{"type": kind, "text": "one "}, {"type": kind, "text": "two"}]
    answer = await client.ask(path, ending(path, parts))
    assert answer.prompt.endswith("</think>\none two")


@APIS
async def test_an_empty_beginning_is_none(client: Asking, path: str) -> None:
    for content in ("", []):
        answer = await client.ask(path, ending(path, content))
        assert answer.status == 200
        assert answer.prompt.endswith("<|im_end|>\n<|im_start|>assistant\n<think>\n")


@APIS
@pytest.mark.parametrize("content", ["", [], [{"type": "text", "text": ""}]])
async def test_an_empty_question_is_a_turn(client: Asking, path: str, content: object) -> None:
    """Left out, it would make the answer before it a beginning."""
    field, empty = "input" if path == RESPONSES else "messages", {"role": "user", "content": content}
    answer = await client.ask(path, {field: [QUESTION, {"role": "assistant", "content": "x"}, empty]})
    assert answer.status == 200
    turns = "assistant\nx<|im_end|>\n<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert answer.prompt.endswith(turns)
    alone = await client.ask(path, {field: [empty]})
    assert alone.status == 200
    assert alone.prompt.endswith("<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n<think>\n")


async def test_thinking_before_the_beginning_is_kept(client: Asking) -> None:
    blocks = [{"type": "thinking", "thinking": "hmm", "signature": "s"}, {"type": "text", "text": "It"}]
    answer = await client.ask(MESSAGES, ending(MESSAGES, blocks))
    assert answer.prompt.endswith("<think>\nhmm\n</think>\nIt")
    message = {"role": "assistant", "content": "It", "reasoning_content": "hmm"}
    answer = await client.ask(CHAT, {"messages": [QUESTION, message]})
    assert answer.prompt.endswith("<think>\nhmm\n</think>\nIt")
    reasoning = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hmm"}]}
    answer = await client.ask(RESPONSES, {"input": [QUESTION, reasoning, {"role": "assistant", "content": "It"}]})
    assert answer.prompt.endswith("<think>\nhmm\n</think>\nIt")


@APIS
@pytest.mark.parametrize("stream", [False, True])
async def test_what_cannot_be_continued_is_refused(client: Asking, path: str, *, stream: bool) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    last: dict[str, list[dict[str, Any]]] = {
        CHAT: [{"role": "assistant", "tool_calls": [call]}, {"role": "assistant", "content": None, "reasoning": "hmm"}],
        MESSAGES: [
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "hmm", "signature": "s"}]},
        ],
        RESPONSES: [
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hmm"}]},
        ],
    }
    for message in last[path]:
        body = {"input" if path == RESPONSES else "messages": [QUESTION, message], "stream": stream}
        answer = await client.ask(path, body)
        assert answer.status == 400
        assert answer.error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("path", "field"),
    [
        (CHAT, {"response_format": {"type": "json_object"}}),
        (CHAT, {"structured_outputs": {"choice": ["a"]}}),
        (CHAT, {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required"}),
        (MESSAGES, {"output_config": {"format": {"type": "json_schema", "schema": {}}}}),
        (MESSAGES, {"tools": [{"name": "f", "input_schema": {}}], "tool_choice": {"type": "any"}}),
        (RESPONSES, {"text": {"format": {"type": "json_schema", "name": "n", "schema": {}}}}),
    ],
)
async def test_a_beginning_and_a_grammar_do_not_go_together(client: Asking, path: str, field: dict[str, Any]) -> None:
    answer = await client.ask(path, ending(path, "x", **field))
    assert answer.status == 400
    assert "beginning of an answer" in answer.error["message"]


async def test_a_client_of_vllm_may_say_what_the_last_message_is(client: Asking) -> None:
    answer = await client.ask(CHAT, ending(CHAT, "x", add_generation_prompt=True))
    assert answer.prompt.endswith("\nx<|im_end|>\n<|im_start|>assistant\n<think>\n")
    answer = await client.ask(CHAT, ending(CHAT, "x", continue_final_message=True, add_generation_prompt=False))
    assert answer.prompt.endswith("</think>\nx")


@pytest.mark.parametrize("stream", [False, True])
async def test_the_beginning_is_repeated_where_that_is_asked_for(client: Asking, *, stream: bool) -> None:
    body = ending(CHAT, [{"type": "text", "text": '{"sum":'}], echo=True, stream=stream)
    answer = await client.ask(CHAT, body)
    assert answer.status == 200
    assert said(CHAT, answer, stream=stream)[0].startswith('{"sum":')
    assert "error" not in answer.response.text


async def test_to_ask_for_a_continuation_is_enough(client: Asking) -> None:
    answer = await client.ask(CHAT, ending(CHAT, "The sum", continue_final_message=True))
    assert answer.status == 200
    assert answer.prompt.endswith("The sum")
    both = await client.ask(CHAT, ending(CHAT, "The sum", continue_final_message=True, add_generation_prompt=True))
    assert both.status == 400


async def test_tokenize_counts_what_chat_would_send(client: Asking) -> None:
    for content in ("The sum", [{"type": "output_text", "text": "The sum"}]):
        body = ending(CHAT, content)
        sent = (await client.ask(CHAT, body)).response.json()["usage"]["prompt_tokens"]
        assert (await client.ask("/tokenize", body)).response.json()["count"] == sent


async def test_what_a_hosted_tool_did_last_is_not_continued(client: Asking) -> None:
    searched = {"type": "web_search_call", "id": "1", "action": {"type": "search", "query": "cats"}}
    answer = await client.ask(RESPONSES, {"input": [QUESTION, searched]})
    assert answer.prompt.endswith("<|im_start|>assistant\n<think>\n")


async def test_the_beginning_is_counted(client: Asking) -> None:
    bodies = [{"messages": [QUESTION]}, ending(COUNT, "one two three")]
    fresh, begun = [(await client.ask(COUNT, body)).response.json()["input_tokens"] for body in bodies]
    assert begun > fresh
