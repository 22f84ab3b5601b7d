"""`langchain-openai`: `ChatOpenAI` over chat completions and over responses."""

from __future__ import annotations

import asyncio
from typing import Any

from common import (
    COMPARE,
    KEY,
    MODEL,
    OPENAI,
    PERSON,
    PERSON_CALL,
    PLAIN,
    SKIES,
    SUM,
    TOO_LONG,
    WEATHER,
    failure,
    report,
)
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel


class Person(BaseModel):
    """A person."""

    name: str
    age: int


@tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    return SKIES[city]


def loop(model: Any, question: str) -> list[Any]:
    bound = model.bind_tools([get_weather])
    messages: list[Any] = [HumanMessage(question)]
    first = bound.invoke(messages)
    messages.append(first)
    messages += [ToolMessage(SKIES[call["args"]["city"]], tool_call_id=call["id"]) for call in first.tool_calls]
    return [[[call["name"], call["args"]] for call in first.tool_calls], bound.invoke(messages).text]


def streamed(model: Any, question: str) -> list[Any]:
    whole = None
    for chunk in model.bind_tools([get_weather]).stream(question):
        whole = chunk if whole is None else whole + chunk
    assert whole is not None
    kinds = sorted({block["type"] for block in whole.content_blocks})
    calls = [[call["name"], call["args"]] for call in whole.tool_calls]
    return [whole.text, calls, kinds, bool((whole.usage_metadata or {}).get("output_tokens"))]


def refusals(options: dict[str, Any]) -> dict[str, Any]:
    refused: dict[str, Any] = {}
    for name, changed, text in (
        ("bad_value", {"temperature": 9}, PLAIN),
        ("no_model", {"model": "no-such-model"}, PLAIN),
        ("too_long", {}, TOO_LONG),
    ):
        try:
            ChatOpenAI(**{**options, **changed}).invoke(text)
        except Exception as error:  # noqa: BLE001 - which one it is, is what is asked
            refused[name] = failure(error)
    return refused


async def facts(**options: Any) -> dict[str, Any]:
    options = {"model": MODEL, "base_url": OPENAI, "api_key": KEY, "max_retries": 0, **options}
    model = ChatOpenAI(**options)
    reasoned = model.invoke(SUM)
    return {
        "plain": model.invoke(PLAIN).text,
        "reasoned": [sorted({block["type"] for block in reasoned.content_blocks}), reasoned.text],
        "asynchronous": (await model.ainvoke(PLAIN)).text,
        "streamed": streamed(model, SUM),
        "streamed_calls": streamed(model, COMPARE),
        "one_call": loop(model, WEATHER),
        "two_calls": loop(model, COMPARE),
        "structured": {
            method: repr(model.with_structured_output(Person, method=method).invoke(question))
            for method, question in (("json_schema", PERSON), ("json_mode", PERSON), ("function_calling", PERSON_CALL))
        },
        "refusals": refusals(options),
    }


async def main() -> None:
    report(chat=await facts(), responses=await facts(use_responses_api=True))


if __name__ == "__main__":
    asyncio.run(main())
