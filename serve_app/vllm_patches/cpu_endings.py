"""Ends output that the demo model would not end: JSON with unbounded parts, and repetition.

The demo model, the only one served on a CPU, writes blanks after a colon forever (JSON allows them) and repeats itself
in an unbounded string. With `max_tokens` left to its default a client waits for thousands of tokens and gets half an
object. So here white space is one character at most, and free strings, numbers and arrays have a largest size. The
output is valid under the client's own schema, because a narrower one is compiled. And an answer that repeats the same
few tokens ends, as if it had reached its `max_tokens`: on an agent's prompt, unlike any that it was trained on, the
demo would continue to the last of the 16,384 tokens that agents allow.
"""

from __future__ import annotations

import json
from types import ModuleType
from typing import Any, Final

from serve_app.vllm_patches.patching import Function, PatchTarget

BACKEND: Final = PatchTarget("vllm.v1.structured_output.backend_xgrammar", "XgrammarBackend", "__post_init__", ())

CHECK_STOP: Final = PatchTarget("vllm.v1.core.sched.scheduler", "", "check_stop", ("request", "max_model_len"))

MAX_WHITESPACE: Final = 1
MAX_STRING_CHARS: Final = 48
"""Some 20 tokens of the demo's vocabulary. Longest in its training data: 40."""
MAX_ITEMS: Final = 8

MAX_NUMBER: Final = 999_999_999

PLAIN_TEXT: Final = r'^[^"\\\x00-\x1f]{%d,%d}$'
"""Text without escapes. Not `maxLength`: in such a string xgrammar (0.2.8) allows control characters, which make
invalid JSON."""

BOUNDED_STRINGS: Final = ("maxLength", "pattern", "format", "enum", "const")
BOUNDED_NUMBERS: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "enum", "const")
LITERALS: Final = ("enum", "const", "default", "examples")


PATTERN_TOKENS, REPETITIONS = 16, 16
"""Most tokens of a repeated pattern, and how often it must occur: more than in any training sample of the demo."""
LOOK_EVERY_TOKENS: Final = 8


def end_repetition(original: Function, _: ModuleType) -> Function:
    """Extend the scheduler's check whether a request has ended by vLLM's own detector of repetition.

    Not for requests that ask for a length (`ignore_eos`), nor for those that set the detector themselves.
    """
    from vllm.sampling_params import RepetitionDetectionParams
    from vllm.v1.core.sched.utils import check_sequence_repetition
    from vllm.v1.request import RequestStatus

    detector = RepetitionDetectionParams(max_pattern_size=PATTERN_TOKENS, min_count=REPETITIONS)

    def check_stop(request: Any, max_model_len: int) -> bool:
        if original(request, max_model_len):
            return True
        if request.use_structured_output:
            return False  # its grammar has an end, and half of an object is of no use
        params = request.sampling_params
        if (
            request.num_output_tokens % LOOK_EVERY_TOKENS
            or params.ignore_eos
            or params.repetition_detection is not None
        ):
            return False
        if not check_sequence_repetition(request.output_token_ids, detector):
            return False
        # "length", and not vLLM's own "repetition", which no API has a word for.
        request.status = RequestStatus.FINISHED_LENGTH_CAPPED
        return True

    return check_stop


def bound_json_schemas(original: Function, _: ModuleType) -> Function:
    """Compile narrower JSON schemas in each new back end."""

    def __post_init__(self: Any) -> None:  # noqa: N807  # vLLM's name
        original(self)
        self.compiler = _BoundedCompiler(self.compiler)

    return __post_init__


class _BoundedCompiler:
    """xgrammar's `GrammarCompiler` that bounds what a JSON schema does not."""

    def __init__(self, compiler: Any) -> None:
        self._compiler = compiler

    def __getattr__(self, name: str) -> Any:
        return getattr(self._compiler, name)

    def compile_json_schema(self, schema: str, **options: Any) -> Any:
        """See xgrammar's."""
        if options.get("any_whitespace", True):
            options["max_whitespace_cnt"] = MAX_WHITESPACE
        return self._compiler.compile_json_schema(json.dumps(bounded(json.loads(schema))), **options)


def bounded(schema: Any) -> Any:
    """`schema` with a largest size for strings and arrays that have none, at any depth."""
    if isinstance(schema, list):
        return [bounded(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    narrow = {key: value if key in LITERALS else bounded(value) for key, value in schema.items()}
    kinds = schema.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if "string" in kinds and not any(key in schema for key in BOUNDED_STRINGS):
        least = _count(narrow.pop("minLength", 0))
        narrow["pattern"] = PLAIN_TEXT % (least, least + MAX_STRING_CHARS)
    if "array" in kinds and "maxItems" not in schema:
        narrow["maxItems"] = MAX_ITEMS + _count(schema.get("minItems"))
    if ("integer" in kinds or "number" in kinds) and not any(key in schema for key in BOUNDED_NUMBERS):
        narrow |= {"minimum": -MAX_NUMBER, "maximum": MAX_NUMBER}
    return narrow


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0
