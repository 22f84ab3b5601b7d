"""Every kind of hostile request, as a path and a body."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from bench.hostile import grammars, images

CHAT, COMPLETIONS, RESPONSES, MESSAGES = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
)
CONTEXT: Final = 262_144


@dataclass(frozen=True)
class Kind:
    """`served`: the request may have an answer. Any other must be refused."""

    name: str
    path: str
    body: dict[str, Any]
    served: bool = False


def base(path: str, text: str = "Say yes.", max_tokens: int = 16) -> dict[str, Any]:
    """A short, harmless request."""
    user = [{"role": "user", "content": text}]
    return {
        CHAT: {"messages": user, "max_tokens": max_tokens},
        COMPLETIONS: {"prompt": text, "max_tokens": max_tokens},
        RESPONSES: {"input": text, "max_output_tokens": max_tokens},
        MESSAGES: {"messages": user, "max_tokens": max_tokens},
    }[path]


def kinds() -> Iterator[Kind]:
    """All of them. Made one at a time: some are large."""
    yield from of_grammars()
    yield from of_tools()
    yield from of_numbers()
    yield from of_prompts()
    yield from of_images()


def of_grammars() -> Iterator[Kind]:
    """Grammars, by the field that takes any."""
    for refused in (grammars.CANNOT_WORK, grammars.EXPLODE):
        for name, asked in refused.items():
            yield Kind(name, CHAT, base(CHAT) | {"structured_outputs": asked})
    for name, asked in grammars.BOUNDED.items():
        yield Kind(name, CHAT, base(CHAT) | {"structured_outputs": asked}, served=True)


def of_tools() -> Iterator[Kind]:
    """The same by the fields that agents use."""
    schema = grammars.EXPLODE["schema with 100 of 200 properties"]["json"]
    function = {"name": "get", "description": "get", "parameters": schema}
    needed: dict[str, dict[str, Any]] = {
        CHAT: {"tools": [{"type": "function", "function": function}], "tool_choice": "required"},
        RESPONSES: {"tools": [{"type": "function", **function}], "tool_choice": "required"},
        MESSAGES: {"tools": [{"name": "get", "input_schema": schema}], "tool_choice": {"type": "any"}},
    }
    for path, fields in needed.items():
        yield Kind("tool with an explosive schema", path, base(path) | fields, served=True)
    answer: dict[str, dict[str, Any]] = {
        CHAT: {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}},
        COMPLETIONS: {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}},
        RESPONSES: {"text": {"format": {"type": "json_schema", "name": "x", "schema": schema}}},
        MESSAGES: {"output_config": {"format": {"type": "json_schema", "schema": schema}}},
    }
    for path, fields in answer.items():
        yield Kind("answer with an explosive schema", path, base(path) | fields)


def of_numbers() -> Iterator[Kind]:
    """Counts and values of sampling parameters."""
    many = [f"stop {number}" for number in range(10_000)]
    for path in (CHAT, COMPLETIONS):
        yield Kind("10,000 stop strings", path, base(path) | {"stop": many})
        yield Kind("a stop string of 1 MB", path, base(path) | {"stop": ["s" * 1_000_000]})
        for name, fields in NUMBERS.items():
            yield Kind(name, path, base(path) | fields)
        yield Kind(
            "logit_bias of 200,000 tokens", path, base(path) | {"logit_bias": {str(n): 1 for n in range(200_000)}}
        )
        yield Kind("1,000,000 stop_token_ids", path, base(path) | {"stop_token_ids": list(range(1_000_000))})
        yield Kind("1,000,000 allowed_token_ids", path, base(path) | {"allowed_token_ids": list(range(1_000_000))})
        yield Kind("10,000 bad_words", path, base(path) | {"bad_words": many})
        yield Kind("a bad word of 100 kB", path, base(path) | {"bad_words": ["b" * 100_000]})
    yield Kind("10,000 stop_sequences", MESSAGES, base(MESSAGES) | {"stop_sequences": many})
    yield Kind("a stop sequence of 1 MB", MESSAGES, base(MESSAGES) | {"stop_sequences": ["s" * 1_000_000]})
    yield Kind("top_logprobs of 10^9", CHAT, base(CHAT) | {"logprobs": True, "top_logprobs": 10**9})
    yield Kind("logprobs of 10^9", COMPLETIONS, base(COMPLETIONS) | {"logprobs": 10**9})
    yield Kind("top_logprobs of 10^9", RESPONSES, base(RESPONSES) | {"top_logprobs": 10**9}, served=True)  # ignored
    yield Kind("10,000 prompts", COMPLETIONS, base(COMPLETIONS) | {"prompt": ["Say yes."] * 10_000})


NUMBERS: Final[dict[str, dict[str, Any]]] = {
    "n of 10^6": {"n": 10**6},
    "logit_bias of NaN": {"logit_bias": {"5": float("nan")}},
    "logit_bias of 10^308": {"logit_bias": {"5": 1e308}},
    "logit_bias beyond the vocabulary": {"logit_bias": {"999999999": 1}},
    "prompt_logprobs of 10^9": {"prompt_logprobs": 10**9},
    "temperature of NaN": {"temperature": float("nan")},
    "temperature of infinity": {"temperature": float("inf")},
    "top_k of -5": {"top_k": -5},
    "repetition_penalty of infinity": {"repetition_penalty": float("inf")},
    "repetition_penalty of 0": {"repetition_penalty": 0},
    "presence_penalty of NaN": {"presence_penalty": float("nan")},
    "seed of 2^80": {"seed": 2**80},
    "max_tokens of 10^30": {"max_tokens": 10**30},
    "min_tokens of 10^9": {"min_tokens": 10**9},
    "truncate_prompt_tokens of 10^9": {"truncate_prompt_tokens": 10**9},
    "repetition_detection of 10^9": {
        "repetition_detection": {"max_pattern_size": 10**9, "min_pattern_size": 1, "min_count": 2}
    },
}


def of_prompts() -> Iterator[Kind]:
    """More than fits."""
    ids = [40 + number % 500 for number in range(CONTEXT)]
    yield Kind("prompt of 262,144 token ids", COMPLETIONS, base(COMPLETIONS) | {"prompt": ids})
    yield Kind("prompt with ids beyond the vocabulary", COMPLETIONS, base(COMPLETIONS) | {"prompt": [10**9]})
    text = "alpha beta gamma delta " * 20_000
    for path in (CHAT, COMPLETIONS, RESPONSES, MESSAGES):
        yield Kind("prompt of more than 262,144 tokens", path, base(path, text))
        yield Kind("text of 20 MB", path, base(path, "word " * 4_000_000))
        yield Kind("text of 20 MB without a blank", path, base(path, "a" * 20_000_000))


def of_images() -> Iterator[Kind]:
    """Images, on each API that takes one."""
    for name, url in images.hostile().items():
        for path in (CHAT, RESPONSES, MESSAGES):
            yield Kind(name, path, with_images(path, [url]), served=name in MAY_BE_READ)
    large = images.data_url(images.png_of(7_900, 7_900))
    yield Kind("20 images of 62 megapixels", CHAT, with_images(CHAT, [large] * 20))


MAY_BE_READ: Final = frozenset({"GIF of 3,000 frames", "image of 60,000 x 1", "PNG with a comment of 200 MiB"})


def with_images(path: str, urls: list[str]) -> dict[str, Any]:
    """A request with these images."""
    if path == CHAT:
        content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        return {"messages": [{"role": "user", "content": content}], "max_tokens": 8}
    if path == RESPONSES:
        content = [{"type": "input_image", "image_url": url, "detail": "auto"} for url in urls]
        return {"input": [{"role": "user", "content": content}], "max_output_tokens": 8}
    heads = [url.split(",", 1) for url in urls]
    content = [
        {
            "type": "image",
            "source": {"type": "base64", "media_type": head[5:].split(";")[0], "data": data},
        }
        for head, data in heads
    ]
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 8}
