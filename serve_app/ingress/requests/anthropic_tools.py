"""The `tools` of Anthropic's Messages API: tools that the client runs become functions, those that Anthropic runs are
left out.

A tool without `input_schema` is one that Anthropic's model was trained on. Of those, the client runs `bash_*`,
`text_editor_*`, `memory_*` and `computer_*`, and waits for their calls: they get the input schema that Anthropic
documents. The others (web search, web fetch, code execution, MCP, tool search, and future ones) run on Anthropic's
servers.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from serve_app.ingress.requests.edits import Edits
from serve_app.protocol.errors import RequestRefused

Tool = dict[str, Any]

TEXT: Tool = {"type": "string"}
INTEGER: Tool = {"type": "integer"}


def _object(required: str, **properties: Tool) -> Tool:
    return {"type": "object", "properties": properties, "required": required.split()}


def _commands(names: str) -> Tool:
    return {"type": "string", "enum": names.split()}


def _bash(_: Tool) -> tuple[str, Tool]:
    schema = {
        "type": "object",
        "properties": {
            "command": {"type": "string", "description": "The command to run. Required unless `restart` is true."},
            "restart": {"type": "boolean", "description": "Restart the shell in place of running a command."},
        },
    }
    return "Run a command in a persistent bash session.", schema


EDITING: Tool = {
    "path": TEXT,
    "view_range": {"type": "array", "items": INTEGER, "description": "First and last line to view, from 1."},
    "file_text": {"type": "string", "description": "The new file's content, for `create`."},
    "old_str": {"type": "string", "description": "The text to replace; it must occur exactly once."},
    "new_str": {"type": "string", "description": "The text in its place."},
    "insert_line": {"type": "integer", "description": "The line after which to insert; 0 is the file's start."},
}


def _text_editor(tool: Tool) -> tuple[str, Tool]:
    old = str(tool.get("type")) in ("text_editor_20241022", "text_editor_20250124")
    commands = "view create str_replace insert" + (" undo_edit" if old else "")
    inserted = {} if old else {"insert_text": {"type": "string", "description": "The text to insert."}}
    schema = _object("command path", command=_commands(commands), **EDITING, **inserted)
    return "View, create and edit text files.", schema


def _memory(_: Tool) -> tuple[str, Tool]:
    schema = _object(
        "command",
        command=_commands("view create str_replace insert delete rename"),
        **EDITING,
        insert_text={"type": "string", "description": "The text to insert."},
        old_path=TEXT,
        new_path=TEXT,
    )
    return "Keep notes across conversations in files under /memories.", schema


def _computer(tool: Tool) -> tuple[str, Tool]:
    point: Tool = {"type": "array", "items": INTEGER, "description": "Pixels: x from the left, y from the top."}
    actions = (
        "key type mouse_move left_click left_click_drag right_click middle_click double_click triple_click "
        "left_mouse_down left_mouse_up scroll hold_key wait screenshot cursor_position zoom"
    )
    schema = _object(
        "action",
        action=_commands(actions),
        coordinate=point,
        start_coordinate=point,
        text={"type": "string", "description": "The text to type, or the keys to press."},
        scroll_direction=_commands("up down left right"),
        scroll_amount=INTEGER,
        duration={"type": "number", "description": "Seconds, for `wait` and `hold_key`."},
        region={"type": "array", "items": INTEGER, "description": "x0, y0, x1, y1 of the part to `zoom` into."},
    )
    size = f"{tool.get('display_width_px', '?')}x{tool.get('display_height_px', '?')}"
    return f"Control a computer by mouse, keyboard and screenshots. The screen has {size} pixels.", schema


CLIENT_RUN: dict[str, Callable[[Tool], tuple[str, Tool]]] = {
    "bash": _bash,
    "text_editor": _text_editor,
    "memory": _memory,
    "computer": _computer,
}
"""By type without its date. The fields are those of Anthropic's documentation."""

DATED = re.compile(r"(\w+?)_\d{8}")


def prepare(request: dict[str, Any], edits: Edits) -> None:
    """Make `tools` and `tool_choice` what vLLM knows. Raises `RequestRefused` where a tool is demanded that cannot
    be."""
    tools = request.get("tools", [])
    if not isinstance(tools, list):
        return
    if not tools:
        edits.changed |= request.pop("tools", None) is not None
    kept, left_out = [], set()
    for number, tool in enumerate(tools):
        function = _as_function(tool)
        if function is None and isinstance(tool, dict):
            kind = str(tool.get("type"))
            edits.note(f"tools.{number}", kind)
            left_out.add(str(tool.get("name") or kind))
        else:
            edits.changed |= function is not tool
            kept.append(function)
    if kept:
        request["tools"] = kept
    if left_out:
        _choose_among(request, kept, left_out, edits)
    _check_choice(request)


def _as_function(tool: Any) -> Any:
    """The tool as a function; None for one that runs on Anthropic's servers. What is malformed is vLLM's to refuse."""
    if not isinstance(tool, dict):
        return tool
    if "defer_loading" in tool:
        # Deferred tools are found by a search that runs at Anthropic. Here all are shown to the model from the start.
        tool = {name: entry for name, entry in tool.items() if name != "defer_loading"}
    kind = tool.get("type")
    if "input_schema" in tool or not isinstance(kind, str) or kind == "custom":
        return tool
    dated = DATED.fullmatch(kind)
    describe = CLIENT_RUN.get(dated.group(1) if dated else kind)
    if describe is None:
        return None
    description, schema = describe(tool)
    return {"name": tool.get("name") or kind, "description": description, "input_schema": schema}


def _choose_among(request: dict[str, Any], kept: list[Any], left_out: set[str], edits: Edits) -> None:
    raw = request.get("tool_choice")
    choice: Tool = raw if isinstance(raw, dict) else {}
    forced = choice.get("type") == "any" or (choice.get("type") == "tool" and str(choice.get("name")) in left_out)
    if not kept:
        request.pop("tools")
        request.pop("tool_choice", None)
        if forced:
            wanted = choice.get("name") or ", ".join(sorted(left_out))
            raise RequestRefused(
                f"`tool_choice` demands {wanted!r}, which does not run on this server.", param="tool_choice"
            )
    elif forced and choice.get("type") == "tool":
        request["tool_choice"] = {"type": "auto"}
        edits.note("tool_choice", f"tool {choice.get('name')}")


def _check_choice(request: dict[str, Any]) -> None:
    """vLLM answers without a tool where one is demanded that is not there."""
    choice, tools = request.get("tool_choice"), request.get("tools")
    if not isinstance(choice, dict) or choice.get("type") not in ("any", "tool"):
        return
    messages = request.get("messages")
    if isinstance(messages, list) and any(isinstance(one, dict) and one.get("role") == "system" for one in messages):
        return  # system messages may bring further tools
    if not tools:
        raise RequestRefused("`tool_choice` demands a tool, and `tools` holds none.", param="tool_choice")
    names = {str(tool.get("name")) for tool in tools if isinstance(tool, dict)}
    if choice.get("type") == "tool" and isinstance(choice.get("name"), str) and choice["name"] not in names:
        raise RequestRefused(f"Tool {choice['name'][:100]!r} not found in `tools`.", param="tool_choice.name")
