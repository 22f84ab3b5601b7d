"""The messages between an ingress and the process that tries its grammars, and the limits of a grammar.

Bytes over the process' standard input and output: four of length, then msgpack. Nothing here knows vLLM.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

MAX_COMPILE_CPU_S: Final = 8
"""CPU time to validate and compile a grammar. 3,000 properties take 4 s with the demo's vocabulary (xgrammar 0.2.8);
one that takes twice as long explodes, and would hold one of an engine's few compiler threads for minutes."""

MAX_MEMORY_BYTES: Final = 2 << 30
"""Address space beyond that of the process at its start. The largest grammar that compiles in time takes 250 MB."""

MAX_TOKEN_S: Final = 0.05
"""Longest that finding the next allowed tokens may take. An engine does it within a step, while all streams wait."""

TRIED_TOKENS: Final = 64
"""How many tokens are tried: a slow grammar is slow within its first few tokens."""


class WorkerSettings(msgspec.Struct, frozen=True):
    """The first message to a worker: how to read the model's tokenizer, and how vLLM is set up."""

    tokenizer: str
    tokenizer_mode: str
    revision: str | None
    trust_remote_code: bool
    vocab_size: int
    model_type: str
    backend: str
    disable_any_whitespace: bool
    disable_additional_properties: bool
    speculative_tokens: int
    max_compile_cpu_s: int = MAX_COMPILE_CPU_S
    max_memory_bytes: int = MAX_MEMORY_BYTES
    max_token_s: float = MAX_TOKEN_S


class Job(msgspec.Struct, frozen=True):
    """One grammar: the fields of vLLM's `StructuredOutputsParams` that are set, as JSON, which takes any number and
    half a surrogate pair."""

    fields: str


class GrammarVerdict(msgspec.Struct, frozen=True):
    """The result of trying a grammar: what is wrong with it, or (`problem` is empty) the fields that vLLM's validation
    changed."""

    problem: str = ""
    fields: dict[str, Any] = {}
    """Changed fields: the back end that vLLM chose, a list of choices that became a grammar."""


def encode(message: msgspec.Struct) -> bytes:
    """`message` with its length."""
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(4, "big") + body
