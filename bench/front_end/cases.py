"""What is measured: streams of all four APIs at set rates, short requests, long prompts in turns, images and tools."""

from __future__ import annotations

import base64
import io
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from bench.front_end.pace import tokens_per_request
from bench.front_end.streams import Job

MODEL = "bench"
STEPS_PER_S = 20
SHORT_STEPS = 3
BEGIN_PER_S = 128
"""How many streams a front end can begin in a second, about."""
IMAGES = 4
IMAGE_PX = 1600
WORDS = (
    "the quick brown fox reads a file and writes its answer back into memory while another process waits for data "
    "from a socket that nobody has closed since the server began to listen on every address of this machine"
).split()
"""Each is one token of the tokenizer, with the space before it."""


@dataclass(frozen=True)
class Api:
    """One of the APIs: its path, and how a request asks for so many tokens."""

    name: str
    path: str
    max_tokens: str


CHAT = Api("chat", "/v1/chat/completions", "max_tokens")
COMPLETIONS = Api("completions", "/v1/completions", "max_tokens")
MESSAGES = Api("messages", "/v1/messages", "max_tokens")
RESPONSES = Api("responses", "/v1/responses", "max_output_tokens")
APIS = (CHAT, COMPLETIONS, MESSAGES, RESPONSES)


@dataclass(frozen=True)
class Case:
    """One measurement. The engine takes `steps` for each request; the requests have these `bodies` in turn."""

    name: str
    api: Api
    requests: int
    concurrency: int
    steps: int
    bodies: Sequence[str]

    def job(self, port: int) -> Job:
        """The client's job against the server on that port."""
        return Job(port, self.api.path, list(self.bodies), self.requests, self.concurrency)


def streams(api: Api, count: int, seconds: float) -> Case:
    """So many streams at once, for so long after they have begun, which many do one after the other."""
    steps = int((seconds + count / BEGIN_PER_S) * STEPS_PER_S)
    bodies = [_body(api, [_user(_words(40, seed))], steps) for seed in range(min(count, 64))]
    return Case(f"{api.name}, {count} streams", api, count, count, steps, bodies)


def short_requests(count: int, *, tools: bool = False) -> Case:
    """Requests of three chunks each, eight at a time."""
    bodies = []
    for seed in range(32):
        body = json.loads(_body(CHAT, [_user(_words(40, seed))], SHORT_STEPS))
        if tools:
            body["tools"] = [_tool(number) for number in range(20)]
        bodies.append(json.dumps(body))
    return Case(f"short requests{' with 20 tools' if tools else ''}", CHAT, count, 8, SHORT_STEPS, bodies)


def conversation(tokens: int, seed: int) -> list[Case]:
    """Two turns with a prompt of about so many tokens: its first time, and the next turn of the same conversation."""
    per_message = 2000
    history: list[dict[str, Any]] = []
    for number in range(max(1, tokens // per_message)):
        text = _words(min(tokens, per_message), seed * 1000 + number)
        history.append(_user(text) if number % 2 == 0 else {"role": "assistant", "content": text})
    later = [*history, {"role": "assistant", "content": "Done."}, _user("And the next step?")]
    size = f"{tokens // 1000}K"
    return [
        Case(f"prompt {size}, {turn}", CHAT, 1, 1, SHORT_STEPS, [_body(CHAT, messages, SHORT_STEPS)])
        for turn, messages in (("first", history), ("later", later))
    ]


def pictures(seed: int) -> list[Case]:
    """Two turns with the same four pictures."""
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": _picture(seed * IMAGES + i)}} for i in range(IMAGES)
    ]
    first: list[dict[str, Any]] = [
        {"role": "user", "content": [*parts, {"type": "text", "text": "What is on these pictures?"}]}
    ]
    later = [*first, {"role": "assistant", "content": "Colours."}, _user("Which ones?")]
    return [
        Case(f"{IMAGES} images, {turn}", CHAT, 1, 1, SHORT_STEPS, [_body(CHAT, messages, SHORT_STEPS)])
        for turn, messages in (("first", first), ("later", later))
    ]


def _body(api: Api, messages: list[dict[str, Any]], steps: int) -> str:
    body: dict[str, Any] = {"model": MODEL, "stream": True, api.max_tokens: tokens_per_request(steps)}
    if api is COMPLETIONS:
        body["prompt"] = messages[0]["content"]
    elif api is RESPONSES:
        body["input"] = messages
    else:
        body["messages"] = messages
    if api in (CHAT, COMPLETIONS):
        body["ignore_eos"] = True
    return json.dumps(body)


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _words(count: int, seed: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=count))


def _tool(number: int) -> dict[str, Any]:
    properties = {f"field_{i}": {"type": "string", "description": _words(8, number * 10 + i)} for i in range(4)}
    parameters = {"type": "object", "properties": properties, "required": ["field_0"]}
    function = {"name": f"tool_{number}", "description": _words(30, number), "parameters": parameters}
    return {"type": "function", "function": function}


def _picture(seed: int) -> str:
    rough = np.random.default_rng(seed).integers(0, 255, (20, 20, 3), dtype=np.uint8)
    image = Image.fromarray(rough).resize((IMAGE_PX, IMAGE_PX))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
