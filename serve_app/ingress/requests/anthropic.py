"""Prepares a request of Anthropic's Messages API for vLLM's server.

vLLM knows text, images, tool calls, tool results and thinking. Everything else that clients send is given to the model
as text; what cannot be read is named by a placeholder and noted.
"""

from __future__ import annotations

import json
from typing import Any

from serve_app.ingress.requests import anthropic_tools, json_body
from serve_app.ingress.requests.chat import prefill_conflict
from serve_app.ingress.requests.content import (
    Block,
    as_list,
    check_image_source,
    check_not_empty,
    document_parts,
    finish_parts,
    history_block,
    placeholder,
    readable,
    word,
)
from serve_app.ingress.requests.edits import Edits
from serve_app.protocol.errors import RequestRefused, ThreadNotFound

KNOWN = frozenset({"text", "image", "tool_use", "tool_result", "thinking", "tool_addition", "tool_removal"})
"""Blocks that vLLM takes as they are (images and tool results after a check)."""

REMOTE = ("mcp_servers", "container")
"""Fields that ask for something on Anthropic's servers. The rest of the request is served."""


def prepare(request: dict[str, Any], edits: Edits) -> None:
    """Make the request, in place, one that vLLM serves. Raises `RequestRefused` where there is no right way to."""
    anthropic_tools.prepare(request, edits)
    _options(request, edits)
    system = request.get("system")
    if isinstance(system, list):
        request["system"] = _text_blocks(system, "system", edits)
    messages = request.get("messages")
    if not isinstance(messages, list):
        return
    check_not_empty(messages, "messages")
    request["messages"] = messages = _after_compaction(messages, edits)
    for number, message in enumerate(messages):
        if not isinstance(message, dict):
            continue
        if "content" in message and (message["content"] is None or isinstance(message["content"], dict)):
            # As resumed sessions of Claude Code hold: nothing beside a tool's call, or a block that is no list.
            message["content"] = as_list(message["content"]) or ""
            edits.changed = True
        if isinstance(message.get("content"), list):
            _message(message, f"messages.{number}", edits, is_last=number == len(messages) - 1)
    _prefill(request, messages, edits)


def _options(request: dict[str, Any], edits: Edits) -> None:
    for name in REMOTE:
        if request.get(name):
            edits.note(name, _names(request[name]))
    thread = request.get("thread")
    if isinstance(thread, dict):
        if thread.get("type") == "continue":
            raise ThreadNotFound(str(thread.get("previous_message_id")))
        edits.note("thread", str(thread.get("type")))
    management = request.get("context_management")
    for edit in as_list(management.get("edits")) if isinstance(management, dict) else ():
        # To keep all thinking is what happens anyway.
        if isinstance(edit, dict) and edit.get("keep") != "all":
            edits.note("context_management", str(edit.get("type")))
    # The name that the first beta of structured outputs had.
    output_format = request.pop("output_format", None)
    if isinstance(output_format, dict):
        config = request.get("output_config")
        request["output_config"] = {"format": output_format, **(config if isinstance(config, dict) else {})}
        edits.changed = True


def _names(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(str(entry.get("name", "")) if isinstance(entry, dict) else str(entry) for entry in value)
    return value if isinstance(value, str) else "object"


def _text_blocks(blocks: list[Any], path: str, edits: Edits) -> list[Any]:
    """The system prompt and system messages hold text only."""
    made: list[Any] = []
    for number, block in enumerate(blocks):
        if not isinstance(block, dict) or block.get("type") in ("text", "tool_addition", "tool_removal"):
            made.append(block)
        elif block.get("type") == "document":
            made += finish_parts(document_parts(block, f"{path}.{number}", edits), path, may_stand_alone=True)
            edits.changed = True
        else:
            edits.note(f"{path}.{number}", str(block.get("type")))
    return made


def _after_compaction(messages: list[Any], edits: Edits) -> list[Any]:
    """A `compaction` block replaces all messages before it: Anthropic's server ignores those, and so do we."""
    for number in range(len(messages) - 1, -1, -1):
        content = messages[number].get("content") if isinstance(messages[number], dict) else None
        if not isinstance(content, list):
            continue
        for position in range(len(content) - 1, -1, -1):
            block = content[position]
            if isinstance(block, dict) and block.get("type") == "compaction" and block.get("content"):
                summary = f"The conversation so far, summarised:\n{readable(block['content'])}"
                edits.changed = True
                rest = {**messages[number], "content": content[position + 1 :]}
                head: list[Any] = [{"role": "user", "content": summary}]
                return head + ([rest] if rest["content"] else []) + messages[number + 1 :]
    return messages


def _message(message: dict[str, Any], path: str, edits: Edits, *, is_last: bool) -> None:
    if message.get("role") == "system":
        message["content"] = _text_blocks(message["content"], f"{path}.content", edits)
        return
    parts: list[Any] = []
    for number, sent in enumerate(message["content"]):
        block = {"type": "text", "text": sent} if isinstance(sent, str) else sent
        edits.changed |= block is not sent
        parts += _block(block, f"{path}.content.{number}", edits)
    parts = finish_parts(parts, f"{path}.content", may_stand_alone=not is_last)
    if message.get("role") == "user" and all(map(_is_nothing, parts)):
        for number, part in enumerate(message["content"]):
            if isinstance(part, dict) and part.get("type") == "text" and "text" not in part:
                field = f"{path}.content.{number}.text"
                raise RequestRefused(f"`{field}` is required.", param=field)
        # vLLM leaves out a user message without parts: an answer before it would be continued.
        message["content"] = ""
        edits.changed = True
        return
    message["content"] = parts


def _is_nothing(part: Any) -> bool:
    """Whether vLLM reads nothing from this part of a user's message."""
    kind = part.get("type") if isinstance(part, dict) else None
    return kind == "thinking" or (kind == "text" and part.get("text") in (None, ""))


def _block(block: Any, path: str, edits: Edits) -> list[Any]:
    kind = block.get("type") if isinstance(block, dict) else None
    if not isinstance(kind, str):
        return [block]
    if kind == "tool_result":
        return [_tool_result(block, path, edits)]
    if kind == "tool_use":
        return [_tool_use(block, edits)]
    if kind in ("image", "document"):
        return _image_or_document(block, path, edits)
    if kind in KNOWN:
        return [block]
    if kind == "redacted_thinking":
        edits.note(path, kind)  # encrypted: for Anthropic's servers only
        return []
    if kind == "container_upload":
        return [placeholder("file", str(block.get("file_id") or ""), "", None, path, edits)]
    if kind == "tool_reference":
        edits.changed = True
        return [{"type": "text", "text": f"[Tool found: {block.get('tool_name') or block.get('name')}]"}]
    if kind == "compaction":
        edits.changed = True
        return []  # one without content: a summary that failed
    edits.note(path, f"{kind} as text")
    return [history_block(block)]


def _image_or_document(block: Block, path: str, edits: Edits) -> list[Block]:
    """An image or a document: kept, inlined, or replaced by a placeholder."""
    if block["type"] == "document":
        edits.changed = True
        made = document_parts(block, path, edits)
        for image in (part for part in made if part.get("type") == "image"):
            check_image_source(image, path)
        return made
    check_image_source(block, path)
    source = block.get("source")
    if isinstance(source, dict) and source.get("type") == "file":
        return [placeholder("image", str(source.get("file_id") or ""), "", None, path, edits)]
    return [block]


def _tool_use(block: Block, edits: Edits) -> Block:
    """The call with an object as input: some clients send the arguments as a string."""
    arguments = block.get("input")
    if not isinstance(arguments, str):
        return block
    edits.changed = True
    try:
        decoded = json.loads(json_body.repaired_arguments(arguments)) if arguments else {}
    except (ValueError, RecursionError):
        decoded = {"input": arguments}
    return {**block, "input": decoded if isinstance(decoded, dict) else {"input": decoded}}


def _tool_result(block: Block, path: str, edits: Edits) -> Block:
    """The result with text and images as content. A result may consist of a placeholder only: the turn continues."""
    content = block.get("content")
    has_failed = block.get("is_error") is True
    if content is None or isinstance(content, str):
        if not has_failed:
            return block
        edits.changed = True
        return {**block, "content": _failure(content or "")}
    parts: list[Any] = []
    for number, part in enumerate(as_list(content)):
        if isinstance(part, str):
            part = {"type": "text", "text": part}  # noqa: PLW2901  # the same part in the form of the others
        parts += _block(part, f"{path}.content.{number}", edits)
    parts = finish_parts(parts, path, may_stand_alone=True)
    if has_failed:
        parts = _failed_parts(parts)
        edits.changed = True
    return {**block, "content": parts}


def _failed_parts(parts: list[Any]) -> list[Any]:
    """A failed tool's parts; the first text says that it failed."""
    for number, part in enumerate(parts):
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        if isinstance(text, str) and text.strip():
            return [*parts[:number], {**part, "text": _failure(text)}, *parts[number + 1 :]]
    return [{"type": "text", "text": _failure("")}, *parts]


def _failure(text: str) -> str:
    """A failed tool's text. The template has no place for `is_error`: without a word it looks like a result."""
    if not text.strip():
        return "Error: the tool failed."
    return text if text.lstrip().startswith(("Error", "<tool_use_error>")) else f"Error: {text}"


def _prefill(request: dict[str, Any], messages: list[Any], edits: Edits) -> None:
    """A last message from the assistant is the beginning of the answer; `vllm_patches/answers.py` has it continued."""
    last = messages[-1] if messages else None
    if not isinstance(last, dict) or last.get("role") != "assistant":
        return
    content = last.get("content")
    if isinstance(content, list):
        blocks = [block for block in content if isinstance(block, dict)]
        kinds = {word(block.get("type")) for block in blocks}
        if "tool_use" in kinds:
            raise RequestRefused(
                "The last message calls a tool: its result must follow, in a `tool_result` of a user message.",
                param=f"messages.{len(messages) - 1}.content",
            )
        words = [block for block in blocks if block.get("type") == "text" and block.get("text")]
        if not words and "thinking" in kinds:
            raise RequestRefused(
                "The last message ends in thinking, which cannot be continued; end it with text, or leave it out.",
                param=f"messages.{len(messages) - 1}.content",
            )
        content = "".join(str(block["text"]) for block in words)
        # One block: the template would put something between two, and the answer goes on from the last character.
        thinking = [block for block in blocks if block.get("type") == "thinking"]
        last["content"] = [*thinking, {"type": "text", "text": content}]
        edits.changed = True
    if content == "":
        check_not_empty(messages[:-1], "messages.0.content")
        messages.pop()
        edits.changed = True
        return
    config = request.get("output_config")
    choice = request.get("tool_choice")
    is_format = isinstance(config, dict) and config.get("format")
    if is_format or (isinstance(choice, dict) and choice.get("type") in ("any", "tool")):
        raise prefill_conflict("output_config.format" if is_format else "tool_choice")
