"""The functions of vLLM's API server that the ingress replaces (`ingress/vllm_errors.py`, `vllm_limits.py`,
`responses_api.py`, `requests/service_tier.py`, `grammars/structured_outputs.py`, `grammars/tools_or_answer.py`).

They are apart from their replacements, so that `vllm_api_check.py` can compare them with a vLLM that is not installed.
"""

from __future__ import annotations

from typing import Final

from serve_app.vllm_patches.patching import PatchTarget

_CREATE_ERROR = ("message", "err_type", "status_code", "param")
_LIMITS = ("vllm.renderers.params", "TokenizeParams")

SERVING_ERROR: Final = PatchTarget("vllm.entrypoints.serve.engine.serving", "", "create_error_response", _CREATE_ERROR)
ANTHROPIC_ERROR: Final = PatchTarget(
    "vllm.entrypoints.anthropic.api_router", "", "create_error_response", _CREATE_ERROR
)
RESPONSE_EVENTS: Final = PatchTarget(
    "vllm.entrypoints.openai.responses.api_router", "", "_convert_stream_to_sse_events", ("generator",)
)
OUTPUT_LIMIT: Final = PatchTarget(*_LIMITS, "__post_init__", ())
ENCODE_ARGUMENTS: Final = PatchTarget(*_LIMITS, "get_encode_kwargs", ())
TEXT_LIMIT: Final = PatchTarget(*_LIMITS, "_text_len_check", ("tokenizer", "text"))
TOKEN_LIMIT: Final = PatchTarget(*_LIMITS, "_token_len_check", ("tokenizer", "tokens"))

_MAX_TOKENS = ("max_model_len", "input_length", "truncate_prompt_tokens")
CHAT_MAX_TOKENS: Final = PatchTarget(
    "vllm.entrypoints.openai.chat_completion.serving", "", "get_max_tokens", _MAX_TOKENS
)
COMPLETION_MAX_TOKENS: Final = PatchTarget(
    "vllm.entrypoints.openai.completion.serving", "", "get_max_tokens", _MAX_TOKENS
)

_RESPONSES = "vllm.entrypoints.openai.responses"
_RESPONSES_CLASS = (f"{_RESPONSES}.serving", "OpenAIServingResponses")
WHOLE_RESPONSE: Final = PatchTarget(*_RESPONSES_CLASS, "responses_full_generator", ("request", "context"))
RESPONSE_STREAM: Final = PatchTarget(*_RESPONSES_CLASS, "responses_stream_generator", ("request", "context"))
RESPONSE_PARAMS: Final = PatchTarget(
    f"{_RESPONSES}.protocol", "ResponsesRequest", "to_sampling_params", ("default_max_tokens",)
)

CUSTOM_INPUT: Final = PatchTarget(f"{_RESPONSES}.utils", "", "decode_custom_tool_input", ("arguments",))
STREAMED_CUSTOM_INPUT: Final = PatchTarget(
    f"{_RESPONSES}.streaming_events", "", "decode_custom_tool_input", ("arguments",)
)

_CHAT = ("vllm.entrypoints.openai.chat_completion.protocol", "ChatCompletionRequest")
_COMPLETION = ("vllm.entrypoints.openai.completion.protocol", "CompletionRequest")
CHAT: Final = PatchTarget(
    "vllm.entrypoints.openai.chat_completion.serving", "OpenAIServingChat", "create_chat_completion", ("request",)
)
COMPLETION: Final = PatchTarget(
    "vllm.entrypoints.openai.completion.serving", "OpenAIServingCompletion", "create_completion", ("request",)
)
CHAT_PARAMS: Final = PatchTarget(*_CHAT, "to_sampling_params", ())
REASONING_ENDED: Final = PatchTarget(*_CHAT, "resolve_reasoning_ended", ("parser",))
COMPLETION_PARAMS: Final = PatchTarget(*_COMPLETION, "to_sampling_params", ())
VALIDATE_GRAMMAR: Final = PatchTarget(
    "vllm.sampling_params", "SamplingParams", "_validate_structured_outputs", ("tokenizer",)
)
_PARSER = "vllm.parser.abstract_parser"
STRUCTURAL_TAG: Final = PatchTarget(_PARSER, "DelegatingParser", "_apply_structural_tag", ("request",))
XGRAMMAR_SUPPORTS: Final = PatchTarget(_PARSER, "", "_xgrammar_supports", ("structured_outputs",))

TARGETS: Final = (
    WHOLE_RESPONSE,
    RESPONSE_STREAM,
    RESPONSE_PARAMS,
    CUSTOM_INPUT,
    STREAMED_CUSTOM_INPUT,
    CHAT,
    COMPLETION,
    CHAT_PARAMS,
    REASONING_ENDED,
    COMPLETION_PARAMS,
    VALIDATE_GRAMMAR,
    STRUCTURAL_TAG,
    XGRAMMAR_SUPPORTS,
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
