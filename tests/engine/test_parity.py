"""Whatever vLLM's own server answers, ours answers the same: both on real vLLM, side by side, on the same requests.

What differs on purpose is listed in docs/api.md: the template's line breaks are left out on both sides, and of the
requests in `DIFFER` only the status is compared.
"""

from __future__ import annotations

import asyncio
import base64
import io
import os
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import pytest
import pytest_asyncio
from PIL import Image

from serve_app.engine.vllm import VllmEngine
from tests.engine.sameness import events, joined, stable, without_line_breaks
from tests.http.harness import FLAGS, MTP, NAME, service

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}


def picture() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (120, 90), "blue").save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


USER = {"role": "user", "content": "Count from 1 to 12."}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
ASK_WEATHER = {"role": "user", "content": "What is the weather in Lima?"}
CALLED = [
    ASK_WEATHER,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Lima"}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "sunny, 21 degrees"},
]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 1, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
LOOK = {
    "role": "user",
    "content": [
        {"type": "image_url", "image_url": {"url": picture()}},
        {"type": "text", "text": "Which colour is it?"},
    ],
}
GREEDY = {"model": NAME, "temperature": 0}
"""Where several sequences or a temperature are asked for, `top_k` is 1: with MTP, vLLM's own server does not give a
seeded request the same answer twice."""

LOG_LINES = 80

CHAT = "/v1/chat/completions"

REQUESTS: dict[str, tuple[str, dict[str, object]]] = {
    "text": (CHAT, {"messages": [USER], "max_tokens": 60}),
    "length": (CHAT, {"messages": [USER], "max_tokens": 7}),
    "system": (CHAT, {"messages": [{"role": "system", "content": "Be brief."}, USER], "max_tokens": 40}),
    "low effort": (CHAT, {"messages": [USER], "reasoning_effort": "low", "max_tokens": 40}),
    "high effort": (CHAT, {"messages": [USER], "reasoning_effort": "high", "max_tokens": 40}),
    "n": (CHAT, {"messages": [USER], "n": 3, "temperature": 0.8, "top_k": 1, "max_tokens": 12}),
    "logprobs": (CHAT, {"messages": [USER], "logprobs": True, "top_logprobs": 3, "max_tokens": 8}),
    "stop string": (CHAT, {"messages": [USER], "stop": ["5", "e"], "max_tokens": 60}),
    "stop kept": (CHAT, {"messages": [USER], "stop": ["o"], "include_stop_str_in_output": True, "max_tokens": 60}),
    "stop token": (CHAT, {"messages": [USER], "stop_token_ids": [40, 41, 42], "max_tokens": 60}),
    "seed": (CHAT, {"messages": [USER], "seed": 11, "temperature": 1.0, "top_k": 1, "max_tokens": 16}),
    "penalties": (CHAT, {"messages": [USER], "presence_penalty": 0.5, "frequency_penalty": 0.5, "max_tokens": 24}),
    "min tokens": (CHAT, {"messages": [USER], "min_tokens": 20, "max_tokens": 24}),
    "ignore eos": (CHAT, {"messages": [USER], "ignore_eos": True, "max_tokens": 100}),
    "tools": (CHAT, {"messages": [ASK_WEATHER], "tools": [WEATHER], "max_tokens": 120}),
    "tool required": (
        CHAT,
        {"messages": [ASK_WEATHER], "tools": [WEATHER], "tool_choice": "required", "max_tokens": 90},
    ),
    "tool none": (CHAT, {"messages": [ASK_WEATHER], "tools": [WEATHER], "tool_choice": "none", "max_tokens": 40}),
    "tool result": (CHAT, {"messages": CALLED, "tools": [WEATHER], "max_tokens": 60}),
    "json": (
        CHAT,
        {
            "messages": [{"role": "user", "content": "Give me a person as JSON."}],
            "response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}},
            "max_tokens": 200,
        },
    ),
    "image": (CHAT, {"messages": [LOOK], "max_tokens": 40}),
    "completion": ("/v1/completions", {"prompt": "one two three", "max_tokens": 16}),
    "completions": ("/v1/completions", {"prompt": ["one two", "a b c"], "max_tokens": 10, "logprobs": 2}),
    "echo": ("/v1/completions", {"prompt": "one two three", "echo": True, "logprobs": 1, "max_tokens": 4}),
    "token prompt": ("/v1/completions", {"prompt": [50, 51, 52, 53], "max_tokens": 8, "return_token_ids": True}),
    "response": ("/v1/responses", {"input": "Count from 1 to 12.", "max_output_tokens": 60}),
    "response with effort": (
        "/v1/responses",
        {"input": "hello", "reasoning": {"effort": "low"}, "max_output_tokens": 40},
    ),
    "message": ("/v1/messages", {"messages": [USER], "max_tokens": 60}),
    "message with system": ("/v1/messages", {"messages": [USER], "system": "Be brief.", "max_tokens": 40}),
    "message with stop": ("/v1/messages", {"messages": [USER], "stop_sequences": ["5", "e"], "max_tokens": 60}),
    "message with tools": (
        "/v1/messages",
        {
            "messages": [ASK_WEATHER],
            "tools": [{"name": "get_weather", "input_schema": WEATHER["function"]["parameters"]}],  # type: ignore[index]
            "max_tokens": 120,
        },
    ),
    "tokens counted": ("/v1/messages/count_tokens", {"messages": [USER]}),
    "tokenize": ("/tokenize", {"messages": [USER], "return_token_strs": True}),
    "detokenize": ("/detokenize", {"tokens": [50, 51, 52]}),
    "too long": (CHAT, {"messages": [{"role": "user", "content": "1 " * 9000}]}),
    "no such field value": (CHAT, {"messages": [USER], "temperature": 9}),
}
DIFFER = {
    "stop string": "stop strings look at the answer only",
    "stop kept": "stop strings look at the answer only",
    "message with stop": "stop strings look at the answer only",
    "tool none": "a call that was ruled out is text",
    "response with effort": "the item that was cut says so",
    "too long": "errors",
    "no such field value": "errors",
}
"""Requests whose answers differ, and why."""
DIFFER_STREAMED = DIFFER | {
    "tools": "a call is told of with its first value",
    "tool required": "a call is told of with its first value",
    "stop token": "the first token of a thought counts as reasoning, as it does when whole",
}
NOT_STREAMED = {"tokens counted", "tokenize", "detokenize", "too long", "no such field value"}


@dataclass(frozen=True)
class Pair:
    """Two clients: of vLLM's own server, and of ours. `bare_log` are the last lines of the former."""

    bare: httpx.AsyncClient
    ours: httpx.AsyncClient
    bare_log: deque[str]

    async def post(self, path: str, body: dict[str, object]) -> tuple[httpx.Response, httpx.Response]:
        """The bare server's answer and ours, of the same status."""
        theirs, ours = await asyncio.gather(self.bare.post(path, json=body), self.ours.post(path, json=body))
        assert ours.status_code == theirs.status_code, "\n".join(
            [f"theirs: {theirs.text}", f"ours: {ours.text}", "what vLLM's server logged:", *self.bare_log]
        )
        return theirs, ours


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def bare_server(log: deque[str]) -> AsyncIterator[str]:
    """vLLM's own server, whose lines go to `log`; up when this returns."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", *FLAGS, *MTP),
        *("--host", "127.0.0.1", "--port", str(port), "--distributed-executor-backend", "mp"),
        env=os.environ | ENVIRONMENT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    up = asyncio.Event()

    async def read(lines: asyncio.StreamReader) -> None:
        async for line in lines:
            log.append(line.decode(errors="replace").rstrip())
            if "Application startup complete" in log[-1]:
                up.set()

    reading = asyncio.create_task(read(process.stdout))
    try:
        starting = asyncio.create_task(up.wait())
        await asyncio.wait([starting, reading], return_when=asyncio.FIRST_COMPLETED)
        starting.cancel()
        assert up.is_set(), "\n".join(["vLLM's own server did not start:", *log])
        yield f"http://127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
        await reading


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair() -> AsyncIterator[Pair]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        argv = [*FLAGS, *MTP, "--distributed-executor-backend", "mp"]
        log: deque[str] = deque(maxlen=LOG_LINES)
        async with (
            bare_server(log) as bare_url,
            service({"a": lambda sink: VllmEngine(argv, sink)}) as running,
            httpx.AsyncClient(base_url=bare_url, timeout=120, trust_env=False) as bare,
            httpx.AsyncClient(base_url=running.url, timeout=120, trust_env=False) as ours,
        ):
            yield Pair(bare, ours, log)


@pytest.mark.parametrize("name", list(REQUESTS))
async def test_the_same_answer_as_vllms_own_server(pair: Pair, name: str) -> None:
    path, request = REQUESTS[name]
    body = GREEDY | request if path not in {"/tokenize", "/detokenize"} else {"model": NAME} | request
    theirs, ours = await pair.post(path, body)
    if name not in DIFFER:
        assert without_line_breaks(stable(ours.json())) == without_line_breaks(stable(theirs.json()))


@pytest.mark.parametrize("name", [name for name in REQUESTS if name not in NOT_STREAMED])
async def test_the_same_stream_as_vllms_own_server(pair: Pair, name: str) -> None:
    path, request = REQUESTS[name]
    body = GREEDY | request | {"stream": True}
    if path in (CHAT, "/v1/completions"):
        body["stream_options"] = {"include_usage": True}
    theirs, ours = await pair.post(path, body)
    assert ours.status_code == 200
    if name in DIFFER_STREAMED:
        return
    expected, got = joined(events(theirs.text)), joined(events(ours.text))
    if path == "/v1/messages":
        # Ours comes before the prefill, when the cached share is not known yet (and is 0 here).
        for stream in (expected, got):
            usage = stream[0][1]["message"]["usage"]
            usage.pop("cache_read_input_tokens", None)
            usage.pop("cache_creation_input_tokens", None)
    assert without_line_breaks(got) == without_line_breaks(expected)
