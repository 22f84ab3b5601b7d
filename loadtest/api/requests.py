"""Request bodies for the three APIs. Field by field the chat and completions bodies are those of vLLM's benchmark.

Bodies are encoded before a request's clock starts: encoding 32 prompts of 32 KB in one burst would add 10 ms to TTFT.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

import msgspec

from loadtest.api.responses import Reader, read_messages, read_openai
from loadtest.data.prompt import Json, Prompt


class Api(Enum):
    """Which protocol to speak; the value is what `--api` takes."""

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
READERS: dict[Api, Reader] = {
    Api.CHAT: read_openai,
    Api.COMPLETIONS: read_openai,
    Api.MESSAGES: read_messages,
}


@dataclass(frozen=True)
class BodyRules:
    """What is the same in every body of a run."""

    api: Api
    model: str
    ignore_eos: bool = False
    extra: Mapping[str, Json] = field(default_factory=dict)
    """`--extra-body` and sampling parameters; a prompt's own extra fields win."""


def encode_body(rules: BodyRules, prompt: Prompt, history: Sequence[Mapping[str, Json]] = ()) -> bytes:
    """The JSON body of one request; `history` is the conversation before it."""
    body = _BUILDERS[rules.api](rules, prompt, history)
    if rules.ignore_eos:
        body["ignore_eos"] = True
    body.update(rules.extra)
    body.update(prompt.extra)
    if rules.api is Api.MESSAGES:
        _anthropic_tools(body)
    return msgspec.json.encode(body)


def _anthropic_tools(body: dict[str, Json]) -> None:
    """OpenAI's tools in Anthropic's words."""
    tools = body.get("tools")
    if isinstance(tools, list) and all(isinstance(tool, dict) and "function" in tool for tool in tools):
        body["tools"] = [
            {"name": f["name"], "description": f.get("description", ""), "input_schema": f.get("parameters", {})}
            for f in (tool["function"] for tool in tools)
        ]
        if body.get("tool_choice") == "auto":
            body["tool_choice"] = {"type": "auto"}


def new_messages(prompt: Prompt) -> list[Mapping[str, Json]]:
    """The prompt as chat messages, in the shape of vLLM's benchmark: content parts, images after the text."""
    if prompt.messages:
        return list(prompt.messages)
    parts: list[Json] = [{"type": "text", "text": prompt.text}]
    parts += [{"type": "image_url", "image_url": {"url": url}} for url in prompt.images]
    return [{"role": "user", "content": parts}]


def _chat(rules: BodyRules, prompt: Prompt, history: Sequence[Mapping[str, Json]]) -> dict[str, Json]:
    return {
        "model": rules.model,
        "messages": [*history, *new_messages(prompt)],
        "max_completion_tokens": prompt.output_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def _completions(rules: BodyRules, prompt: Prompt, _history: Sequence[Mapping[str, Json]]) -> dict[str, Json]:
    return {
        "model": rules.model,
        "prompt": list(prompt.token_ids) or prompt.text,
        "repetition_penalty": 1.0,
        "max_tokens": prompt.output_tokens,
        "logprobs": None,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def _messages(rules: BodyRules, prompt: Prompt, history: Sequence[Mapping[str, Json]]) -> dict[str, Json]:
    messages: list[Json] = [*history]
    if prompt.messages:
        messages += prompt.messages
    else:
        parts: list[Json] = [{"type": "text", "text": prompt.text}]
        parts += [_anthropic_image(url) for url in prompt.images]
        messages.append({"role": "user", "content": parts})
    return {"model": rules.model, "messages": messages, "max_tokens": prompt.output_tokens, "stream": True}


def _anthropic_image(data_url: str) -> dict[str, Json]:
    media, _, data = data_url.removeprefix("data:").partition(";base64,")
    return {"type": "image", "source": {"type": "base64", "media_type": media, "data": data}}


_BUILDERS: dict[Api, Callable[[BodyRules, Prompt, Sequence[Mapping[str, Json]]], dict[str, Json]]] = {
    Api.CHAT: _chat,
    Api.COMPLETIONS: _completions,
    Api.MESSAGES: _messages,
}
