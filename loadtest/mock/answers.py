"""The mock server's answers as bytes, in the shapes that vLLM's server sends."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec


@dataclass(frozen=True)
class MockConfig:
    """How the mock behaves. `fail_every` n spoils every n-th generation request with `fault`."""

    first_s: float = 0.05
    gap_s: float = 0.02
    tokens_per_chunk: int = 1
    model: str = "mock"
    root: str = "mock"
    api_key: str = ""
    fail_every: int = 0
    fault: str = ""
    """full, unavailable, error, event, cut, short, garbage, silent."""
    reasoning_chunks: int = 0
    cached_tokens: int = 0
    max_inflight: int = 10**9
    """Beyond this a request waits its turn, which is how a saturated engine looks from outside."""


class MockRequest(msgspec.Struct):
    """The fields of a request that matter to the mock."""

    model: str = ""
    messages: list[msgspec.Raw] = []
    prompt: str | list[int] = ""
    max_tokens: int | None = None
    max_completion_tokens: int | None = None

    def wanted(self) -> int:
        """Tokens asked for."""
        return self.max_completion_tokens or self.max_tokens or 16

    def prompt_tokens(self) -> int:
        """A guess good enough for a mock: four bytes a token, or the ids given."""
        if isinstance(self.prompt, list):
            return len(self.prompt)
        return max(1, (len(self.prompt) + sum(len(bytes(message)) for message in self.messages)) // 4)


def chunk(payload: bytes) -> bytes:
    """One HTTP chunk."""
    return b"%x\r\n%s\r\n" % (len(payload), payload)


def _words(config: MockConfig, wanted: int) -> list[int]:
    """Token counts of the chunks that make up `wanted` tokens."""
    size = config.tokens_per_chunk
    return [size] * (wanted // size) + ([wanted % size] if wanted % size else [])


def _usage(config: MockConfig, request: MockRequest, wanted: int) -> dict[str, object]:
    prompt = request.prompt_tokens()
    details = {"cached_tokens": config.cached_tokens} if config.cached_tokens else None
    return {
        "prompt_tokens": prompt,
        "completion_tokens": wanted,
        "total_tokens": prompt + wanted,
        "prompt_tokens_details": details,
    }


def _chat_chunks(config: MockConfig, request: MockRequest) -> list[bytes]:
    """As vLLM sends them: a role-only event with the first token's, then one event a step, then usage, then the end."""
    wanted = request.wanted()
    base = {
        "id": "chatcmpl-mock-0123456789abcdef",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": request.model,
    }
    counts = _words(config, wanted)

    def event(delta: dict[str, object], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return b"data: " + msgspec.json.encode({**base, "choices": [choice]}) + b"\n\n"

    out = []
    for number, count in enumerate(counts):
        channel = "reasoning" if number < config.reasoning_chunks else "content"
        out.append(event({channel: " word" * count}, "length" if number == len(counts) - 1 else None))
    first = event({"role": "assistant", "content": ""})
    tail = b"data: " + msgspec.json.encode({**base, "choices": [], "usage": _usage(config, request, wanted)}) + b"\n\n"
    return _packed([first + out[0], *out[1:]], tail + b"data: [DONE]\n\n")


def _completion_chunks(config: MockConfig, request: MockRequest) -> list[bytes]:
    wanted = request.wanted()
    base = {"id": "cmpl-mock-0123456789abcdef", "object": "text_completion", "created": 1, "model": request.model}
    counts = _words(config, wanted)
    out = []
    for number, count in enumerate(counts):
        finish = "length" if number == len(counts) - 1 else None
        choice = {"index": 0, "text": " word" * count, "logprobs": None, "finish_reason": finish}
        out.append(b"data: " + msgspec.json.encode({**base, "choices": [choice]}) + b"\n\n")
    tail = b"data: " + msgspec.json.encode({**base, "choices": [], "usage": _usage(config, request, wanted)}) + b"\n\n"
    return _packed(out, tail + b"data: [DONE]\n\n")


def _message_chunks(config: MockConfig, request: MockRequest) -> list[bytes]:
    wanted = request.wanted()

    def event(name: str, content: dict[str, object]) -> bytes:
        return b"event: %s\ndata: %s\n\n" % (name.encode(), msgspec.json.encode({"type": name, **content}))

    usage = {"input_tokens": request.prompt_tokens(), "output_tokens": 0}
    opening = event("message_start", {"message": {"role": "assistant", "usage": usage}})
    opening += event("content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}})
    out = [
        event("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": " word" * count}})
        for count in _words(config, wanted)
    ]
    tail = event("content_block_stop", {"index": 0})
    usage = {**usage, "output_tokens": wanted}
    tail += event("message_delta", {"delta": {"stop_reason": "max_tokens"}, "usage": usage})
    tail += event("message_stop", {})
    return _packed([opening + out[0], *out[1:]], tail)


def _packed(events: list[bytes], tail: bytes) -> list[bytes]:
    """HTTP chunks; the end comes with the last token, as it does from a server that has nothing more to wait for."""
    out = [chunk(event) for event in events]
    out[-1] += chunk(tail) + b"0\r\n\r\n"
    return out


WRITERS = {
    "/v1/chat/completions": _chat_chunks,
    "/v1/completions": _completion_chunks,
    "/v1/messages": _message_chunks,
}
