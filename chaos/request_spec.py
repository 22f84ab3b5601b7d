"""Draws the requests of a run from a seed, so that each can be sent again and must get the same answer.

Requests sample greedily. Plain text uses `ignore_eos` where the API has it, so that an answer's length is known;
Anthropic's messages end where the model ends them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import msgspec

from loadtest.data.prompt import Json


class ChaosApi(Enum):
    """An API, by its name in `--apis`. The load test's `Api` has no responses API, so chaos has its own."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    MESSAGES = "messages"
    RESPONSES = "responses"


class PromptKind(Enum):
    """What a request makes the model do, by its name in `--kinds`."""

    TEXT = "text"
    REASONING = "reasoning"
    TOOL = "tool"
    JSON = "json"
    IMAGE = "image"


PATHS = {
    ChaosApi.CHAT: "/v1/chat/completions",
    ChaosApi.COMPLETIONS: "/v1/completions",
    ChaosApi.MESSAGES: "/v1/messages",
    ChaosApi.RESPONSES: "/v1/responses",
}

ABILITIES = {
    ChaosApi.CHAT: frozenset(PromptKind),
    ChaosApi.COMPLETIONS: frozenset({PromptKind.TEXT}),
    ChaosApi.MESSAGES: frozenset(PromptKind) - {PromptKind.JSON},
    ChaosApi.RESPONSES: frozenset(PromptKind),
}
"""The kinds that each API supports. Other kinds become text."""

LONG_EVERY = 20

WORDS = "river lantern orchard granite harbour velvet thunder meadow copper willow comet saddle ember lagoon".split()

WEATHER: Mapping[str, Json] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
    "required": ["city"],
}
PERSON: Mapping[str, Json] = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class RequestSpec:
    """One distinct request."""

    number: int
    api: ChaosApi
    kind: PromptKind
    max_tokens: int
    stream: bool
    body: bytes

    @property
    def path(self) -> str:
        """The URL path of its API."""
        return PATHS[self.api]


@dataclass(frozen=True)
class RequestRules:
    """What the requests of a run have in common."""

    model: str
    apis: Sequence[ChaosApi]
    kinds: Sequence[PromptKind]
    tokens: tuple[int, int]
    """Shortest and longest answer."""
    seed: int
    streams_only: bool = True
    """If False, every other request is not streamed."""
    long_tokens: int = 0
    """Output tokens of every twentieth request of each API; 0 for none."""


def draw_requests(rules: RequestRules, count: int) -> list[RequestSpec]:
    """`count` different requests: the APIs in turn, and for each API the kinds that it supports, in turn."""
    specs = []
    for number in range(count):
        rng = random.Random(f"{rules.seed}:{number}")
        api = rules.apis[number % len(rules.apis)]
        cycle = number // len(rules.apis)
        kind = rules.kinds[cycle % len(rules.kinds)]
        kind = kind if kind in ABILITIES[api] else PromptKind.TEXT
        max_tokens = rng.randint(*rules.tokens)
        # By cycle, not by request: otherwise one API would always be streamed and the next one never.
        stream = rules.streams_only or (cycle // len(rules.kinds)) % 2 == 0
        if rules.long_tokens and cycle % LONG_EVERY == 0:
            kind, max_tokens, stream = PromptKind.TEXT, rules.long_tokens, True
        body: dict[str, Json] = {"model": rules.model, "temperature": 0, "stream": stream}
        body |= _BODIES[api](kind, number, rng, max_tokens)
        if kind is PromptKind.TEXT and api is not ChaosApi.MESSAGES:
            body["ignore_eos"] = True
        if stream and api in (ChaosApi.CHAT, ChaosApi.COMPLETIONS):
            body["stream_options"] = {"include_usage": True}
        specs.append(RequestSpec(number, api, kind, max_tokens, stream, msgspec.json.encode(body)))
    return specs


def _prompt(kind: PromptKind, number: int, rng: random.Random) -> str:
    first, second = rng.sample(WORDS, 2)
    first_price, second_price = rng.randint(2, 90), rng.randint(2, 90)
    person = f"{first.capitalize()} {second.capitalize()} {number}"
    return {
        PromptKind.TEXT: f"{number}. Tell a long story of a {first} and a {second}.",
        PromptKind.REASONING: f"A {first} costs {first_price} and a {second} {second_price}. What cost both?",
        PromptKind.TOOL: f"What is the weather in {first.capitalize()}{number}? Use the tool.",
        PromptKind.JSON: f"Give the name and the age of a person called {person}.",
        PromptKind.IMAGE: f"{number}. What colours does the picture show?",
    }[kind]


def _chat(kind: PromptKind, number: int, rng: random.Random, max_tokens: int) -> dict[str, Json]:
    content: Json = _prompt(kind, number, rng)
    if kind is PromptKind.IMAGE:
        content = [{"type": "text", "text": content}, {"type": "image_url", "image_url": {"url": _image(number)}}]
    body: dict[str, Json] = {"messages": [{"role": "user", "content": content}], "max_tokens": max_tokens}
    if kind is PromptKind.REASONING:
        body["reasoning_effort"] = "high"
    elif kind is PromptKind.TOOL:
        body["tools"] = [{"type": "function", "function": {"name": "weather", "parameters": WEATHER}}]
    elif kind is PromptKind.JSON:
        schema: Json = {"name": "person", "schema": PERSON, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body


def _completions(kind: PromptKind, number: int, rng: random.Random, max_tokens: int) -> dict[str, Json]:
    return {"prompt": _prompt(kind, number, rng), "max_tokens": max_tokens}


def _messages(kind: PromptKind, number: int, rng: random.Random, max_tokens: int) -> dict[str, Json]:
    content: Json = _prompt(kind, number, rng)
    if kind is PromptKind.IMAGE:
        data = _image(number).partition("base64,")[2]
        source: Json = {"type": "base64", "media_type": "image/png", "data": data}
        content = [{"type": "text", "text": content}, {"type": "image", "source": source}]
    body: dict[str, Json] = {"messages": [{"role": "user", "content": content}], "max_tokens": max_tokens}
    if kind is PromptKind.REASONING:
        body["output_config"] = {"effort": "high"}
    elif kind is PromptKind.TOOL:
        body["tools"] = [{"name": "weather", "description": "The weather of a city.", "input_schema": WEATHER}]
    return body


def _responses(kind: PromptKind, number: int, rng: random.Random, max_tokens: int) -> dict[str, Json]:
    content: Json = _prompt(kind, number, rng)
    if kind is PromptKind.IMAGE:
        parts: Json = [
            {"type": "input_text", "text": content},
            {"type": "input_image", "image_url": _image(number), "detail": "auto"},
        ]
        content = [{"role": "user", "content": parts}]
    body: dict[str, Json] = {"input": content, "max_output_tokens": max_tokens}
    if kind is PromptKind.REASONING:
        body["reasoning"] = {"effort": "high"}
    elif kind is PromptKind.TOOL:
        body["tools"] = [{"type": "function", "name": "weather", "parameters": WEATHER}]
    elif kind is PromptKind.JSON:
        body["text"] = {"format": {"type": "json_schema", "name": "person", "schema": PERSON, "strict": True}}
    return body


def _image(number: int) -> str:
    import numpy as np

    from loadtest.data.images import data_url, draw, png

    return data_url(png(draw(64, 64, np.random.default_rng(number))))


_BODIES = {
    ChaosApi.CHAT: _chat,
    ChaosApi.COMPLETIONS: _completions,
    ChaosApi.MESSAGES: _messages,
    ChaosApi.RESPONSES: _responses,
}
