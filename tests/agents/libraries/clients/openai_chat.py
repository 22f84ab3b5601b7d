"""`openai`, chat completions: plain, streamed, `stream()` and `parse()`, tools, errors; models; raw headers; async."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from common import (
    COMPARE,
    KEY,
    MODEL,
    OPENAI,
    PERSON,
    PLAIN,
    SKIES,
    SUM,
    TOO_LONG,
    WEATHER,
    WEATHER_SCHEMA,
    failure,
    report,
)
from openai import APIStatusError, AsyncOpenAI, OpenAI, pydantic_function_tool
from pydantic import BaseModel


class Person(BaseModel):
    name: str
    age: int


class get_weather(BaseModel):  # noqa: N801 - the tool's name
    city: str


TOOL: Any = {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER_SCHEMA}}
client = OpenAI(base_url=OPENAI, api_key=KEY, max_retries=0)


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def loop(question: str) -> list[Any]:
    """The calls of the first answer, and the answer to their results."""
    messages = user(question)
    first = client.chat.completions.create(model=MODEL, messages=messages, tools=[TOOL]).choices[0]
    calls = [(call.function.name, call.function.arguments) for call in first.message.tool_calls or []]
    messages.append(first.message)
    for call in first.message.tool_calls or []:
        city = json.loads(call.function.arguments)["city"]
        messages.append({"role": "tool", "tool_call_id": call.id, "content": SKIES[city]})
    last = client.chat.completions.create(model=MODEL, messages=messages, tools=[TOOL]).choices[0]
    return [first.finish_reason, calls, last.finish_reason, last.message.content]


def streamed() -> list[Any]:
    stream = client.chat.completions.create(
        model=MODEL, messages=user(SUM), stream=True, stream_options={"include_usage": True}
    )
    reasoning, text, usage = "", "", None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            reasoning += getattr(choice.delta, "reasoning", None) or ""
            text += choice.delta.content or ""
    return [reasoning, text, usage is not None and usage.completion_tokens > 0]


def helper(question: str, **options: Any) -> Any:
    with client.chat.completions.stream(model=MODEL, messages=user(question), **options) as stream:
        kinds = []
        for event in stream:
            if event.type not in kinds:
                kinds.append(event.type)
        return sorted(kinds), stream.get_final_completion().choices[0]


def helpers() -> dict[str, Any]:
    tools = [pydantic_function_tool(get_weather)]
    kinds, plain = helper(PLAIN)
    call_kinds, called = helper(COMPARE, tools=tools)
    parsed_kinds, parsed = helper(PERSON, response_format=Person)
    return {
        "stream": [kinds, plain.message.content],
        "stream_calls": [call_kinds, [repr(c.function.parsed_arguments) for c in called.message.tool_calls]],
        "stream_parsed": [parsed_kinds, repr(parsed.message.parsed)],
    }


def refusals() -> dict[str, Any]:
    requests: dict[str, dict[str, Any]] = {
        "bad_value": {"model": MODEL, "messages": user(PLAIN), "temperature": 9},
        "no_model": {"model": "no-such-model", "messages": user(PLAIN)},
        "too_long": {"model": MODEL, "messages": user(TOO_LONG)},
    }
    refused: dict[str, Any] = {}
    for name, request in requests.items():
        for kind in (False, True):
            try:
                client.chat.completions.create(**request, stream=kind)
            except APIStatusError as error:
                refused[f"{name}_streamed" if kind else name] = [*failure(error), error.code, error.type, error.param]
    return refused


async def asynchronous() -> list[Any]:
    async with AsyncOpenAI(base_url=OPENAI, api_key=KEY, max_retries=0) as other:
        whole = await other.chat.completions.create(model=MODEL, messages=user(PLAIN))
        stream = await other.chat.completions.create(model=MODEL, messages=user(PLAIN), stream=True)
        parts = [chunk.choices[0].delta.content or "" async for chunk in stream]
        async with other.chat.completions.stream(model=MODEL, messages=user(SUM)) as helped:
            final = await helped.get_final_completion()
    return [whole.choices[0].message.content, "".join(parts), final.choices[0].message.content]


def main() -> None:
    whole = client.chat.completions.create(model=MODEL, messages=user(SUM)).choices[0]
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=user(PLAIN))
    parsed = client.chat.completions.parse(model=MODEL, messages=user(PERSON), response_format=Person)
    report(
        whole=[whole.finish_reason, getattr(whole.message, "reasoning", None), whole.message.content],
        streamed=streamed(),
        one_call=loop(WEATHER),
        two_calls=loop(COMPARE),
        parsed=repr(parsed.choices[0].message.parsed),
        helpers=helpers(),
        completion=client.completions.create(model=MODEL, prompt=PLAIN).choices[0].text.strip()[:12],
        models=[client.models.list().data[0].id, client.models.retrieve("gpt-4o").id],
        request_ids=[raw.headers.get("x-request-id") == raw.parse()._request_id, bool(raw.headers.get("x-request-id"))],
        asynchronous=asyncio.run(asynchronous()),
        refusals=refusals(),
    )


if __name__ == "__main__":
    main()
