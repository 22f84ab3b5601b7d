"""`openai`, responses: plain, reasoning, streamed, `stream()` and `parse()`, tools, errors, async."""

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
from openai import APIStatusError, AsyncOpenAI, OpenAI
from pydantic import BaseModel


class Person(BaseModel):
    name: str
    age: int


TOOL: Any = {"type": "function", "name": "get_weather", "parameters": WEATHER_SCHEMA, "strict": True}
client = OpenAI(base_url=OPENAI, api_key=KEY, max_retries=0)


def items(response: Any) -> list[Any]:
    shown = []
    for item in response.output:
        if item.type == "reasoning":
            shown.append(["reasoning", "".join(part.text for part in item.content or [])])
        elif item.type == "function_call":
            shown.append(["function_call", item.name, item.arguments])
        else:
            shown.append([item.type, "".join(part.text for part in item.content)])
    return shown


def loop(question: str) -> list[Any]:
    history: list[Any] = [{"role": "user", "content": question}]
    first = client.responses.create(model=MODEL, input=history, tools=[TOOL])
    history += first.output
    for item in first.output:
        if item.type == "function_call":
            sky = SKIES[json.loads(item.arguments)["city"]]
            history.append({"type": "function_call_output", "call_id": item.call_id, "output": sky})
    last = client.responses.create(model=MODEL, input=history, tools=[TOOL])
    return [first.status, items(first), last.status, items(last), last.output_text]


def kinds(events: Any) -> list[str]:
    seen: list[str] = []
    for event in events:
        if not seen or seen[-1] != event.type:
            seen.append(event.type)
    return seen


def helper(question: str, **options: Any) -> tuple[list[str], Any]:
    with client.responses.stream(model=MODEL, input=question, **options) as stream:
        return kinds(stream), stream.get_final_response()


def helpers() -> dict[str, Any]:
    plain_kinds, plain = helper(SUM)
    call_kinds, called = helper(COMPARE, tools=[TOOL])
    _, parsed = helper(PERSON, text_format=Person)
    return {
        "plain": [plain_kinds, plain.status, items(plain), plain.usage.output_tokens > 0],
        "calls": [call_kinds, called.status, items(called)],
        "parsed": repr(parsed.output_parsed),
    }


def refusals() -> dict[str, Any]:
    requests: dict[str, dict[str, Any]] = {
        "bad_value": {"model": MODEL, "input": PLAIN, "temperature": 9},
        "no_model": {"model": "no-such-model", "input": PLAIN},
        "too_long": {"model": MODEL, "input": TOO_LONG},
        "unknown_previous": {"model": MODEL, "input": PLAIN, "previous_response_id": "resp_0"},
    }
    refused: dict[str, Any] = {}
    for name, request in requests.items():
        for kind in (False, True):
            try:
                client.responses.create(**request, stream=kind)
            except APIStatusError as error:
                refused[f"{name}_streamed" if kind else name] = [*failure(error), error.code, error.type, error.param]
    return refused


async def asynchronous() -> list[Any]:
    async with AsyncOpenAI(base_url=OPENAI, api_key=KEY, max_retries=0) as other:
        whole = await other.responses.create(model=MODEL, input=PLAIN)
        stream = await other.responses.create(model=MODEL, input=PLAIN, stream=True)
        parts = [event.delta async for event in stream if event.type == "response.output_text.delta"]
        async with other.responses.stream(model=MODEL, input=SUM) as helped:
            final = await helped.get_final_response()
    return [whole.output_text, "".join(parts), final.output_text]


def main() -> None:
    whole = client.responses.create(model=MODEL, input=SUM)
    cut = client.responses.create(model=MODEL, input=SUM, max_output_tokens=3)
    parsed = client.responses.parse(model=MODEL, input=PERSON, text_format=Person)
    report(
        whole=[whole.object, whole.status, whole.model, items(whole), whole.output_text],
        cut=[cut.status, cut.incomplete_details and cut.incomplete_details.reason, cut.output_text],
        streamed=kinds(client.responses.create(model=MODEL, input=SUM, stream=True)),
        one_call=loop(WEATHER),
        two_calls=loop(COMPARE),
        parsed=repr(parsed.output_parsed),
        helpers=helpers(),
        asynchronous=asyncio.run(asynchronous()),
        refusals=refusals(),
    )


if __name__ == "__main__":
    main()
