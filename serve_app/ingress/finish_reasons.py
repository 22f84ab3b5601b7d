"""Why the answers of a sampled request ended, as its client is told: read from what is sent to it.

Stop strings and tool calls end an answer in vLLM's API code and not in the engine, so no other place knows. Only
requests that have a trace pay for it.
"""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import Final

from starlette.types import Message, Send

from serve_app.ingress.error_format import ApiStyle

FIELDS: Final = MappingProxyType(
    {
        ApiStyle.OPENAI: re.compile(rb'"finish_reason"\s?:\s?"(\w+)"'),
        ApiStyle.ANTHROPIC: re.compile(rb'"stop_reason"\s?:\s?"(\w+)"'),
    }
)
"""The field with the reason. In an answer's text the quotes of such a field would have backslashes before them."""

MOST_REASONS = 128


def noting(send: Send, api: ApiStyle, found: list[str]) -> Send:
    """`send`, with the reasons put into `found` on the way, in their order in the answer."""
    field = FIELDS[api]

    async def noted(message: Message) -> None:
        if body := message.get("body", b""):
            found.extend(one.decode() for one in field.findall(body)[: MOST_REASONS - len(found)])
        await send(message)

    return noted
