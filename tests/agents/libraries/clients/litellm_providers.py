"""`litellm`: as `openai/`, `hosted_vllm/` and `anthropic/`, and its errors."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import litellm
from common import (
    COMPARE,
    KEY,
    MODEL,
    OPENAI,
    PERSON,
    PLAIN,
    SERVICE,
    SKIES,
    SUM,
    TOO_LONG,
    WEATHER,
    WEATHER_SCHEMA,
    report,
)
from pydantic import BaseModel

litellm.suppress_debug_info = True
litellm.telemetry = False


class Person(BaseModel):
    name: str
    age: int


TOOL: Any = {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER_SCHEMA}}


def ask(where: dict[str, str], question: str, **options: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}], "max_tokens": 2048, **where, **options}


def answer(message: Any) -> list[Any]:
    calls = [[call.function.name, json.loads(call.function.arguments)] for call in message.tool_calls or []]
    return [getattr(message, "reasoning_content", None), message.content, calls]


def loop(where: dict[str, str], question: str) -> list[Any]:
    request = ask(where, question, tools=[TOOL])
    first = litellm.completion(**request).choices[0]
    request["messages"].append(first.message)
    for call in first.message.tool_calls or []:
        sky = SKIES[json.loads(call.function.arguments)["city"]]
        request["messages"].append({"role": "tool", "tool_call_id": call.id, "content": sky})
    last = litellm.completion(**request).choices[0]
    return [first.finish_reason, answer(first.message), last.finish_reason, answer(last.message)]


def streamed(where: dict[str, str], question: str) -> list[Any]:
    stream = litellm.completion(
        **ask(where, question, tools=[TOOL], stream=True, stream_options={"include_usage": True})
    )
    whole = litellm.stream_chunk_builder(list(stream))
    return [whole.choices[0].finish_reason, answer(whole.choices[0].message), whole.usage.completion_tokens > 0]


async def asynchronous(where: dict[str, str]) -> str | None:
    return (await litellm.acompletion(**ask(where, PLAIN))).choices[0].message.content


def refusals(where: dict[str, str]) -> dict[str, Any]:
    refused: dict[str, Any] = {}
    for name, changed, text in (
        ("bad_value", {"max_tokens": -1}, PLAIN),
        ("no_model", {"model": where["model"].replace(MODEL, "no-such-model")}, PLAIN),
        ("too_long", {}, TOO_LONG),
    ):
        try:
            litellm.completion(**ask(where, text, **changed, num_retries=0, max_retries=0))
        except Exception as error:  # noqa: BLE001 - which one it is, is what is asked
            refused[name] = [type(error).__name__, getattr(error, "status_code", None)]
    return refused


async def facts(provider: str, base: str) -> dict[str, Any]:
    where = {"model": f"{provider}/{MODEL}", "api_base": base, "api_key": KEY}
    person = litellm.completion(**ask(where, PERSON, response_format=Person))
    return {
        "plain": answer(litellm.completion(**ask(where, PLAIN)).choices[0].message),
        "reasoned": answer(litellm.completion(**ask(where, SUM)).choices[0].message),
        "streamed": streamed(where, SUM),
        "streamed_calls": streamed(where, COMPARE),
        "asynchronous": await asynchronous(where),
        "one_call": loop(where, WEATHER),
        "two_calls": loop(where, COMPARE),
        "structured": person.choices[0].message.content,
        "refusals": refusals(where),
    }


async def main() -> None:
    report(
        openai=await facts("openai", OPENAI),
        hosted_vllm=await facts("hosted_vllm", OPENAI),
        anthropic=await facts("anthropic", SERVICE),
    )


if __name__ == "__main__":
    asyncio.run(main())
