"""The `tools` of the Responses API: the client runs functions and free-form tools; the others run at OpenAI."""

from __future__ import annotations

import json
from typing import Any

from serve_app.ingress.requests.content import as_list, word
from serve_app.ingress.requests.edits import Edits
from serve_app.protocol.errors import RequestRefused

Tool = dict[str, Any]

BRINGING_TOOLS = ("additional_tools", "tool_search_output")
"""Items of `input` that bring tools, as if they had been in `tools`."""


def add_from_input(request: dict[str, Any], edits: Edits) -> None:
    """Add the tools that come in the conversation to `tools`, each name once; of a namespace, its further tools."""
    items, tools = request.get("input"), request.get("tools") or []
    if not isinstance(items, list) or not isinstance(tools, list):
        return
    brought = [
        tool
        for item in items
        if isinstance(item, dict) and word(item.get("type")) in BRINGING_TOOLS
        for tool in as_list(item.get("tools"))
    ]
    if brought:
        request["tools"] = _with_further(tools, brought)
        edits.changed = True


def _with_further(tools: list[Any], brought: list[Any]) -> list[Any]:
    made = list(tools)
    places = {_name(tool): place for place, tool in reversed([*enumerate(made)])}
    for tool in brought:
        place = places.setdefault(_name(tool), len(made))
        if place == len(made):
            made.append(tool)
            continue
        known = made[place]
        if all(isinstance(each, dict) and each.get("type") == "namespace" for each in (known, tool)):
            made[place] = {**known, "tools": _with_further(as_list(known.get("tools")), as_list(tool.get("tools")))}
    return made


def _name(tool: Any) -> str:
    """What a tool is known by: hosted ones have no name."""
    named = isinstance(tool, dict) and (tool.get("name") or tool.get("server_label") or tool.get("type"))
    return word(named) or json.dumps(tool)


def prepare(request: dict[str, Any], edits: Edits) -> None:
    """Make `tools` and `tool_choice` what vLLM serves. Raises `RequestRefused` where a tool is demanded that cannot
    be."""
    tools = request.get("tools")
    if not isinstance(tools, list):
        return
    kept: list[Any] = []
    left_out: set[str] = set()
    for number, tool in enumerate(tools):
        made = _tool(tool, f"tools.{number}", edits)
        if made is None and isinstance(tool, dict):
            left_out |= {str(tool.get("type")), str(tool.get("name") or tool.get("server_label") or tool.get("type"))}
        else:
            kept.append(made)
    choice = request.get("tool_choice")
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        kept = _allowed(request, kept, choice, edits)
        choice = request["tool_choice"]
    if left_out and (choice == "required" or isinstance(choice, dict)):
        _choose_among(request, kept, left_out, edits)
    if len(kept) != len(tools) or any(new is not old for new, old in zip(kept, tools, strict=True)):
        edits.changed = True
        request["tools"] = kept
        if not kept:
            request["tool_choice"] = "none"


def _tool(tool: Any, path: str, edits: Edits) -> Any:
    """The tool as vLLM takes it; None for one that does not run here. vLLM refuses malformed ones."""
    kind = tool.get("type") if isinstance(tool, dict) else None
    if not isinstance(kind, str) or kind == "function":
        return tool
    if kind == "custom":
        return _free_form(tool, path, edits)
    if kind == "namespace" and isinstance(tool.get("tools"), list):
        return _namespace(tool, path, edits)
    edits.note(path, kind)
    return None


def _namespace(tool: Tool, path: str, edits: Edits) -> Tool | None:
    """A namespace with only its functions, the part that vLLM shows the model."""
    functions = []
    for inner in tool["tools"]:
        if isinstance(inner, dict) and inner.get("type") == "function":
            functions.append(inner)
        else:
            edits.note(path, f"namespace {tool.get('name')}: {inner.get('name') if isinstance(inner, dict) else inner}")
    return {**tool, "description": tool.get("description") or "", "tools": functions} if functions else None


def _free_form(tool: Tool, path: str, edits: Edits) -> Tool:
    """A free-form tool whose input has a grammar: vLLM cannot enforce it, so the description states it."""
    form = tool.get("format")
    if not isinstance(form, dict) or form.get("type") != "grammar":
        return tool
    edits.note(path, f"custom {tool.get('name')}: grammar told, not enforced")
    syntax, definition = form.get("syntax", "lark"), form.get("definition", "")
    description = f"{tool.get('description') or ''}\nThe input must match this {syntax} grammar:\n{definition}".strip()
    return {**tool, "description": description, "format": {"type": "text"}}


def _allowed(request: dict[str, Any], tools: list[Any], choice: Tool, edits: Edits) -> list[Any]:
    """Only the tools that `tool_choice` allows; the others might be called as long as the model sees them."""
    names = {word(entry.get("name")) for entry in as_list(choice.get("tools")) if isinstance(entry, dict)}
    request["tool_choice"] = choice.get("mode") or "auto"
    edits.changed = True
    return [tool for tool in tools if isinstance(tool, dict) and word(tool.get("name")) in names]


def _choose_among(request: dict[str, Any], kept: list[Any], left_out: set[str], edits: Edits) -> None:
    choice = request["tool_choice"]
    wanted = None
    if isinstance(choice, dict):
        named = word(choice.get("name") or choice.get("server_label") or choice.get("type"))
        wanted = named if named in left_out and choice.get("type") not in ("function", "custom") else None
    if not kept and (wanted or choice == "required"):
        asked = wanted or json.dumps(choice)
        raise RequestRefused(
            f"`tool_choice` demands {asked}, and of the tools none runs on this server: {', '.join(sorted(left_out))}.",
            param="tool_choice",
        )
    if wanted:
        request["tool_choice"] = "auto"
        edits.note("tool_choice", str(wanted))
