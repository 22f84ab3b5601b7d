"""`claude-agent-sdk` with the Claude Code that it brings: one turn, one with a tool of its own, no such model."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from claude_agent_sdk import (
    AssistantMessage,
    ClaudeAgentOptions,
    ResultMessage,
    TextBlock,
    ThinkingBlock,
    ToolUseBlock,
    create_sdk_mcp_server,
    query,
    tool,
)
from common import KEY, MODEL, PLAIN, SERVICE, SKIES, SUM, report


@tool("get_weather", "The weather of a city.", {"city": str})
async def get_weather(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": SKIES[arguments["city"]]}]}


def options(model: str = MODEL) -> ClaudeAgentOptions:
    return ClaudeAgentOptions(
        model=model,
        max_turns=4,
        setting_sources=[],
        mcp_servers={"here": create_sdk_mcp_server("here", tools=[get_weather])},
        allowed_tools=["mcp__here__get_weather"],
        env={
            "ANTHROPIC_BASE_URL": SERVICE,
            "ANTHROPIC_AUTH_TOKEN": KEY,
            "ANTHROPIC_SMALL_FAST_MODEL": MODEL,
            "CLAUDE_CODE_MAX_RETRIES": "0",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "HOME": os.environ["HOME"],
        },
    )


async def turn(text: str, model: str = MODEL) -> list[Any]:
    """What the assistant says block by block, and the result."""
    said: list[Any] = []
    ended: list[Any] = []
    try:
        async for message in query(prompt=text, options=options(model)):
            if isinstance(message, AssistantMessage):
                for block in message.content:
                    if isinstance(block, TextBlock):
                        said.append(["text", block.text])
                    elif isinstance(block, ThinkingBlock):
                        said.append(["thinking", block.thinking])
                    elif isinstance(block, ToolUseBlock):
                        said.append(["tool_use", block.name, block.input])
            elif isinstance(message, ResultMessage):
                ended = [message.subtype, message.is_error, message.result]
    except Exception as error:  # noqa: BLE001 - which one it is, is what is asked
        ended.append(type(error).__name__)
    return [said, ended]


async def main() -> None:
    report(
        plain=await turn(PLAIN),
        reasoned=await turn(SUM),
        one_call=await turn("Use the tool for the weather of Paris."),
        no_model=await turn(PLAIN, "no-such-model"),
    )


if __name__ == "__main__":
    asyncio.run(main())
