"""`langchain-anthropic`: `ChatAnthropic`."""

from __future__ import annotations

from typing import Any

from common import (
    COMPARE,
    KEY,
    MODEL,
    PERSON,
    PERSON_CALL,
    PLAIN,
    SERVICE,
    SKIES,
    SUM,
    TOO_LONG,
    WEATHER,
    failure,
    report,
)
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from pydantic import BaseModel


class Person(BaseModel):
    """A person."""

    name: str
    age: int


@tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    return SKIES[city]


OPTIONS: dict[str, Any] = {"model": MODEL, "base_url": SERVICE, "api_key": KEY, "max_retries": 0, "max_tokens": 2048}
model = ChatAnthropic(**OPTIONS)


def kinds(message: Any) -> list[str]:
    return sorted({block["type"] for block in message.content_blocks})


def loop(question: str) -> list[Any]:
    bound = model.bind_tools([get_weather])
    messages: list[Any] = [HumanMessage(question)]
    first = bound.invoke(messages)
    messages.append(first)
    messages += [ToolMessage(SKIES[call["args"]["city"]], tool_call_id=call["id"]) for call in first.tool_calls]
    return [[[call["name"], call["args"]] for call in first.tool_calls], bound.invoke(messages).text]


def streamed(question: str) -> list[Any]:
    whole = None
    for chunk in model.bind_tools([get_weather]).stream(question):
        whole = chunk if whole is None else whole + chunk
    assert whole is not None
    calls = [[call["name"], call["args"]] for call in whole.tool_calls]
    return [whole.text, calls, kinds(whole), bool((whole.usage_metadata or {}).get("output_tokens"))]


def refusals() -> dict[str, Any]:
    refused: dict[str, Any] = {}
    for name, changed, text in (
        ("bad_value", {"max_tokens": -1}, PLAIN),
        ("no_model", {"model": "no-such-model"}, PLAIN),
        ("too_long", {}, TOO_LONG),
    ):
        try:
            ChatAnthropic(**{**OPTIONS, **changed}).invoke(text)
        except Exception as error:  # noqa: BLE001 - which one it is, is what is asked
            body = getattr(error, "body", None)
            refused[name] = [*failure(error)[:2], body["error"]["message"] if body else str(error)]
    return refused


def main() -> None:
    reasoned = model.invoke(SUM)
    report(
        plain=model.invoke(PLAIN).text,
        reasoned=[kinds(reasoned), reasoned.text],
        streamed=streamed(SUM),
        streamed_calls=streamed(COMPARE),
        one_call=loop(WEATHER),
        two_calls=loop(COMPARE),
        structured={
            method: repr(model.with_structured_output(Person, method=method).invoke(question))
            for method, question in (("json_schema", PERSON), ("function_calling", PERSON_CALL))
        },
        count=model.get_num_tokens_from_messages([HumanMessage(PLAIN)]),
        refusals=refusals(),
    )


if __name__ == "__main__":
    main()
