"""The requests of the watchdog's cases, the clients that send them, and the longest time without any response data."""

from __future__ import annotations

import base64
import contextlib
import io
import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from bench.response_lines import RequestFailed, response_lines

TIMEOUT_S = 3600.0
ERROR = b'"error":'
"""In the first bytes of an error event."""

Body = Mapping[str, Any]


@dataclass
class SilenceTimer:
    """The longest time in which no client received anything."""

    longest_s: float = 0.0
    _last_s: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def received(self) -> None:
        """A client received something."""
        with self._lock:
            now_s = time.monotonic()
            self.longest_s, self._last_s = max(self.longest_s, now_s - self._last_s), now_s


@dataclass(frozen=True)
class ClientRequest:
    """One request: a path and a body, which may ask for a stream."""

    path: str
    body: Body


@dataclass
class Endpoint:
    """The service's endpoint, and what its clients have measured in this case."""

    port: int
    silence: SilenceTimer = field(default_factory=SilenceTimer)
    failures: list[str] = field(default_factory=list)

    def send(self, request: ClientRequest) -> float:
        """Seconds to the first event, or to the whole response if it is not streamed. Raises `RequestFailed`."""
        start_s, first_s, last = time.monotonic(), None, b""
        for line in response_lines(f"http://127.0.0.1:{self.port}", request.path, request.body, TIMEOUT_S):
            self.silence.received()
            first_s = first_s or time.monotonic() - start_s
            if ERROR in line[:40]:  # vLLM ends such a stream with [DONE], too
                raise RequestFailed(f"an error in the stream: {line[:300]!r}")
            last = line
        if request.body.get("stream") and b"[DONE]" not in last:
            raise RequestFailed(f"the stream ends with {last[:200]!r}")
        return first_s or time.monotonic() - start_s

    def try_send(self, request: ClientRequest) -> float | None:
        """As `send`; a failure is added to `failures`."""
        try:
            return self.send(request)
        except RequestFailed as error:
            self.failures.append(str(error))
            return None

    @contextlib.contextmanager
    def clients(self, requests: Sequence[ClientRequest], count: int) -> Iterator[list[Future[int]]]:
        """This many clients send random `requests` while the block runs. Gives their counts of finished requests."""
        over = threading.Event()

        def run_client(seed: int) -> int:
            rng, finished = random.Random(seed), 0
            while not over.is_set():
                finished += self.try_send(_with_unique_prompt(rng.choice(requests), rng)) is not None
                if self.failures:
                    over.wait(1.0)  # do not flood a service that refuses requests
            return finished

        with ThreadPoolExecutor(max(count, 1)) as pool:
            clients = [pool.submit(run_client, number) for number in range(count)]
            try:
                yield clients
            finally:
                over.set()


def _with_unique_prompt(request: ClientRequest, rng: random.Random) -> ClientRequest:
    """So that the prompt is in no cache."""
    if "prompt" not in request.body:
        return request
    return ClientRequest(request.path, {**request.body, "prompt": f"{rng.random()} {request.body['prompt']}"})


# ---- requests --------------------------------------------------------------------------------------------------------

COMPILES: Mapping[str, str] = {"TORCH_COMPILE_DISABLE": "0"}
"""The demo's profile disables torch.compile. Here it is enabled, as on GPUs."""

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
UNSUPPORTED_BY_XGRAMMAR = {
    "type": "object",
    "properties": {"a": {"type": "integer", "multipleOf": 3}},
    "required": ["a"],
}
"""vLLM compiles it with another back end if it may choose."""


def completion(model: str, prompt: str = "Count from 3 to 30.", **more: Any) -> ClientRequest:
    """A streamed completion."""
    body = {"model": model, "prompt": prompt, "max_tokens": GENERATED, "stream": True, "ignore_eos": True}
    return ClientRequest(COMPLETIONS, {**body, **more})


def chat(model: str, content: object = "Count from 3 to 9.", **more: Any) -> ClientRequest:
    """A streamed chat completion."""
    messages = [{"role": "user", "content": content}]
    return ClientRequest(CHAT, {"model": model, "messages": messages, "max_tokens": GENERATED, "stream": True, **more})


def long_prompt(model: str, tokens: int) -> ClientRequest:
    """A prompt of digits, which are a token each in the demo's tokenizer. Its start is unique."""
    prompt = (str(time.time_ns()) + "1234567890" * (tokens // 10))[:tokens]
    return completion(model, prompt, max_tokens=4)


def first_uses(model: str) -> Mapping[str, ClientRequest]:
    """Requests of every kind that compiles or allocates something at its first use, by name."""
    requests = {
        "logprobs": completion(model, logprobs=5),
        "chat logprobs": chat(model, logprobs=True, top_logprobs=5),
        "prompt_logprobs": completion(model, prompt_logprobs=5, stream=False),
        "sampling with a seed": completion(model, temperature=0.8, top_p=0.9, top_k=20, seed=7),
        "min_tokens and a stop string": completion(model, min_tokens=8, stop=["\n\n\n"]),
        "repetition_penalty": completion(model, repetition_penalty=1.3),
        "presence and frequency penalties": completion(model, presence_penalty=0.5, frequency_penalty=0.5),
        "drafts accepted and refused (MTP)": completion(model, REPEATED, max_tokens=96, temperature=0.0),
        "a JSON schema": completion(model, structured_outputs={"json": SCHEMA}),
        "a schema of another back end": completion(model, structured_outputs={"json": UNSUPPORTED_BY_XGRAMMAR}),
        "a regex": completion(model, structured_outputs={"regex": "[a-z]{1,8}"}),
        "a grammar": completion(model, structured_outputs={"grammar": 'root ::= "yes" | "no"'}),
        "a choice": completion(model, structured_outputs={"choice": ["yes", "no"]}),
        "a required tool": chat(model, tools=[WEATHER], tool_choice="required", max_tokens=96),
        "a thinking budget": chat(model, thinking_token_budget=4, max_tokens=48),
        "eight answers at a time": completion(model, n=8, temperature=1.0),
    }
    for width, height in ((64, 48), (900, 700)):
        parts = [
            {"type": "text", "text": "What is it?"},
            {"type": "image_url", "image_url": {"url": _image(width, height)}},
        ]
        requests[f"an image of {width}x{height}"] = chat(model, parts)
    return requests


def saturation(model: str) -> list[ClientRequest]:
    """The requests of streams at saturation: mostly plain text of different lengths, and every other kind."""
    plain = [completion(model, "12345 " * words, max_tokens=tokens) for words in (8, 60, 300) for tokens in (64, 192)]
    return [*plain, *plain, *first_uses(model).values()]


def _image(width: int, height: int) -> str:
    file = io.BytesIO()
    Image.effect_noise((width, height), 60).convert("RGB").save(file, "JPEG")
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
