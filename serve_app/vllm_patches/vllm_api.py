"""The functions of vLLM's API server that the ingress replaces (`ingress/vllm_errors.py`, `vllm_limits.py`,
`responses_api.py`, `structured_outputs.py`).

Apart from what replaces them, so that `compat.names` can compare them with a vLLM that is not installed.
"""

from __future__ import annotations

from typing import Final

from serve_app.vllm_patches.patching import Target

_CREATE_ERROR = ("message", "err_type", "status_code", "param")
_LIMITS = ("vllm.renderers.params", "TokenizeParams")

SERVING_ERROR: Final = Target("vllm.entrypoints.serve.engine.serving", "", "create_error_response", _CREATE_ERROR)
ANTHROPIC_ERROR: Final = Target("vllm.entrypoints.anthropic.api_router", "", "create_error_response", _CREATE_ERROR)
RESPONSE_EVENTS: Final = Target(
    "vllm.entrypoints.openai.responses.api_router", "", "_convert_stream_to_sse_events", ("generator",)
)
OUTPUT_LIMIT: Final = Target(*_LIMITS, "__post_init__", ())
ENCODE_ARGUMENTS: Final = Target(*_LIMITS, "get_encode_kwargs", ())
TEXT_LIMIT: Final = Target(*_LIMITS, "_text_len_check", ("tokenizer", "text"))
TOKEN_LIMIT: Final = Target(*_LIMITS, "_token_len_check", ("tokenizer", "tokens"))

_MAX_TOKENS = ("max_model_len", "input_length", "truncate_prompt_tokens")
CHAT_MAX_TOKENS: Final = Target("vllm.entrypoints.openai.chat_completion.serving", "", "get_max_tokens", _MAX_TOKENS)
COMPLETION_MAX_TOKENS: Final = Target("vllm.entrypoints.openai.completion.serving", "", "get_max_tokens", _MAX_TOKENS)

_RESPONSES = "vllm.entrypoints.openai.responses"
_RESPONSES_CLASS = (f"{_RESPONSES}.serving", "OpenAIServingResponses")
WHOLE_RESPONSE: Final = Target(*_RESPONSES_CLASS, "responses_full_generator", ("request", "context"))
RESPONSE_STREAM: Final = Target(*_RESPONSES_CLASS, "responses_stream_generator", ("request", "context"))
RESPONSE_PARAMS: Final = Target(
    f"{_RESPONSES}.protocol", "ResponsesRequest", "to_sampling_params", ("default_max_tokens",)
)

_CHAT = ("vllm.entrypoints.openai.chat_completion.protocol", "ChatCompletionRequest")
_COMPLETION = ("vllm.entrypoints.openai.completion.protocol", "CompletionRequest")
CHAT_PARAMS: Final = Target(*_CHAT, "to_sampling_params", ())
REASONING_ENDED: Final = Target(*_CHAT, "resolve_reasoning_ended", ("parser",))
COMPLETION_PARAMS: Final = Target(*_COMPLETION, "to_sampling_params", ())
VALIDATE_GRAMMAR: Final = Target(
    "vllm.sampling_params", "SamplingParams", "_validate_structured_outputs", ("tokenizer",)
)

TARGETS: Final = (
    WHOLE_RESPONSE,
    RESPONSE_STREAM,
    RESPONSE_PARAMS,
    CHAT_PARAMS,
    REASONING_ENDED,
    COMPLETION_PARAMS,
    VALIDATE_GRAMMAR,
    SERVING_ERROR,
    ANTHROPIC_ERROR,
    RESPONSE_EVENTS,
    OUTPUT_LIMIT,
    ENCODE_ARGUMENTS,
    TEXT_LIMIT,
    TOKEN_LIMIT,
    CHAT_MAX_TOKENS,
    COMPLETION_MAX_TOKENS,
)
