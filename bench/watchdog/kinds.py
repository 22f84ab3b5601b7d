"""Requests of every kind that compiles or allocates something when it is asked for the first time."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Mapping
from typing import Any

from PIL import Image

from bench.watchdog.clients import Ask

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
GENERATED = 24
REPEATED = "one two three four one two three four one two three four one two"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
NOT_FOR_XGRAMMAR = {"type": "object", "properties": {"a": {"type": "integer", "multipleOf": 3}}, "required": ["a"]}
"""vLLM gives it to another back end where it may choose."""


def text(model: str, prompt: str = "Count from 3 to 30.", **more: Any) -> Ask:
    """A streamed completion."""
    body = {"model": model, "prompt": prompt, "max_tokens": GENERATED, "stream": True, "ignore_eos": True}
    return Ask(COMPLETIONS, {**body, **more})


def chat(model: str, content: object = "Count from 3 to 9.", **more: Any) -> Ask:
    """A streamed turn."""
    messages = [{"role": "user", "content": content}]
    return Ask(CHAT, {"model": model, "messages": messages, "max_tokens": GENERATED, "stream": True, **more})


def long_prompt(model: str, tokens: int) -> Ask:
    """Digits: one token each in the demo's tokenizer. No other prompt begins like it."""
    prompt = (str(time.time_ns()) + "1234567890" * (tokens // 10))[:tokens]
    return text(model, prompt, max_tokens=4)


def first_uses(model: str) -> Mapping[str, Ask]:
    """Each kind by its name."""
    asks = {
        "logprobs": text(model, logprobs=5),
        "chat logprobs": chat(model, logprobs=True, top_logprobs=5),
        "prompt_logprobs": text(model, prompt_logprobs=5, stream=False),
        "sampling with a seed": text(model, temperature=0.8, top_p=0.9, top_k=20, seed=7),
        "min_tokens and a stop string": text(model, min_tokens=8, stop=["\n\n\n"]),
        "repetition_penalty": text(model, repetition_penalty=1.3),
        "presence and frequency penalties": text(model, presence_penalty=0.5, frequency_penalty=0.5),
        "drafts accepted and refused (MTP)": text(model, REPEATED, max_tokens=96, temperature=0.0),
        "a JSON schema": text(model, structured_outputs={"json": SCHEMA}),
        "a schema of another back end": text(model, structured_outputs={"json": NOT_FOR_XGRAMMAR}),
        "a regex": text(model, structured_outputs={"regex": "[a-z]{1,8}"}),
        "a grammar": text(model, structured_outputs={"grammar": 'root ::= "yes" | "no"'}),
        "a choice": text(model, structured_outputs={"choice": ["yes", "no"]}),
        "a required tool": chat(model, tools=[WEATHER], tool_choice="required", max_tokens=96),
        "a thinking budget": chat(model, thinking_token_budget=4, max_tokens=48),
        "eight answers at a time": text(model, n=8, temperature=1.0),
    }
    for width, height in ((64, 48), (900, 700)):
        parts = [
            {"type": "text", "text": "What is it?"},
            {"type": "image_url", "image_url": {"url": _image(width, height)}},
        ]
        asks[f"an image of {width}x{height}"] = chat(model, parts)
    return asks


def saturation(model: str) -> list[Ask]:
    """What streams at saturation ask for: mostly plain text of different lengths, and some of every other kind."""
    plain = [text(model, "12345 " * words, max_tokens=tokens) for words in (8, 60, 300) for tokens in (64, 192)]
    return [*plain, *plain, *first_uses(model).values()]


def _image(width: int, height: int) -> str:
    file = io.BytesIO()
    Image.effect_noise((width, height), 60).convert("RGB").save(file, "JPEG")
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
