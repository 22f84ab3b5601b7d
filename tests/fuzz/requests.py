"""Requests that nobody should send: valid ones, mutated in their JSON, their bytes and their headers. Seeded.

What decides between "one of ours" and "one of vLLM's" fields is vLLM's own request models: each of their fields gets
junk of every type sooner or later.
"""

from __future__ import annotations

import base64
import copy
import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from vllm.entrypoints.anthropic.protocol import AnthropicCountTokensRequest, AnthropicMessagesRequest
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.entrypoints.serve.tokenize.protocol import DetokenizeRequest, TokenizeCompletionRequest

MODEL = "step3p7-flash"

FIELDS = {
    "/v1/chat/completions": list(ChatCompletionRequest.model_fields),
    "/v1/completions": list(CompletionRequest.model_fields),
    "/v1/responses": list(ResponsesRequest.model_fields),
    "/v1/messages": list(AnthropicMessagesRequest.model_fields),
    "/v1/messages/count_tokens": list(AnthropicCountTokensRequest.model_fields),
    "/tokenize": list(TokenizeCompletionRequest.model_fields),
    "/detokenize": list(DetokenizeRequest.model_fields),
}

NOT_FUZZED = ("logprobs", "prompt_logprobs")
"""The fake engine has no log probabilities to give, where vLLM's always has."""

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
IMAGE = "data:image/png;base64," + base64.b64encode(PIXEL).decode()

_WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
_TOOL = {"type": "function", "function": {"name": "get_weather", "description": "weather", "parameters": _WEATHER}}
_CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
_USER = [{"role": "user", "content": "hello"}]

VALID: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"model": MODEL, "messages": _USER, "max_tokens": 3}),
    (
        "/v1/chat/completions",
        {
            "model": "claude-opus-4",
            "messages": [
                {"role": "system", "content": "Be brief."},
                *_USER,
                {"role": "assistant", "content": None, "tool_calls": [_CALL]},
                {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "sunny"}]},
            ],
            "tools": [_TOOL],
            "tool_choice": "auto",
            "max_completion_tokens": 3,
            "stream_options": {"include_usage": True},
            "stream": True,
        },
    ),
    (
        "/v1/chat/completions",
        {
            "model": MODEL,
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {"url": IMAGE}}],
                }
            ],
            "max_tokens": 2,
            "response_format": {"type": "json_object"},
        },
    ),
    (
        "/v1/completions",
        {"model": MODEL, "prompt": ["one", "two"], "max_tokens": 2, "stop": ["x"], "logit_bias": {"5": 1}, "n": 1},
    ),
    ("/v1/completions", {"model": MODEL, "prompt": [40, 41, 42], "max_tokens": 2, "stream": True, "echo": False}),
    ("/v1/responses", {"model": MODEL, "input": "hello", "max_output_tokens": 3, "reasoning": {"effort": "low"}}),
    (
        "/v1/responses",
        {
            "model": MODEL,
            "instructions": "Be brief.",
            "input": [
                {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]},
                {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
            ],
            "tools": [{"type": "function", "name": "get_weather", "parameters": _WEATHER}],
            "text": {"format": {"type": "text"}},
            "max_output_tokens": 3,
            "stream": True,
        },
    ),
    ("/v1/messages", {"model": MODEL, "messages": _USER, "max_tokens": 3, "system": "Be brief."}),
    (
        "/v1/messages",
        {
            "model": "claude-sonnet-4-5",
            "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
            "messages": [
                *_USER,
                {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "get", "input": {"a": 1}}]},
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "1"}]},
                        {
                            "type": "image",
                            "source": {"type": "base64", "media_type": "image/png", "data": IMAGE.split(",")[1]},
                        },
                    ],
                },
            ],
            "tools": [{"name": "get", "description": "get", "input_schema": _WEATHER}],
            "tool_choice": {"type": "auto"},
            "metadata": {"user_id": "u"},
            "max_tokens": 3,
            "stream": True,
        },
    ),
    ("/v1/messages/count_tokens", {"model": MODEL, "messages": _USER}),
    ("/tokenize", {"model": MODEL, "prompt": "hello", "add_special_tokens": True}),
    ("/tokenize", {"model": MODEL, "messages": _USER, "return_token_strs": True}),
    ("/detokenize", {"model": MODEL, "tokens": [40, 41]}),
]

OTHER_PATHS = (
    ("GET", "/v1/models"), ("GET", "/v1/models/claude-x"), ("GET", "/v1/models/%00"), ("GET", "/v1/models/../x"),
    ("GET", "/v1/responses/resp_1"), ("GET", "/v1/responses/resp_1?stream=true&starting_after=x"),
    ("POST", "/v1/responses/resp_1/cancel"), ("GET", "/health"), ("HEAD", "/v1/models"), ("PATCH", "/v1/messages"),
    ("GET", "/v1/messages"), ("OPTIONS", "/v1/messages"), ("POST", "/v1/models"), ("GET", "/openapi.json"),
    ("POST", "/v1/embeddings"), ("GET", "//"), ("GET", "/%ff%fe"), ("DELETE", "/v1/responses/resp_1"),
)  # fmt: skip
"""Paths where a body is not all that counts."""

HEADERS: tuple[tuple[str, str], ...] = (
    ("x-request-id", "a" * 300), ("x-request-id", "caf\u00e9"), ("x-session-id", ""), ("x-session-id", "s" * 3000),
    ("x-resume-request-id", "nobody"), ("anthropic-version", "2023-06-01"), ("anthropic-beta", "a,b,,c"),
    ("content-type", "text/plain"), ("content-type", ";"), ("content-type", "application/json; charset=utf-16"),
    ("content-type", "application/json; charset=rot13"), ("content-type", "application/json; charset=\u00e9"),
    ("content-encoding", "gzip"), ("content-encoding", "br"), ("content-encoding", ",,,"), ("origin", "null"),
    ("accept", "nothing/at-all"), ("accept-encoding", "x"), ("authorization", "Bearer"),
    ("authorization", "Basic \u00e9"), ("x-data-parallel-rank", "-1"),
    ("x-data-parallel-rank", "99999999999999999999"), ("traceparent", "00-zz"),
    ("endpoint-load-metrics-format", "JSON"), ("endpoint-load-metrics-format", "x"), ("cookie", "a=b" * 100),
    ("x-correlation-id", "1"), ("range", "bytes=0-1"), ("if-none-match", "*"),
)  # fmt: skip

JUNK: tuple[Callable[[Random], Any], ...] = (
    lambda _: None,
    lambda rng: rng.choice((True, False)),
    lambda rng: rng.choice((0, -1, 1, 2**31, -(2**31), 2**63, 2**64, -(2**63) - 1, 10**400)),
    lambda rng: rng.choice((0.5, -0.0, 1e308, -1e-320, 1.5, 3e38)),
    lambda rng: rng.choice(("", " ", "a", "null", "0", "\x00", "\u2028", "\U0001f600", "x" * 5000, "../../etc/passwd")),
    lambda rng: rng.choice(
        ("auto", "none", "required", "text", "json_object", "user", "tool", "developer", "function")
    ),
    lambda _: [],
    lambda _: {},
    lambda rng: [rng.choice((None, 1, "a", [], {}))] * rng.randint(1, 4),
    lambda rng: {rng.choice(("type", "role", "", "a", "name", "content")): rng.choice((None, 1, "a", [], {}, "text"))},
    lambda rng: _nested(rng.choice((5, 60, 400)), rng.random() < 0.5),
    lambda rng: [rng.randint(-5, 10**6) for _ in range(rng.randint(1, 50))],
)


def _nested(depth: int, in_lists: bool) -> Any:  # which of two kinds of nesting
    value: Any = 1
    for _ in range(depth):
        value = [value] if in_lists else {"a": value}
    return value


@dataclass(frozen=True)
class RawRequest:
    """One request as bytes. `http_is_broken` where the server may answer without our help."""

    method: str
    path: str
    data: bytes
    body: bytes
    http_is_broken: bool = False


def stream(seed: int) -> Iterator[RawRequest]:
    """Requests without end; the same ones for the same seed."""
    rng = Random(seed)
    while True:
        yield _request(rng)


def _request(rng: Random) -> RawRequest:
    if rng.random() < 0.05:
        method, path = rng.choice(OTHER_PATHS)
        return _framed(rng, method, path, b"{}" if method == "POST" else b"")
    path, valid = rng.choice(VALID)
    body = copy.deepcopy(valid)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        body = _mutated(rng, body, path)
    data = json.dumps(body).encode()
    if rng.random() < 0.2:
        data = _bent(rng, data)
    if rng.random() < 0.1:
        path = rng.choice((path + "/", "/" + path, path + "?beta=true", path + "?stream=1&x[]=%zz"))
    return _framed(rng, "POST", path, data)


def _mutated(rng: Random, body: Any, path: str) -> Any:
    """`body` with one change somewhere."""
    if rng.random() < 0.03:
        return rng.choice(JUNK)(rng)
    if not isinstance(body, dict):
        return body
    if rng.random() < 0.3:
        body[rng.choice([name for name in FIELDS[path] if name not in NOT_FUZZED])] = rng.choice(JUNK)(rng)
        return body
    places = list(_places(body))
    if not places:
        return body
    holder, key = rng.choice(places)
    match rng.randrange(6):
        case 0:
            del holder[key]
        case 1:
            holder[key] = [holder[key]]
        case 2 if isinstance(holder, dict):
            holder[rng.choice(("type", "role", "content", "name", "id", "text", "extra"))] = rng.choice(JUNK)(rng)
        case 3 if isinstance(holder, list):
            holder.extend([holder[key]] * rng.randint(1, 5))
        case _:
            holder[key] = rng.choice(JUNK)(rng)
    return body


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def _bent(rng: Random, data: bytes) -> bytes:
    """The bytes of a body, damaged."""
    at = rng.randrange(len(data) + 1)
    match rng.randrange(8):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
        case 2:
            return data[:at] + rng.randbytes(rng.randint(1, 9)) + data[at:]
        case 3:
            return b"[" * 100_000 + data
        case 4:
            return data.replace(b'"hello"', b"9" * 5000)
        case 5:
            return data + data
        case 6:
            return data.replace(b"hello", b"\\ud83d\\u0000")
        case _:
            return rng.choice((b"", b" ", b"null", b"NaN", b"\xef\xbb\xbf" + data, b"\xff\xfe{", b'"x"', b"-", b"{,}"))


def _framed(rng: Random, method: str, path: str, body: bytes) -> RawRequest:
    headers = {"host": "x", "connection": "close", "content-type": "application/json"}
    broken = False
    if rng.random() < 0.2:
        name, value = rng.choice(HEADERS)
        headers[name] = value
        if (name, value) == ("content-encoding", "gzip") and rng.random() < 0.5:
            body = gzip.compress(body, mtime=0)
    if body or method == "POST":
        headers["content-length"] = str(len(body))
    if rng.random() < 0.01:
        headers["content-length"] = rng.choice(("-1", "x", "0", "99999999999999999999"))
        broken = True
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return RawRequest(method, path, head.encode("latin-1") + b"\r\n" + body, body, broken)
