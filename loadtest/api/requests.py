"""Request bodies for the three APIs. Those of chat and completions have the same fields as vLLM's benchmark sends.

Bodies are encoded before a request's clock starts: encoding 32 prompts of 32 KB in one burst would add 10 ms to TTFT.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

import msgspec

from loadtest.api.event_parser import EventParser, parse_messages, parse_openai
from loadtest.data.prompt import Json, Prompt


class Api(Enum):
    """The protocol of a run; the values are those of `--api`."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    MESSAGES = "messages"


PATHS = {
    Api.CHAT: "/v1/chat/completions",
    Api.COMPLETIONS: "/v1/completions",
    Api.MESSAGES: "/v1/messages",
}
BACKENDS = {Api.CHAT: "openai-chat", Api.COMPLETIONS: "openai", Api.MESSAGES: "anthropic-messages"}
"""vLLM's names in result files."""
PARSERS: dict[Api, EventParser] = {
    Api.CHAT: parse_openai,
    Api.COMPLETIONS: parse_openai,
    Api.MESSAGES: parse_messages,
}


@dataclass(frozen=True)
class BodySpec:
    """The fields that all request bodies of a run share."""

    api: Api
    model: str
    ignore_eos: bool = False
    extra: Mapping[str, Json] = field(default_factory=dict)
    """`--extra-body` and sampling parameters. They override the defaults; a prompt's own extra fields override them."""


def encode_body(spec: BodySpec, prompt: Prompt, history: Sequence[Mapping[str, Json]] = ()) -> bytes:
    """The JSON body of one request; `history` is the conversation before it."""
    body = _BUILDERS[spec.api](spec, prompt, history)
    if spec.ignore_eos:
        body["ignore_eos"] = True
    body.update(spec.extra)
    body.update(prompt.extra)
    if spec.api is Api.MESSAGES:
        _anthropic_tools(body)
    return msgspec.json.encode(body)


def _anthropic_tools(body: dict[str, Json]) -> None:
    """Convert tools and tool choice from OpenAI's format; tools that are in Anthropic's already are left alone."""
    tools = body.get("tools")
    if isinstance(tools, list) and all(isinstance(tool, dict) and "function" in tool for tool in tools):
        body["tools"] = [
            {"name": f["name"], "description": f.get("description", ""), "input_schema": f.get("parameters", {})}
            for f in (tool["function"] for tool in tools)
        ]
        if body.get("tool_choice") == "auto":
            body["tool_choice"] = {"type": "auto"}


def new_messages(prompt: Prompt) -> list[Mapping[str, Json]]:
    """The prompt as chat messages in the format of vLLM's benchmark: content parts, images after the text."""
    if prompt.messages:
        return list(prompt.messages)
    parts: list[Json] = [{"type": "text", "text": prompt.text}]
    parts += [{"type": "image_url", "image_url": {"url": url}} for url in prompt.images]
    return [{"role": "user", "content": parts}]


def _chat(spec: BodySpec, prompt: Prompt, history: Sequence[Mapping[str, Json]]) -> dict[str, Json]:
    return {
        "model": spec.model,
        "messages": [*history, *new_messages(prompt)],
        "max_completion_tokens": prompt.output_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def _completions(spec: BodySpec, prompt: Prompt, _history: Sequence[Mapping[str, Json]]) -> dict[str, Json]:
    return {
        "model": spec.model,
        "prompt": list(prompt.token_ids) or prompt.text,
        "repetition_penalty": 1.0,
        "max_tokens": prompt.output_tokens,
        "logprobs": None,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def _messages(spec: BodySpec, prompt: Prompt, history: Sequence[Mapping[str, Json]]) -> dict[str, Json]:
    messages: list[Json] = [*history]
    if prompt.messages:
        messages += prompt.messages
    else:
        parts: list[Json] = [{"type": "text", "text": prompt.text}]
        parts += [_anthropic_image(url) for url in prompt.images]
        messages.append({"role": "user", "content": parts})
    return {"model": spec.model, "messages": messages, "max_tokens": prompt.output_tokens, "stream": True}


def _anthropic_image(data_url: str) -> dict[str, Json]:
    media_type, _, data = data_url.removeprefix("data:").partition(";base64,")
    return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}}


_BUILDERS: dict[Api, Callable[[BodySpec, Prompt, Sequence[Mapping[str, Json]]], dict[str, Json]]] = {
    Api.CHAT: _chat,
    Api.COMPLETIONS: _completions,
    Api.MESSAGES: _messages,
}
