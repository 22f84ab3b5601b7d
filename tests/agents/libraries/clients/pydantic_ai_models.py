"""`pydantic-ai`: its models for chat completions, responses and Anthropic's Messages."""

from __future__ import annotations

import asyncio
from typing import Any

from anthropic import AsyncAnthropic
from common import (
    COMPARE,
    KEY,
    MODEL,
    OPENAI,
    PERSON,
    PERSON_CALL,
    PLAIN,
    SERVICE,
    SKIES,
    SUM,
    TOO_LONG,
    WEATHER,
    report,
)
from openai import AsyncOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent, ModelHTTPError, NativeOutput
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider


class Person(BaseModel):
    name: str
    age: int


def get_weather(city: str) -> str:
    """The weather of a city."""
    return SKIES[city]


def parts(result: Any) -> list[list[str]]:
    """The parts of each answer."""
    return [
        [part.part_kind for part in message.parts] for message in result.all_messages() if message.kind == "response"
    ]


async def streamed(agent: Any, question: str) -> list[Any]:
    async with agent.run_stream(question) as result:
        text = [delta async for delta in result.stream_text(delta=True)]
        return ["".join(text), parts(result), result.usage.output_tokens > 0]


async def refusals(make: Any) -> dict[str, Any]:
    refused: dict[str, Any] = {}
    for name, model, settings, text in (
        ("bad_value", MODEL, {"max_tokens": -1}, PLAIN),
        ("no_model", "no-such-model", {}, PLAIN),
        ("too_long", MODEL, {}, TOO_LONG),
    ):
        try:
            await Agent(make(model), model_settings=settings).run(text)
        except ModelHTTPError as error:
            body: Any = error.body
            refused[name] = [type(error).__name__, error.status_code, body.get("error", body)["message"]]
    return refused


async def facts(make: Any, known: str = MODEL) -> dict[str, Any]:
    """`known` is a name that the library believes capable of native structured output."""
    agent = Agent(make(MODEL), instructions="Be brief.", tools=[get_weather])
    reasoned = await agent.run(SUM)
    one = await agent.run(WEATHER)
    two = await agent.run(COMPARE)
    return {
        "plain": (await agent.run(PLAIN)).output,
        "reasoned": [parts(reasoned), reasoned.output],
        "streamed": await streamed(agent, SUM),
        "streamed_calls": await streamed(agent, COMPARE),
        "one_call": [parts(one), one.output],
        "two_calls": [parts(two), two.output],
        "structured": {
            "native": repr((await Agent(make(known), output_type=NativeOutput(Person)).run(PERSON)).output),
            "tool": repr((await Agent(make(MODEL), output_type=Person).run(PERSON_CALL)).output),
        },
        "refusals": await refusals(make),
    }


async def main() -> None:
    openai = OpenAIProvider(openai_client=AsyncOpenAI(base_url=OPENAI, api_key=KEY, max_retries=0))
    anthropic = AnthropicProvider(anthropic_client=AsyncAnthropic(base_url=SERVICE, api_key=KEY, max_retries=0))
    report(
        chat=await facts(lambda name: OpenAIChatModel(name, provider=openai)),
        responses=await facts(lambda name: OpenAIResponsesModel(name, provider=openai)),
        anthropic=await facts(lambda name: AnthropicModel(name, provider=anthropic), "claude-sonnet-4-5"),
    )


if __name__ == "__main__":
    asyncio.run(main())
