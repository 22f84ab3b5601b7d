"""A grammar that cannot work is the request's fault, is named, and is noticed before an engine has it.

vLLM checks a request's grammar at the front end with the library that compiles it (xgrammar), and takes one that this
refuses to another library (guidance) that may accept it. What it leaves to chance is mended here:

* Errors name the field as the client wrote it.
* A regular expression that no common dialect knows (`foo**`) is refused, also within a JSON schema.
* What is too large to be compiled within seconds is refused.
* `include_reasoning: false` hides the reasoning; vLLM applies the grammar to it as well, and the answer is then taken
  for reasoning and hidden.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Final

import regex
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import StructuredOutputsParams

from serve_app.compat import vllm_api
from serve_app.compat.patching import Function, replace
from serve_app.context import CURRENT

MAX_GRAMMAR_BYTES: Final = 128 << 10
"""Of a schema, grammar or expression. OpenAI's limit is 120,000 characters. Compiling takes seconds at this size, and
grows faster than the size."""

KINDS: Final = ("regex", "choice", "json", "grammar", "structural_tag")


def use() -> None:
    """Have vLLM's front end in this process behave so. Calling it again changes nothing."""
    replace(vllm_api.CHAT_PARAMS, remember_source)
    replace(vllm_api.COMPLETION_PARAMS, remember_source)
    replace(vllm_api.REASONING_ENDED, reason_before_the_answer)
    replace(vllm_api.VALIDATE_GRAMMAR, name_what_is_wrong)


def remember_source(original: Function, _: ModuleType) -> Function:
    """Sampling parameters no longer say which field their grammar was in."""

    def to_sampling_params(self: Any, *args: Any, **named: Any) -> Any:
        note_source(self)
        return original(self, *args, **named)

    return to_sampling_params


def note_source(request: Any) -> None:
    """Note where the running request has its grammar. (Its stream may run in another task: a variable would not do.)"""
    context = CURRENT.get()
    if context is not None:
        context.grammar_source = source_of(request)


def source_of(request: Any) -> str:
    """The field of an API's request that its grammar is in, as the API names it."""
    if getattr(request, "response_format", None) is not None:
        return "response_format"
    if getattr(getattr(request, "text", None), "format", None) is not None:
        return "text.format"
    if getattr(request, "tools", None) and getattr(request, "tool_choice", None) not in (None, "none"):
        return "tools"
    return "structured_outputs"


def reason_before_the_answer(original: Function, _: ModuleType) -> Function:
    """Hidden reasoning is reasoning: the grammar begins behind it."""

    def resolve_reasoning_ended(self: Any, parser: Any, prompt_token_ids: list[int]) -> bool | None:
        if self.include_reasoning or self._grammar_from_parser or parser is None or parser.reasoning_parser is None:
            ended: bool | None = original(self, parser, prompt_token_ids)
            return ended
        return bool(parser.is_reasoning_end(prompt_token_ids))

    return resolve_reasoning_ended


def name_what_is_wrong(original: Function, _: ModuleType) -> Function:
    """vLLM's check, with ours around it."""

    def _validate_structured_outputs(self: Any, *args: Any, **named: Any) -> None:
        asked = self.structured_outputs
        if asked is None:
            original(self, *args, **named)
            return
        field = field_of(asked)
        try:
            check(asked)
            original(self, *args, **named)
            if asked.regex and asked._backend != "xgrammar":  # noqa: SLF001  # vLLM's record of its choice
                check_expression(asked.regex)
        except (VLLMValidationError, ValueError, RecursionError, regex.error) as error:
            text = error.args[0] if error.args else type(error).__name__
            raise VLLMValidationError(f"{field} cannot be enforced: {text}", parameter=field) from error

    return _validate_structured_outputs


def field_of(asked: StructuredOutputsParams) -> str:
    """The field that the grammar is in."""
    kind = next((name for name in KINDS if getattr(asked, name, None) is not None), "json_object")
    context = CURRENT.get()
    source = context.grammar_source if context is not None else "structured_outputs"
    if source == "response_format":
        return "response_format.json_schema.schema" if kind == "json" else source
    if source == "text.format":
        return "text.format.schema" if kind == "json" else source
    return source if source == "tools" and kind in ("json", "structural_tag") else f"structured_outputs.{kind}"


def check(asked: StructuredOutputsParams) -> None:
    """Raises `ValueError` or `regex.error` for what vLLM would let pass."""
    for kind in KINDS:
        value = getattr(asked, kind, None)
        if value is None:
            continue
        size = len((value if isinstance(value, str) else json.dumps(value)).encode("utf-8", "replace"))
        if size > MAX_GRAMMAR_BYTES:
            raise ValueError(f"it has {size} bytes; at most {MAX_GRAMMAR_BYTES} are compiled")
    schema = asked.json
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except json.JSONDecodeError as error:
            raise ValueError(f"it is not JSON ({error})") from error
    for pattern in patterns(schema):
        check_expression(pattern)


def check_expression(pattern: str) -> None:
    """Raises `ValueError` for a repetition of nothing or of a repetition, which dialects agree to refuse, and the
    engine's compiler too."""
    try:
        regex.compile(pattern)
    except regex.error as error:
        if "repeat" in error.msg:
            raise ValueError(f"{pattern[:80]!r} is not a regular expression ({error})") from error


def patterns(schema: Any) -> Iterator[str]:
    """The regular expressions in a JSON schema."""
    if isinstance(schema, list):
        for item in schema:
            yield from patterns(item)
    if not isinstance(schema, dict):
        return
    for name, value in schema.items():
        if name == "pattern" and isinstance(value, str):
            yield value
        if name == "patternProperties" and isinstance(value, dict):
            yield from value
        if name not in ("enum", "const", "default", "examples"):
            yield from patterns(value)
