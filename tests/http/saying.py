"""A fake engine that says given tokens in given steps, and what the four APIs make of them, streamed and whole."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from fastapi import FastAPI
from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.v1.engine import EngineCoreOutput, FinishReason
from vllm.v1.outputs import LogprobsLists
from vllm.v1.serial_utils import MsgpackEncoder

from serve_app.engine.contract import StepSink
from serve_app.engine.fake import LENGTH, STOP, FakeEngine
from serve_app.engine.fake_config import FakeEngineConfig
from serve_app.protocol.messages import AttemptRequest, TokenDelta

Steps = Sequence[Sequence[int]]
"""Token ids, by engine step."""


@dataclass
class Saying:
    """What the next requests will be answered with, in the order in which they come."""

    eos: int
    logprobs: bool = False
    """Whether each token comes with its log probability, which is made up from it."""
    answers: deque[Steps] = field(default_factory=deque)

    def engine(self, sink: StepSink) -> SayingEngine:
        """An `EngineFactory`."""
        return SayingEngine(self, sink)


class SayingEngine(FakeEngine):
    """Says what it is told to. An end-of-sequence token ends it, `max_tokens` cuts it."""

    def __init__(self, saying: Saying, sink: StepSink) -> None:
        super().__init__(FakeEngineConfig(max_num_seqs=64), sink)
        self._saying = saying
        self._deliver = sink

    async def run(self, attempt: AttemptRequest) -> None:
        await self.check()
        position = 0
        for step in self._saying.answers.popleft():
            ids = list(step)[: attempt.spec.max_tokens - position]
            delta = TokenDelta(attempt.attempt_id, position, ids, cached_tokens=None if position else 0)
            position += len(ids)
            if ids and ids[-1] == self._saying.eos:
                delta.finish_reason = STOP
            elif position >= attempt.spec.max_tokens:
                delta.finish_reason = LENGTH
            if self._saying.logprobs:
                delta.extra = with_logprobs(delta)
            self._deliver([delta])
            if delta.finish_reason is not None:
                return
            await asyncio.sleep(0)
        raise AssertionError("an answer ends with the end-of-sequence token or is longer than max_tokens")


def with_logprobs(delta: TokenDelta) -> list[bytes]:
    """The delta as vLLM's engine gives it where log probabilities are asked for."""
    ids = np.array([[one, one + 1] for one in delta.token_ids])
    output = EngineCoreOutput(
        request_id="",
        new_token_ids=delta.token_ids,
        new_logprobs=LogprobsLists(ids, -ids.astype(np.float32) / 100, np.ones(len(ids), dtype=np.int64)),
        finish_reason=None if delta.finish_reason is None else FinishReason(delta.finish_reason),
    )
    return [bytes(buffer) for buffer in MsgpackEncoder().encode(output)]


@dataclass(frozen=True)
class Call:
    name: str
    arguments: str


@dataclass
class Answer:
    """What a client has got, put together. `finish` and `stop` are the API's own words."""

    reasoning: str = ""
    content: str = ""
    calls: list[Call] = field(default_factory=list)
    finish: object = None
    stop: object = None
    is_cut: bool = False
    """Whether the last item of a response says that it is incomplete."""
    usage: dict[str, int] = field(default_factory=dict)
    logprobs: list[Any] = field(default_factory=list)


async def events(stream: AsyncIterator[str]) -> AsyncIterator[dict[str, Any]]:
    """The JSON of each `data:` line but `[DONE]`, which must come last and once."""
    done = False
    async for chunk in stream:
        for line in chunk.splitlines():
            if not line.startswith("data: "):
                continue
            assert not done
            if line == "data: [DONE]":
                done = True
                continue
            event = json.loads(line[6:])
            assert "error" not in event, event
            yield event


class Apis:
    """The serving code of a running service's app, without sockets."""

    def __init__(self, app: FastAPI) -> None:
        self._state: Any = app.state

    async def chat(self, body: dict[str, Any], *, stream: bool) -> list[Answer]:
        more = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        request = ChatCompletionRequest.model_validate(body | more)
        result = await self._state.openai_serving_chat.create_chat_completion(request, None)
        answers = [Answer() for _ in range(body.get("n", 1))]
        return await streamed_chat(result, answers) if stream else whole_chat(result.model_dump(), answers)

    async def completions(self, body: dict[str, Any], *, stream: bool) -> list[Answer]:
        more = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        request = CompletionRequest.model_validate(body | more)
        result = await self._state.openai_serving_completion.create_completion(request, None)
        answers = [Answer() for _ in range(body.get("n", 1))]
        parts = events(result) if stream else one(result.model_dump())
        async for part in parts:
            for choice in part["choices"]:
                answer = answers[choice["index"]]
                answer.content += choice["text"]
                if choice.get("finish_reason"):
                    assert answer.finish is None
                    answer.finish, answer.stop = choice["finish_reason"], choice.get("stop_reason")
            if part.get("usage"):
                answers[0].usage = numbers(part["usage"])
        return answers

    async def messages(self, body: dict[str, Any], *, stream: bool) -> list[Answer]:
        request = AnthropicMessagesRequest.model_validate(body | {"stream": stream})
        result = await self._state.anthropic_serving_messages.create_messages(request, None)
        return [await streamed_message(result) if stream else whole_message(result.model_dump())]

    async def responses(self, body: dict[str, Any], *, stream: bool) -> list[Answer]:
        request = ResponsesRequest.model_validate(body | {"stream": stream, "store": False})
        result = await self._state.openai_serving_responses.create_responses(request, None)
        return [await streamed_response(result) if stream else whole_response(result.model_dump())]


async def said(
    apis: Apis, saying: Saying, api: str, body: dict[str, Any], answers: Sequence[Steps], *, stream: bool
) -> list[Answer]:
    """What a client of `api` gets for this body when the model says this, one for each of its `n`."""
    saying.logprobs = "logprobs" in body
    saying.answers.clear()
    saying.answers.extend(answers)
    got: list[Answer] = await getattr(apis, api)(body, stream=stream)
    return got


async def one(value: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """A stream of one event."""
    yield value


def numbers(usage: dict[str, Any]) -> dict[str, int]:
    """The counts of a usage object, and the reasoning tokens in it. What the cache gave may differ each time."""
    details = usage.get("completion_tokens_details") or usage.get("output_tokens_details") or {}
    counts = {name: value for name, value in usage.items() if isinstance(value, int) and "cache" not in name}
    return counts | {"reasoning": details.get("reasoning_tokens", 0)}


def whole_chat(body: dict[str, Any], answers: list[Answer]) -> list[Answer]:
    for choice, answer in zip(body["choices"], answers, strict=True):
        message = choice["message"]
        answer.reasoning, answer.content = message["reasoning"] or "", message["content"] or ""
        calls = message.get("tool_calls") or []
        answer.calls = [Call(call["function"]["name"], call["function"]["arguments"]) for call in calls]
        answer.finish, answer.stop = choice["finish_reason"], choice["stop_reason"]
        answer.logprobs = (choice["logprobs"] or {}).get("content") or []
        assert len({call["id"] for call in calls}) == len(calls)
        assert message["content"] != ""
    answers[0].usage = numbers(body["usage"])
    return answers


async def streamed_chat(stream: AsyncIterator[str], answers: list[Answer]) -> list[Answer]:
    ids, call_ids = set(), set()
    async for event in events(stream):
        ids.add(event["id"])
        for choice in event["choices"]:
            answer, delta = answers[choice["index"]], choice["delta"]
            assert answer.finish is None, "nothing follows the finish reason"
            answer.reasoning += delta.get("reasoning") or ""
            answer.content += delta.get("content") or ""
            answer.logprobs += (choice.get("logprobs") or {}).get("content") or []
            for call in delta.get("tool_calls") or ():
                name, arguments = call["function"].get("name"), call["function"].get("arguments") or ""
                if name is not None:
                    assert call["index"] == len(answer.calls)
                    assert call["id"] not in call_ids
                    call_ids.add(call["id"])
                    answer.calls.append(Call(name, ""))
                assert call["index"] == len(answer.calls) - 1, "calls come one after another"
                answer.calls[-1] = Call(answer.calls[-1].name, answer.calls[-1].arguments + arguments)
            if choice.get("finish_reason"):
                answer.finish, answer.stop = choice["finish_reason"], choice.get("stop_reason")
        if event.get("usage"):
            answers[0].usage = numbers(event["usage"])
    assert len(ids) == 1
    return answers


def whole_message(body: dict[str, Any]) -> Answer:
    answer = Answer(finish=body["stop_reason"], stop=body["stop_sequence"], usage=numbers(body["usage"]))
    for block in body["content"]:
        if block["type"] == "thinking":
            answer.reasoning += block["thinking"]
        elif block["type"] == "text":
            answer.content += block["text"]
        else:
            assert block["input"] is not None
            answer.calls.append(Call(block["name"], json.dumps(block["input"])))
    return answer


async def streamed_message(stream: AsyncIterator[str]) -> Answer:
    answer, blocks, is_open, parts = Answer(), 0, "", []
    async for event in events(stream):
        match event["type"]:
            case "content_block_start":
                assert not is_open
                assert event["index"] == blocks
                is_open, blocks = event["content_block"]["type"], blocks + 1
                if is_open == "tool_use":
                    answer.calls.append(Call(event["content_block"]["name"], ""))
                    parts.append("")
            case "content_block_delta":
                assert is_open
                assert event["index"] == blocks - 1
                delta = event["delta"]
                match delta["type"]:
                    case "thinking_delta":
                        assert is_open == "thinking"
                        answer.reasoning += delta["thinking"]
                    case "text_delta":
                        assert is_open == "text"
                        answer.content += delta["text"]
                    case "input_json_delta":
                        assert is_open == "tool_use"
                        parts[-1] += delta["partial_json"]
            case "content_block_stop":
                assert is_open
                assert event["index"] == blocks - 1
                is_open = ""
            case "message_delta":
                assert not is_open
                assert answer.finish is None
                answer.finish, answer.stop = event["delta"]["stop_reason"], event["delta"]["stop_sequence"]
                answer.usage = numbers(event["usage"])
    answer.calls = [
        Call(call.name, json.dumps(partial(json_text))) for call, json_text in zip(answer.calls, parts, strict=True)
    ]
    return answer


def partial(text: str) -> object:
    """What Anthropic's SDK makes of a call's input while it comes."""
    import jiter

    return jiter.from_json(text.encode(), partial_mode=True) if text else {}


def whole_response(body: dict[str, Any]) -> Answer:
    cut = [place for place, item in enumerate(body["output"]) if item.get("status") == "incomplete"]
    # The last item and no other; there is none where a call was cut before it is reported.
    assert cut == [*range(len(body["output"]))][-1:] * (body["status"] == "incomplete")
    answer = Answer(usage=numbers(body["usage"]), is_cut=bool(cut))
    for item in body["output"]:
        match item["type"]:
            case "reasoning":
                answer.reasoning += item["content"][0]["text"]
            case "message":
                answer.content += item["content"][0]["text"]
            case "function_call":
                answer.calls.append(Call(item["name"], item["arguments"]))
            case "custom_tool_call":
                answer.calls.append(Call(item["name"], item["input"]))
    return answer


async def streamed_response(stream: AsyncIterator[Any]) -> Answer:  # noqa: C901  # one case for each event
    """Deltas, done events and the final response must say the same."""
    said, done, added, items, final = Answer(), Answer(), [], [], None
    sequence = 0
    async for model in stream:
        event = model.model_dump()
        assert event["sequence_number"] == sequence
        sequence += 1
        match event["type"]:
            case "response.output_item.added":
                assert event["output_index"] == len(added)
                added.append(event["item"]["id"])
                if event["item"]["type"] in ("function_call", "custom_tool_call"):
                    said.calls.append(Call(event["item"]["name"], ""))
            case "response.output_text.delta":
                assert event["item_id"] == added[-1]
                said.content += event["delta"]
            case "response.reasoning_text.delta":
                assert event["item_id"] == added[-1]
                said.reasoning += event["delta"]
            case "response.function_call_arguments.delta" | "response.custom_tool_call_input.delta":
                assert event["item_id"] == added[-1]
                assert event["output_index"] == len(added) - 1
                said.calls[-1] = Call(said.calls[-1].name, said.calls[-1].arguments + event["delta"])
            case "response.output_text.done":
                done.content += event["text"]
            case "response.reasoning_text.done":
                done.reasoning += event["text"]
            case "response.function_call_arguments.done":
                done.calls.append(Call(event["name"], event["arguments"]))
            case "response.custom_tool_call_input.done":
                done.calls.append(Call(said.calls[-1].name, event["input"]))
            case "response.output_item.done":
                items.append(event["item"])
            case "response.completed" | "response.incomplete":
                final = event["response"]
    assert final is not None
    assert said == done
    assert [item["id"] for item in final["output"]] == added
    assert items == final["output"]
    answer = whole_response(final)
    assert (answer.reasoning, answer.content, answer.calls) == (said.reasoning, said.content, said.calls)
    return answer
