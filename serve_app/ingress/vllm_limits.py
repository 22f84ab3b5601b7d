"""Refusals of prompts and outputs that do not fit into the context, with the true number of tokens, which agents read.

vLLM clamps `max_tokens` to what the prompt leaves, and so do we: a request is refused only for a prompt that leaves
nothing, or for more output than the whole context holds.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, Final

from serve_app.ingress.vllm_errors import ServeHTTPError
from serve_app.protocol.errors import OutputTooLong, PromptTooLong
from serve_app.vllm_patches import vllm_api
from serve_app.vllm_patches.patching import Function, replace

SAMPLES: Final = 16
SAMPLE_CHARS: Final = 4096
"""A long text is sampled: this many pieces of this many characters. Tokenising them takes 0.07 s on the event loop; to
tokenise 20 MB that do not fit took 23 s and 2.5 GB."""

LONG_TEXT: Final = 8
"""Characters per token of the context beyond which a text is sampled before it is tokenised. Prose and code have
four."""

CLEARLY: Final = 2
"""A sampled text is refused if it has more than this many times the tokens that fit. Below that it is counted."""


def patch() -> None:
    """Replace vLLM's checks. Calling it again changes nothing."""
    replace(vllm_api.OUTPUT_LIMIT, _output_check)
    replace(vllm_api.ENCODE_ARGUMENTS, _counting_all)
    replace(vllm_api.TEXT_LIMIT, _text_check)
    replace(vllm_api.TOKEN_LIMIT, _token_check)
    replace(vllm_api.CHAT_MAX_TOKENS, _no_room)
    replace(vllm_api.COMPLETION_MAX_TOKENS, _no_room)


def _output_check(original: Function, _module: ModuleType) -> Function:
    def check_output(self: Any) -> None:
        limit, asked = self.max_total_tokens, self.max_output_tokens
        if limit is not None and asked is not None and asked > limit:
            raise ServeHTTPError(OutputTooLong(asked, limit, self.max_output_tokens_param))
        original(self)

    return check_output


def _counting_all(original: Function, _module: ModuleType) -> Function:
    """Tokenise the whole prompt. vLLM stops at one token more than fits, and cannot report the count; the tokenizer
    reads all of the text either way."""

    def get_encode_kwargs(self: Any) -> dict[str, Any]:
        arguments: dict[str, Any] = original(self)
        return (
            arguments
            if self.truncate_prompt_tokens is not None
            else {**arguments, "truncation": False, "max_length": None}
        )

    return get_encode_kwargs


def _text_check(original: Function, _module: ModuleType) -> Function:
    """A text that clearly does not fit is not tokenised: its length is estimated."""

    def _text_len_check(self: Any, tokenizer: Any, text: str) -> Any:
        limit = self.max_input_tokens
        if limit is None or tokenizer is None or self.truncate_prompt_tokens is not None:
            return original(self, tokenizer, text)
        cannot_fit = len(text) > limit * tokenizer.max_chars_per_token
        if cannot_fit or len(text) > limit * LONG_TEXT:
            tokens = _estimated_tokens(tokenizer, text)
            if cannot_fit or tokens > limit * CLEARLY:
                raise ServeHTTPError(PromptTooLong(max(tokens, limit + 1), self.max_total_tokens))
        return text

    return _text_len_check


def _estimated_tokens(tokenizer: Any, text: str) -> int:
    starts = range(0, len(text), -(-len(text) // SAMPLES))
    samples = [text[start : start + SAMPLE_CHARS] for start in starts]
    counted = sum(len(tokenizer.encode(sample, add_special_tokens=False)) for sample in samples)
    return counted * len(text) // sum(map(len, samples))


def _token_check(original: Function, _module: ModuleType) -> Function:
    def _token_len_check(self: Any, tokenizer: Any, tokens: Any) -> Any:
        limit = self.max_input_tokens
        if limit is not None and len(tokens) > limit:
            raise ServeHTTPError(PromptTooLong(len(tokens), self.max_total_tokens))
        return original(self, tokenizer, tokens)

    return _token_len_check


def _no_room(original: Function, _module: ModuleType) -> Function:
    """Refuse a prompt that fills the context: it leaves no token for an answer, and vLLM would clamp `max_tokens` to 0
    and report that."""

    def get_max_tokens(max_model_len: int, max_tokens: int | None, input_length: int, *rest: Any, **named: Any) -> int:
        if input_length >= max_model_len and named.get("truncate_prompt_tokens") is None:
            raise ServeHTTPError(PromptTooLong(input_length, max_model_len))
        allowed: int = original(max_model_len, max_tokens, input_length, *rest, **named)
        return allowed

    return get_max_tokens
