"""A request's body on its way to vLLM's server: checked, prepared for what vLLM can serve, encoded if it changed.

What a request lists is limited in number and length, before anything works through it: vLLM checks some of it itself,
after walking through all of it on the event loop (a million stop token ids: eight seconds). Some it does not check: its
V2 model runner raises for more than it has room for, which ends an engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from serve_app.ingress.requests import anthropic, chat, responses
from serve_app.ingress.requests.edits import Edits
from serve_app.protocol.errors import RequestRefused

Prepare = Callable[[dict[str, Any], Edits], None]

PREPARED: dict[str, Prepare] = {
    "/v1/chat/completions": chat.prepare,
    "/tokenize": chat.prepare,  # so that it counts what would be sent
    "/v1/responses": responses.prepare,
    "/v1/messages": anthropic.prepare,
    "/v1/messages/count_tokens": anthropic.prepare,
}
"""How each route's requests are prepared. Other routes have nothing that vLLM does not take."""

WITH_BODY = frozenset({*PREPARED, "/v1/completions", "/detokenize"})
"""Routes whose requests are JSON objects."""


def prepare(path: str, request: dict[str, Any], edits: Edits) -> None:
    """Change the request, in place, into one that vLLM serves. Raises `RequestRefused`, with the faulty field."""
    if None in request.values():
        # In all three APIs null means "not set"; vLLM accepts it for most fields only.
        for name in [name for name, entry in request.items() if entry is None]:
            del request[name]
        edits.changed = True
    variables = request.get("chat_template_kwargs")
    variables = variables if isinstance(variables, dict) else {}
    for name in ("messages", "tools"):
        if name in variables:  # vLLM passes these itself, and fails on a second one
            field = f"chat_template_kwargs.{name}"
            raise RequestRefused(f"`{field}` cannot be set; use the request's own field.", param=field)
    check_counts(request)
    apply = PREPARED.get(path)
    if apply is not None:
        apply(request, edits)


MAX_ENTRIES: Final[Mapping[str, int]] = {
    "logit_bias": 1024,
    "allowed_token_ids": 1024,
    "stop_token_ids": 120,
    "bad_words": 128,
}
"""What vLLM's V2 model runner has room for (`gpu/sample/logit_bias.py`, `bad_words.py`; some of its 128 stop tokens are
the model's own). Longer lists end an engine there."""

MAX_BAD_WORD_TOKENS: Final = 1024
"""Tokens of all bad words together, in the same place."""

MAX_STRING: Final = 1000
"""Characters of one string in `WORDS`. A stop string holds back as many of a stream."""

WORDS: Final = ("stop", "stop_sequences", "bad_words")

MAX_PATTERN: Final = 1024
"""Tokens of a repeated pattern. The scheduler tries each length up to it at every token, in Python."""

MAX_PROMPT_LOGPROBS: Final = 1 << 17
"""Prompt tokens times `prompt_logprobs`. Each becomes an object, on the event loop: this many take half a second."""


def check_counts(request: Mapping[str, Any]) -> None:
    """Raises `RequestRefused` for lists and strings beyond their limits."""
    for name, limit in MAX_ENTRIES.items():
        entry = request.get(name)
        if isinstance(entry, list | dict) and len(entry) > limit:
            raise RequestRefused(f"`{name}` has {len(entry)} entries; at most {limit} are taken.", param=name)
    for name in WORDS:
        entry = request.get(name)
        for word in entry if isinstance(entry, list) else [entry]:
            if isinstance(word, str) and len(word) > MAX_STRING:
                raise RequestRefused(
                    f"A string in `{name}` has {len(word)} characters; at most {MAX_STRING} are taken.", param=name
                )
    detection = request.get("repetition_detection")
    size = detection.get("max_pattern_size") if isinstance(detection, dict) else None
    if isinstance(size, int) and size > MAX_PATTERN:
        field = "repetition_detection.max_pattern_size"
        raise RequestRefused(f"`{field}` is {size}; at most {MAX_PATTERN} is taken.", param=field)


def check_token_counts(bad_words: int, prompt_logprobs: int) -> None:
    """Raises `RequestRefused` for limits that depend on tokens: those of all bad words, and the log probabilities of
    the prompt."""
    if bad_words > MAX_BAD_WORD_TOKENS:
        text = f"`bad_words` have {bad_words} tokens in all; at most {MAX_BAD_WORD_TOKENS} are taken."
        raise RequestRefused(text, param="bad_words")
    if prompt_logprobs > MAX_PROMPT_LOGPROBS:
        raise RequestRefused(
            f"{prompt_logprobs} log probabilities of prompt tokens are too many: at most {MAX_PROMPT_LOGPROBS}. "
            "Ask for fewer `prompt_logprobs`, or for a shorter prompt's.",
            param="prompt_logprobs",
        )
