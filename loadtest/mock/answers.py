"""The mock server's responses as bytes, in the format of vLLM's server."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

BYTES_PER_TOKEN = 4


@dataclass(frozen=True)
class MockConfig:
    """The mock's times and faults. Every `fail_every`-th generation request gets `fault`; 0: none."""

    first_s: float = 0.05
    gap_s: float = 0.02
    tokens_per_chunk: int = 1
    model: str = "mock"
    root: str = "mock"
    api_key: str = ""
    fail_every: int = 0
    fault: str = ""
    """One of `FAULTS`."""
    reasoning_chunks: int = 0
    cached_tokens: int = 0
    max_inflight: int = 10**9
    """Further requests are queued, as in a saturated engine."""
    replicas: int = 0
    """Replicas with a prefix cache each, named in `x-replica-id`; 0: neither."""
    routing: str = "session"
    """How a replica is chosen: by `session`, or in turn (`round-robin`), as are sessions without a name."""


class MockRequest(msgspec.Struct):
    """The fields of a request that the mock reads."""

    model: str = ""
    messages: list[msgspec.Raw] = []
    prompt: str | list[int] = ""
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    prompt_cache_key: str | None = None

    def output_tokens(self) -> int:
        """The requested number of output tokens; 16 if there is none, as in OpenAI's completions API."""
        return self.max_completion_tokens or self.max_tokens or 16

    def prompt_tokens(self) -> int:
        """An estimate of one token per four bytes; exact for token ids."""
        if isinstance(self.prompt, list):
            return len(self.prompt)
        return max(1, (len(self.prompt) + sum(len(bytes(message)) for message in self.messages)) // BYTES_PER_TOKEN)


def chunk(payload: bytes) -> bytes:
    """One HTTP chunk."""
    return b"%x\r\n%s\r\n" % (len(payload), payload)


def _tokens_per_chunk(config: MockConfig, tokens: int) -> list[int]:
    """Token counts of the chunks that make up `tokens`."""
    size = config.tokens_per_chunk
    return [size] * (tokens // size) + ([tokens % size] if tokens % size else [])


def _usage(config: MockConfig, request: MockRequest, tokens: int) -> dict[str, object]:
    prompt = request.prompt_tokens()
    details = {"cached_tokens": config.cached_tokens} if config.cached_tokens else None
    return {
        "prompt_tokens": prompt,
        "completion_tokens": tokens,
        "total_tokens": prompt + tokens,
        "prompt_tokens_details": details,
    }


def _chat_chunks(config: MockConfig, request: MockRequest) -> list[bytes]:
    """As vLLM sends them: a role-only event together with the first token, an event per step, usage, the end marker."""
    tokens = request.output_tokens()
    base = {
        "id": "chatcmpl-mock-0123456789abcdef",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": request.model,
    }
    counts = _tokens_per_chunk(config, tokens)

    def event(delta: dict[str, object], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return b"data: " + msgspec.json.encode({**base, "choices": [choice]}) + b"\n\n"

    events = []
    for number, count in enumerate(counts):
        channel = "reasoning" if number < config.reasoning_chunks else "content"
        events.append(event({channel: " word" * count}, "length" if number == len(counts) - 1 else None))
    first = event({"role": "assistant", "content": ""})
    tail = b"data: " + msgspec.json.encode({**base, "choices": [], "usage": _usage(config, request, tokens)}) + b"\n\n"
    return _http_chunks([first + events[0], *events[1:]], tail + b"data: [DONE]\n\n")


def _completion_chunks(config: MockConfig, request: MockRequest) -> list[bytes]:
    tokens = request.output_tokens()
    base = {"id": "cmpl-mock-0123456789abcdef", "object": "text_completion", "created": 1, "model": request.model}
    counts = _tokens_per_chunk(config, tokens)
    events = []
    for number, count in enumerate(counts):
        finish = "length" if number == len(counts) - 1 else None
        choice = {"index": 0, "text": " word" * count, "logprobs": None, "finish_reason": finish}
        events.append(b"data: " + msgspec.json.encode({**base, "choices": [choice]}) + b"\n\n")
    tail = b"data: " + msgspec.json.encode({**base, "choices": [], "usage": _usage(config, request, tokens)}) + b"\n\n"
    return _http_chunks(events, tail + b"data: [DONE]\n\n")


def _message_chunks(config: MockConfig, request: MockRequest) -> list[bytes]:
    tokens = request.output_tokens()

    def event(name: str, content: dict[str, object]) -> bytes:
        return b"event: %s\ndata: %s\n\n" % (name.encode(), msgspec.json.encode({"type": name, **content}))

    usage = {"input_tokens": request.prompt_tokens(), "output_tokens": 0}
    opening = event("message_start", {"message": {"role": "assistant", "usage": usage}})
    opening += event("content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}})
    events = [
        event("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": " word" * count}})
        for count in _tokens_per_chunk(config, tokens)
    ]
    tail = event("content_block_stop", {"index": 0})
    usage = {**usage, "output_tokens": tokens}
    tail += event("message_delta", {"delta": {"stop_reason": "max_tokens"}, "usage": usage})
    tail += event("message_stop", {})
    return _http_chunks([opening + events[0], *events[1:]], tail)


def _http_chunks(events: list[bytes], tail: bytes) -> list[bytes]:
    """As HTTP chunks. The end of the response is sent together with the last token."""
    chunks = [chunk(event) for event in events]
    chunks[-1] += chunk(tail) + b"0\r\n\r\n"
    return chunks


WRITERS = {
    "/v1/chat/completions": _chat_chunks,
    "/v1/completions": _completion_chunks,
    "/v1/messages": _message_chunks,
}
