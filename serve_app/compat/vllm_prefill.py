"""Lets a request end with the beginning of its answer, which the model then continues ("prefill").

vLLM can do so for chat completions when asked (`continue_final_message`). Its Anthropic routes never ask, and answer
with a fresh turn; Anthropic's API continues a last assistant message. Its Responses API says "incomplete" of such a
message: that is the ingress' to set (`ingress/`). That all of such an answer is content is seen by `answer_parser.py`.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, Final

from serve_app.compat.patching import Function, Target, replace

CONVERT: Final = Target(
    "vllm.entrypoints.anthropic.serving",
    "AnthropicServingMessages",
    "to_chat_completion_request",
    ("anthropic_request",),
)
TARGETS: Final = (CONVERT,)


def continue_answers() -> None:
    """Called in each ingress process. Calling it again changes nothing."""
    replace(CONVERT, ask_to_continue)


def ask_to_continue(original: Function, _: ModuleType) -> Function:
    """A conversation that ends with the assistant's words is continued."""

    def to_chat_completion_request(cls: Any, anthropic_request: Any, **options: Any) -> Any:
        request = original(cls, anthropic_request, **options)
        if request.messages and request.messages[-1]["role"] == "assistant":
            request.continue_final_message = True
            request.add_generation_prompt = False
        return request

    return to_chat_completion_request
