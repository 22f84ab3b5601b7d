"""Lets a request end with the beginning of its answer, which the model then continues ("prefill").

vLLM can do so for chat completions when asked (`continue_final_message`). Its Anthropic routes never ask, and answer
with a fresh turn; Anthropic's API continues a last assistant message. Its Responses API says "incomplete" of such a
message: that is the ingress' to set (`ingress/`). That all of such an answer is content is seen by `answer_parser.py`.
"""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any, Final

from serve_app.vllm_patches.patching import Function, Target, replace

CONVERT: Final = Target(
    "vllm.entrypoints.anthropic.serving",
    "AnthropicServingMessages",
    "to_chat_completion_request",
    ("anthropic_request",),
)
STREAM: Final = Target(
    "vllm.entrypoints.openai.chat_completion.serving",
    "OpenAIServingChat",
    "chat_completion_stream_generator",
    ("request", "conversation"),
)
TARGETS: Final = (CONVERT, STREAM)


def continue_answers() -> None:
    """Called in each ingress process. Calling it again changes nothing."""
    replace(CONVERT, ask_to_continue)
    replace(STREAM, echo_parts_as_text)


def ask_to_continue(original: Function, _: ModuleType) -> Function:
    """A conversation that ends with the assistant's words is continued."""

    def to_chat_completion_request(cls: Any, anthropic_request: Any, **options: Any) -> Any:
        request = original(cls, anthropic_request, **options)
        if request.messages and request.messages[-1]["role"] == "assistant":
            request.continue_final_message = True
            request.add_generation_prompt = False
        return request

    return to_chat_completion_request


def echo_parts_as_text(original: Function, _: ModuleType) -> Function:
    """With `echo`, a stream begins with the last message; vLLM's sends its parts, which no chunk can hold."""
    signature = inspect.signature(original)

    def chat_completion_stream_generator(*args: Any, **named: Any) -> Any:
        values = signature.bind(*args, **named).arguments
        conversation = values["conversation"]
        if values["request"].echo and conversation and isinstance(content := conversation[-1].get("content"), list):
            conversation[-1]["content"] = "\n".join(part["text"] for part in content)
        return original(*args, **named)

    return chat_completion_stream_generator
