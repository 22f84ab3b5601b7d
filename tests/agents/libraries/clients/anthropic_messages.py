"""`anthropic`: plain, streamed, `stream()`, thinking, tools, `parse`, `beta`, counts, models, errors, async."""

from __future__ import annotations

import asyncio
from typing import Any

from anthropic import Anthropic, APIStatusError, AsyncAnthropic, beta_tool
from common import COMPARE, KEY, MODEL, PERSON, PLAIN, SERVICE, SKIES, SUM, TOO_LONG, WEATHER, WEATHER_SCHEMA, report
from pydantic import BaseModel


class Person(BaseModel):
    name: str
    age: int


TOOL: Any = {"name": "get_weather", "description": "The weather.", "input_schema": WEATHER_SCHEMA}
client = Anthropic(base_url=SERVICE, api_key=KEY, max_retries=0)


def asking(text: str, **options: Any) -> dict[str, Any]:
    return {"model": MODEL, "max_tokens": 2048, "messages": [{"role": "user", "content": text}], **options}


def blocks(message: Any) -> list[Any]:
    """The answer's blocks: type and what is in it."""
    shown = {"text": "text", "thinking": "thinking", "tool_use": "input"}
    return [[block.type, getattr(block, shown[block.type])] for block in message.content]


def loop(question: str) -> list[Any]:
    request = asking(question, tools=[TOOL])
    first = client.messages.create(**request)
    results = [
        {"type": "tool_result", "tool_use_id": block.id, "content": SKIES[block.input["city"]]}
        for block in first.content
        if block.type == "tool_use"
    ]
    request["messages"] += [{"role": "assistant", "content": first.content}, {"role": "user", "content": results}]
    last = client.messages.create(**request)
    return [first.stop_reason, blocks(first), last.stop_reason, blocks(last)]


def streamed() -> list[Any]:
    kinds: list[str] = []
    for event in client.messages.create(**asking(SUM), stream=True):
        if not kinds or kinds[-1] != event.type:
            kinds.append(event.type)
    return kinds


def helpers() -> dict[str, Any]:
    with client.messages.stream(**asking(COMPARE, tools=[TOOL])) as stream:
        text = "".join(stream.text_stream)
        called = stream.get_final_message()
    with client.messages.stream(**asking(PERSON), output_format=Person) as stream:
        parsed = stream.get_final_message()
    with client.beta.messages.stream(**asking(SUM), betas=["interleaved-thinking-2025-05-14"]) as beta_stream:
        kinds = sorted({event.type for event in beta_stream})
        thought = beta_stream.get_final_message()
    return {
        "calls": [text, called.stop_reason, blocks(called)],
        "parsed": repr(parsed.parsed_output),
        "beta": [kinds, thought.stop_reason, blocks(thought)],
    }


def tool_runner() -> list[Any]:
    """The SDK's own loop, whole and streamed."""
    asked: list[str] = []

    @beta_tool
    def get_weather(city: str) -> str:
        """The weather of a city.

        Args:
            city: its name
        """
        asked.append(city)
        return SKIES[city]

    whole = client.beta.messages.tool_runner(**asking(COMPARE, tools=[get_weather])).until_done()
    streams = client.beta.messages.tool_runner(**asking(COMPARE, tools=[get_weather]), stream=True)
    last = [stream.get_final_message() for stream in streams][-1]
    return [asked, blocks(whole), blocks(last)]


def refusals() -> dict[str, Any]:
    requests = {
        "bad_value": asking(PLAIN, extra_body={"temperature": 9}),
        "no_model": {**asking(PLAIN), "model": "no-such-model"},
        "too_long": asking(TOO_LONG),
    }
    refused: dict[str, Any] = {}
    for name, request in requests.items():
        for kind in (False, True):
            try:
                client.messages.create(**request, stream=kind)
            except APIStatusError as error:
                sentence = error.body["error"]["message"]  # type: ignore[index] # the SDK's own words hold the request's id
                facts = [type(error).__name__, error.status_code, error.type, sentence, bool(error.request_id)]
                refused[f"{name}_streamed" if kind else name] = facts
    return refused


async def asynchronous() -> list[Any]:
    async with AsyncAnthropic(base_url=SERVICE, api_key=KEY, max_retries=0) as other:
        whole = await other.messages.create(**asking(PLAIN))
        async with other.messages.stream(**asking(PLAIN)) as stream:
            parts = [text async for text in stream.text_stream]
        count = await other.messages.count_tokens(model=MODEL, messages=asking(PLAIN)["messages"])
    return [blocks(whole), "".join(parts), count.input_tokens]


def main() -> None:
    whole = client.messages.create(**asking(PLAIN))
    thinking = client.messages.create(**asking(SUM, thinking={"type": "enabled", "budget_tokens": 1024}))
    raw = client.messages.with_raw_response.create(**asking(PLAIN))
    count = client.messages.count_tokens(model=MODEL, messages=asking(PLAIN)["messages"])
    beta_count = client.beta.messages.count_tokens(model=MODEL, messages=asking(PLAIN)["messages"], tools=[TOOL])
    report(
        whole=[whole.type, whole.role, whole.model, whole.stop_reason, blocks(whole)],
        usage_is_counted=whole.usage.input_tokens == count.input_tokens,
        thinking=blocks(thinking),
        streamed=streamed(),
        one_call=loop(WEATHER),
        two_calls=loop(COMPARE),
        parsed=repr(client.messages.parse(**asking(PERSON), output_format=Person).parsed_output),
        helpers=helpers(),
        tool_runner=tool_runner(),
        counts=[count.input_tokens, beta_count.input_tokens > count.input_tokens],
        models=[[model.id for model in client.models.list()], client.models.retrieve("claude-sonnet-4-5").id],
        request_id=raw.headers.get("request-id") == raw.parse()._request_id,
        asynchronous=asyncio.run(asynchronous()),
        refusals=refusals(),
    )


if __name__ == "__main__":
    main()
