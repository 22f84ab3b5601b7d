"""Every kind of hostile request: a path and a body."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from bench.hostile import payloads

CHAT, COMPLETIONS, RESPONSES, MESSAGES = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
)
CONTEXT: Final = 262_144


@dataclass(frozen=True)
class HostileRequest:
    """One kind of hostile request, on one API."""

    name: str
    path: str
    body: dict[str, Any]
    may_be_served: bool = False
    """Whether a 200 is allowed. Otherwise it must be refused."""


def harmless_body(path: str, text: str = "Say yes.", max_tokens: int = 16) -> dict[str, Any]:
    """The body of a short, harmless request."""
    user = [{"role": "user", "content": text}]
    return {
        CHAT: {"messages": user, "max_tokens": max_tokens},
        COMPLETIONS: {"prompt": text, "max_tokens": max_tokens},
        RESPONSES: {"input": text, "max_output_tokens": max_tokens},
        MESSAGES: {"messages": user, "max_tokens": max_tokens},
    }[path]


def hostile_requests() -> Iterator[HostileRequest]:
    """All kinds on all APIs, built one at a time because some are large."""
    yield from with_grammars()
    yield from with_tools()
    yield from with_numbers()
    yield from with_prompts()
    yield from with_hostile_images()


def with_grammars() -> Iterator[HostileRequest]:
    """Grammars in `structured_outputs`."""
    for refused in (payloads.INVALID, payloads.EXPLOSIVE):
        for name, grammar in refused.items():
            yield HostileRequest(name, CHAT, harmless_body(CHAT) | {"structured_outputs": grammar})
    for name, grammar in payloads.BOUNDED.items():
        yield HostileRequest(name, CHAT, harmless_body(CHAT) | {"structured_outputs": grammar}, may_be_served=True)


def with_tools() -> Iterator[HostileRequest]:
    """Explosive schemas in the fields that agents use."""
    schema = payloads.EXPLOSIVE["schema with 100 of 200 properties"]["json"]
    function = {"name": "get", "description": "get", "parameters": schema}
    required_tool: dict[str, dict[str, Any]] = {
        CHAT: {"tools": [{"type": "function", "function": function}], "tool_choice": "required"},
        RESPONSES: {"tools": [{"type": "function", **function}], "tool_choice": "required"},
        MESSAGES: {"tools": [{"name": "get", "input_schema": schema}], "tool_choice": {"type": "any"}},
    }
    for path, fields in required_tool.items():
        yield HostileRequest("tool with an explosive schema", path, harmless_body(path) | fields, may_be_served=True)
    answer_format: dict[str, dict[str, Any]] = {
        CHAT: {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}},
        COMPLETIONS: {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}},
        RESPONSES: {"text": {"format": {"type": "json_schema", "name": "x", "schema": schema}}},
        MESSAGES: {"output_config": {"format": {"type": "json_schema", "schema": schema}}},
    }
    for path, fields in answer_format.items():
        yield HostileRequest("answer with an explosive schema", path, harmless_body(path) | fields)


def with_numbers() -> Iterator[HostileRequest]:
    """Extreme counts and values of sampling parameters."""
    many = [f"stop {number}" for number in range(10_000)]
    for path in (CHAT, COMPLETIONS):
        yield HostileRequest("10,000 stop strings", path, harmless_body(path) | {"stop": many})
        yield HostileRequest("a stop string of 1 MB", path, harmless_body(path) | {"stop": ["s" * 1_000_000]})
        for name, fields in NUMBERS.items():
            yield HostileRequest(name, path, harmless_body(path) | fields)
        yield HostileRequest(
            "logit_bias of 200,000 tokens",
            path,
            harmless_body(path) | {"logit_bias": {str(n): 1 for n in range(200_000)}},
        )
        yield HostileRequest(
            "1,000,000 stop_token_ids", path, harmless_body(path) | {"stop_token_ids": list(range(1_000_000))}
        )
        yield HostileRequest(
            "1,000,000 allowed_token_ids", path, harmless_body(path) | {"allowed_token_ids": list(range(1_000_000))}
        )
        yield HostileRequest("10,000 bad_words", path, harmless_body(path) | {"bad_words": many})
        yield HostileRequest("a bad word of 100 kB", path, harmless_body(path) | {"bad_words": ["b" * 100_000]})
    yield HostileRequest("10,000 stop_sequences", MESSAGES, harmless_body(MESSAGES) | {"stop_sequences": many})
    yield HostileRequest(
        "a stop sequence of 1 MB", MESSAGES, harmless_body(MESSAGES) | {"stop_sequences": ["s" * 1_000_000]}
    )
    yield HostileRequest("top_logprobs of 10^9", CHAT, harmless_body(CHAT) | {"logprobs": True, "top_logprobs": 10**9})
    yield HostileRequest("logprobs of 10^9", COMPLETIONS, harmless_body(COMPLETIONS) | {"logprobs": 10**9})
    yield HostileRequest(
        "top_logprobs of 10^9", RESPONSES, harmless_body(RESPONSES) | {"top_logprobs": 10**9}, may_be_served=True
    )  # ignored
    yield HostileRequest("10,000 prompts", COMPLETIONS, harmless_body(COMPLETIONS) | {"prompt": ["Say yes."] * 10_000})


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


def with_prompts() -> Iterator[HostileRequest]:
    """Prompts that do not fit."""
    ids = [40 + number % 500 for number in range(CONTEXT)]
    yield HostileRequest("prompt of 262,144 token ids", COMPLETIONS, harmless_body(COMPLETIONS) | {"prompt": ids})
    yield HostileRequest(
        "prompt with ids beyond the vocabulary", COMPLETIONS, harmless_body(COMPLETIONS) | {"prompt": [10**9]}
    )
    text = "alpha beta gamma delta " * 20_000
    for path in (CHAT, COMPLETIONS, RESPONSES, MESSAGES):
        yield HostileRequest("prompt of more than 262,144 tokens", path, harmless_body(path, text))
        yield HostileRequest("text of 20 MB", path, harmless_body(path, "word " * 4_000_000))
        yield HostileRequest("text of 20 MB without a blank", path, harmless_body(path, "a" * 20_000_000))


def with_hostile_images() -> Iterator[HostileRequest]:
    """Images, on each API that takes images."""
    for name, url in payloads.hostile_images().items():
        for path in (CHAT, RESPONSES, MESSAGES):
            yield HostileRequest(name, path, image_body(path, [url]), may_be_served=name in MAY_BE_DECODED)
    large = payloads.data_url(payloads.png_of(7_900, 7_900))
    yield HostileRequest("20 images of 62 megapixels", CHAT, image_body(CHAT, [large] * 20))


MAY_BE_DECODED: Final = frozenset({"GIF of 3,000 frames", "image of 60,000 x 1", "PNG with a comment of 200 MiB"})


def image_body(path: str, urls: list[str]) -> dict[str, Any]:
    """The body of a request with these images."""
    if path == CHAT:
        content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        return {"messages": [{"role": "user", "content": content}], "max_tokens": 8}
    if path == RESPONSES:
        content = [{"type": "input_image", "image_url": url, "detail": "auto"} for url in urls]
        return {"input": [{"role": "user", "content": content}], "max_output_tokens": 8}
    parts = [url.split(",", 1) for url in urls]
    content = [
        {
            "type": "image",
            "source": {"type": "base64", "media_type": head[5:].split(";")[0], "data": data},
        }
        for head, data in parts
    ]
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 8}
