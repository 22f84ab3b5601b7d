"""The `tools` of chat completions: the client runs functions; other tools run at OpenAI or not at all."""

from __future__ import annotations

from typing import Any

from serve_app.ingress.requests.content import as_list, word
from serve_app.ingress.requests.edits import Edits
from serve_app.protocol.errors import RequestRefused


def prepare(request: dict[str, Any], edits: Edits) -> None:
    """Make `tools` and `tool_choice` what vLLM knows. Raises `RequestRefused` where a tool is demanded that cannot
    be."""
    _deprecated_functions(request, edits)
    _without_hosted(request, edits)
    if request.get("web_search_options") is not None:
        edits.note("web_search_options", "web search")
        del request["web_search_options"]


def _deprecated_functions(request: dict[str, Any], edits: Edits) -> None:
    """`functions` and `function_call`, which `tools` and `tool_choice` replaced in 2023."""
    functions = request.pop("functions", None)
    call = request.pop("function_call", None)
    if functions is None and call is None:
        return
    edits.changed = True
    if isinstance(functions, list) and functions and not request.get("tools"):
        request["tools"] = [{"type": "function", "function": function} for function in functions]
        edits.note("functions", "answered as tool_calls")
        if call is not None:
            request["tool_choice"] = {"type": "function", "function": call} if isinstance(call, dict) else call


def _without_hosted(request: dict[str, Any], edits: Edits) -> None:
    tools = request.get("tools")
    if not isinstance(tools, list) or not tools:
        return
    kept: list[Any] = []
    left_out: set[str] = set()
    for number, tool in enumerate(tools):
        kind = tool.get("type", "function") if isinstance(tool, dict) else None
        if isinstance(kind, str) and kind != "function":
            edits.note(f"tools.{number}", kind)
            inner = tool.get(kind)
            left_out |= {kind, str(inner.get("name")) if isinstance(inner, dict) else kind}
            continue
        if isinstance(tool, dict) and not isinstance(tool.get("function"), dict):
            raise RequestRefused(
                f"`tools.{number}.function` must be an object with the function's name.",
                param=f"tools.{number}.function",
            )
        kept.append(tool)
    choice = request.get("tool_choice")
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        kept = _allowed(request, kept, choice.get("allowed_tools"), edits)
    if left_out:
        _choose_among(request, kept, left_out, edits)
    if kept:
        request["tools"] = kept
    elif request.pop("tools", None):
        request.pop("tool_choice", None)  # of the tools none is allowed


def _allowed(request: dict[str, Any], tools: list[Any], allowed: object, edits: Edits) -> list[Any]:
    """Only the tools that `tool_choice` allows; the others might be called as long as the model sees them."""
    fields = allowed if isinstance(allowed, dict) else {}
    names = {
        word(entry["function"].get("name"))
        for entry in as_list(fields.get("tools"))
        if isinstance(entry, dict) and isinstance(entry.get("function"), dict)
    }
    request["tool_choice"] = fields.get("mode") or "auto"
    edits.changed = True
    return [tool for tool in tools if isinstance(tool, dict) and word(tool["function"].get("name")) in names]


def _choose_among(request: dict[str, Any], kept: list[Any], left_out: set[str], edits: Edits) -> None:
    choice = request.get("tool_choice")
    kind = word(choice.get("type")) if isinstance(choice, dict) else ""
    wants_left_out = kind in left_out
    if not kept:
        request.pop("tools")
        request.pop("tool_choice", None)
        if wants_left_out or choice == "required":
            raise RequestRefused(
                f"`tool_choice` demands a tool of which none runs on this server: {', '.join(sorted(left_out))}.",
                param="tool_choice",
            )
    elif wants_left_out:
        request["tool_choice"] = "auto"
        edits.note("tool_choice", str(kind))
