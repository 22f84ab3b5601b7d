"""The fields of a request that hold its grammar, as the API names them: errors name them, as the client wrote them."""

from __future__ import annotations

from typing import Any

from vllm.sampling_params import StructuredOutputsParams

from serve_app.ingress.grammars.syntax import KINDS


def source_of(request: Any) -> str:
    """The field of a request that holds its grammar."""
    if getattr(request, "response_format", None) is not None:
        return "response_format"
    if getattr(getattr(request, "text", None), "format", None) is not None:
        return "text.format"
    if getattr(request, "tools", None) and getattr(request, "tool_choice", None) not in (None, "none"):
        return "tools"
    return "structured_outputs"


def field_of(asked: StructuredOutputsParams, source: str) -> str:
    """The field that a grammar is in, which came from `source`."""
    kind = next((name for name in KINDS if getattr(asked, name, None) is not None), "json_object")
    if source == "response_format":
        return "response_format.json_schema.schema" if kind == "json" else source
    if source == "text.format":
        return "text.format.schema" if kind == "json" else source
    return source if source == "tools" and kind in ("json", "structural_tag") else f"structured_outputs.{kind}"
