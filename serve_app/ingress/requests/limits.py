"""How many and how long what a request lists may be: more is refused before anything works through it.

vLLM checks some of it itself, after having walked through all of it on the event loop (a million stop token ids: eight
seconds). And some it does not check: its V2 model runner raises for more than it has room for, which ends an engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from serve_app.protocol.errors import RequestRefused

MAX_ENTRIES: Final[Mapping[str, int]] = {
    "logit_bias": 1024,
    "allowed_token_ids": 1024,
    "stop_token_ids": 120,
    "bad_words": 128,
}
"""What vLLM's V2 model runner has room for (`gpu/sample/logit_bias.py`, `bad_words.py`; of 128 stop tokens some are the
model's own). Longer lists of these end an engine there."""

MAX_BAD_WORD_TOKENS: Final = 1024
"""Of all bad words together, in the same place."""

MAX_STRING: Final = 1000
"""Characters of one of `WORDS`. A stop string holds back as many of a stream."""

WORDS: Final = ("stop", "stop_sequences", "bad_words")

MAX_PATTERN: Final = 1024
"""Tokens of a repeated pattern. The scheduler looks for each length up to it at every token, in Python."""

MAX_PROMPT_LOGPROBS: Final = 1 << 17
"""Prompt tokens times `prompt_logprobs`. Each becomes an object, on the event loop: so many take half a second."""


def check(request: Mapping[str, Any]) -> None:
    """Raises `RequestRefused` for a body with too much in it."""
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


def check_tokens(bad_words: int, prompt_logprobs: int) -> None:
    """Raises `RequestRefused` for what only tokens can tell: those of all bad words, and how many log probabilities of
    the prompt's are asked for."""
    if bad_words > MAX_BAD_WORD_TOKENS:
        text = f"`bad_words` have {bad_words} tokens in all; at most {MAX_BAD_WORD_TOKENS} are taken."
        raise RequestRefused(text, param="bad_words")
    if prompt_logprobs > MAX_PROMPT_LOGPROBS:
        raise RequestRefused(
            f"{prompt_logprobs} log probabilities of prompt tokens are too many: at most {MAX_PROMPT_LOGPROBS}. "
            "Ask for fewer `prompt_logprobs`, or for a shorter prompt's.",
            param="prompt_logprobs",
        )
