"""Lets a request end with the beginning of its answer, which the model then continues ("prefill").

vLLM can do so for chat completions when asked (`continue_final_message`); three places are missing:

* Its Anthropic routes never ask, and answer with a fresh turn. Anthropic's API continues a last assistant message.
* A whole answer of a reasoning model is parsed as if it began with reasoning, whatever the prompt says. The template
  has closed the reasoning before the answer's beginning, so that all of the answer is content. (A stream looks at the
  prompt, and is right; but it, too, counts the answer's tokens as reasoning.)
* Its Responses API says "incomplete" of such a last message; that is the ingress' to set (`ingress/`).
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any, Final

from serve_app.compat.patching import Function, Target, replace

CONVERT: Final = Target(
    "vllm.entrypoints.anthropic.serving",
    "AnthropicServingMessages",
    "to_chat_completion_request",
    ("anthropic_request",),
)
PROMPT: Final = Target("vllm.parser.abstract_parser", "Parser", "set_prompt_token_ids", ("prompt_token_ids",))
REASONING: Final = Target(
    "vllm.parser.abstract_parser", "DelegatingParser", "extract_reasoning", ("model_output", "request")
)
COUNT: Final = Target("vllm.parser.abstract_parser", "DelegatingParser", "count_reasoning_tokens", ("token_ids",))
TARGETS: Final = (CONVERT, PROMPT, REASONING, COUNT)

CLOSED: Final = "_step_serve_reasoning_closed"
"""On a parser: the prompt has closed the reasoning."""


def continue_answers() -> None:
    """Called in each ingress process. Calling it again changes nothing."""
    replace(CONVERT, ask_to_continue)
    replace(PROMPT, look_at_prompt)
    replace(REASONING, without_reasoning)
    replace(COUNT, count_none)


def ask_to_continue(original: Function, _: ModuleType) -> Function:
    """A conversation that ends with the assistant's words is continued."""

    def to_chat_completion_request(cls: Any, anthropic_request: Any, **options: Any) -> Any:
        request = original(cls, anthropic_request, **options)
        if request.messages and request.messages[-1]["role"] == "assistant":
            request.continue_final_message = True
            request.add_generation_prompt = False
        return request

    return to_chat_completion_request


def look_at_prompt(original: Function, _: ModuleType) -> Function:
    """The parser is told of the prompt before it sees a whole answer."""

    def set_prompt_token_ids(self: Any, prompt_token_ids: Sequence[int]) -> None:
        original(self, prompt_token_ids)
        setattr(self, CLOSED, self.is_reasoning_end(list(prompt_token_ids)))

    return set_prompt_token_ids


def without_reasoning(original: Function, _: ModuleType) -> Function:
    """A whole answer to a prompt that has closed the reasoning is content from its first character on."""

    def extract_reasoning(self: Any, model_output: str, request: Any) -> Any:
        if getattr(self, CLOSED, False):
            return None, model_output
        return original(self, model_output, request)

    return extract_reasoning


def count_none(original: Function, _: ModuleType) -> Function:
    """None of such an answer's tokens is reasoning.

    A whole answer's parser has been told of the prompt. A stream's has looked by itself, and has then gone straight to
    the answer: its reasoning parser was never fed, so that asking it would parse the answer as one that begins with
    reasoning."""

    def count_reasoning_tokens(self: Any, token_ids: Sequence[int]) -> int:
        closed = getattr(self, CLOSED, None)
        if closed is None and self._stream_state.prompt_reasoning_checked:
            closed = not getattr(self._reasoning_parser, "_streaming_count_valid", True)
        if closed:
            return 0
        return int(original(self, token_ids))

    return count_reasoning_tokens
