"""Lets a model that has tools and a format for its answer choose between them, as OpenAI and Anthropic do.

With `tool_choice: auto` vLLM gives the engine the format's grammar alone, under which no call can begin, unless a tool
is strict. Here it always builds the grammar of either: the answer in its format, or calls, as `required` has them.

Two things are left to the checker (`structured_outputs.py`), which tries both grammars in another process: whether the
format can be enforced at all (vLLM would compile it on the event loop), and whether xgrammar takes it, for no other
library has tags of calls.

A structural tag that a client has written is left alone: it may hold its own calls.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, Final

from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import StructuredOutputsParams
from vllm.tool_parsers.tool_strict_level import ToolStrictLevel

from serve_app.ingress.grammars.fields import source_of
from serve_app.router.request_context import CURRENT
from serve_app.vllm_patches import patching, vllm_api
from serve_app.vllm_patches.patching import Function

LIBRARY: Final = "xgrammar"


@dataclass(frozen=True)
class AnswerFormat:
    """The format of an answer alone, the field of the request that it was in, and the tag that allows calls as well."""

    grammar: StructuredOutputsParams
    source: str
    tag: Any


def use() -> None:
    """Apply the changes in this process. Calling it again changes nothing."""
    patching.replace(vllm_api.STRUCTURAL_TAG, allow_either)
    patching.replace(vllm_api.XGRAMMAR_SUPPORTS, leave_to_the_checker)


def allow_either(original: Function, _: ModuleType) -> Function:
    """vLLM's grammar of tool calls, which is one of either also where no tool is strict."""

    def _apply_structural_tag(self: Any, request: Any) -> Any:
        if not request.tools or request.tool_choice != "auto":
            return original(self, request)
        asked = request.extract_structured_outputs()
        if asked is None or asked.structural_tag is not None:
            return original(self, request)
        source = "structured_outputs" if request.structured_outputs is not None else source_of(request)
        level = self.tool_strict_level  # 0.33 has None for the parser's own
        self.tool_strict_level = max(level or ToolStrictLevel.AUTO, ToolStrictLevel.FUNCTION)
        try:
            request = original(self, request)
        except (TypeError, ValueError, RecursionError, VLLMValidationError):
            pass  # it has no tag: the checker refuses it by its field, or leaves it out
        finally:
            self.tool_strict_level = level
        either, context = request.structured_outputs, CURRENT.get()
        if context is not None and either is not None and (either.structural_tag is not None or either is asked):
            context.answer_format = AnswerFormat(replace(asked), source, either.structural_tag)
        return request

    return _apply_structural_tag


def leave_to_the_checker(original: Function, _: ModuleType) -> Function:
    """vLLM's check of a format, for structural tags only."""

    def _xgrammar_supports(structured_outputs: StructuredOutputsParams) -> bool:
        return structured_outputs.structural_tag is None or bool(original(structured_outputs))

    return _xgrammar_supports


def format_in(asked: StructuredOutputsParams) -> AnswerFormat | None:
    """The format in a grammar of either; None for any other grammar."""
    context = CURRENT.get()
    found = context.answer_format if context is not None else None
    return found if isinstance(found, AnswerFormat) and found.tag == asked.structural_tag else None
