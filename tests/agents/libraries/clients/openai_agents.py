"""`openai-agents`: both of its models; a whole run with tools, streamed, structured, and its errors."""

from __future__ import annotations

import asyncio
from typing import Any

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from common import COMPARE, KEY, MODEL, OPENAI, PERSON, PLAIN, SKIES, SUM, TOO_LONG, WEATHER, failure, report
from openai import APIStatusError, AsyncOpenAI
from pydantic import BaseModel


class Person(BaseModel):
    name: str
    age: int


@function_tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    return SKIES[city]


def items(result: Any) -> list[str]:
    return [type(item).__name__ for item in result.new_items]


async def refusals(model: Any, nobody: Any) -> dict[str, Any]:
    refused: dict[str, Any] = {}
    for name, agent, text in (
        ("bad_value", Agent(name="a", model=model, model_settings=ModelSettings(temperature=9)), PLAIN),
        ("no_model", Agent(name="a", model=nobody), PLAIN),
        ("too_long", Agent(name="a", model=model), TOO_LONG),
    ):
        try:
            await Runner.run(agent, text)
        except APIStatusError as error:
            refused[name] = [*failure(error), error.code]
    return refused


async def facts(model: Any, nobody: Any) -> dict[str, Any]:
    agent = Agent(name="a", instructions="Be brief.", model=model, tools=[get_weather])
    plain = await Runner.run(agent, PLAIN)
    reasoned = await Runner.run(agent, SUM)
    one = await Runner.run(agent, WEATHER)
    two = await Runner.run(agent, COMPARE)
    streaming = Runner.run_streamed(agent, COMPARE)
    events = {event.type async for event in streaming.stream_events()}
    person = await Runner.run(Agent(name="a", model=model, output_type=Person), PERSON)
    again = await Runner.run(agent, [*two.to_input_list(), {"role": "user", "content": "And then?"}])
    return {
        "plain": plain.final_output,
        "reasoned": [items(reasoned), reasoned.final_output],
        "one_call": [items(one), one.final_output],
        "two_calls": [items(two), two.final_output],
        "streamed": [sorted(events), items(streaming), streaming.final_output],
        "structured": repr(person.final_output),
        "history_again": again.final_output,
        "usage_is_counted": two.context_wrapper.usage.requests == 2 and two.context_wrapper.usage.output_tokens > 0,
        "refusals": await refusals(model, nobody),
    }


async def main() -> None:
    set_tracing_disabled(disabled=True)
    async with AsyncOpenAI(base_url=OPENAI, api_key=KEY, max_retries=0) as client:
        kinds = {"chat": OpenAIChatCompletionsModel, "responses": OpenAIResponsesModel}
        report(
            **{
                name: await facts(kind(MODEL, openai_client=client), kind("no-such-model", openai_client=client))
                for name, kind in kinds.items()
            }
        )


if __name__ == "__main__":
    asyncio.run(main())
