"""Prepares a request of OpenAI's Responses API for vLLM's server.

vLLM checks `input` against the types of OpenAI's own library, which require much that clients leave out, and then reads
only the first of several parts. So each item is brought into the few forms that it reads completely: messages, function
calls and their outputs, reasoning.
"""

from __future__ import annotations

import itertools
from typing import Any

from serve_app.ingress.requests import json_body, responses_tools
from serve_app.ingress.requests.chat import UNSUPPORTED_MEDIA, refuse_with_format, unsupported_media
from serve_app.ingress.requests.content import (
    Block,
    as_list,
    check_image_source,
    check_image_url,
    check_not_empty,
    check_role,
    compact,
    document_parts,
    file_parts,
    finish_parts,
    history_block,
    history_text,
    placeholder,
    readable,
    word,
)
from serve_app.ingress.requests.edits import Edits
from serve_app.protocol.errors import RequestRefused

INCLUDED = frozenset(
    {"code_interpreter_call.outputs", "computer_call_output.output.image_url", "file_search_call.results",
     "message.input_image.image_url", "message.output_text.logprobs", "reasoning.encrypted_content"}
)  # fmt: skip
"""Values of `include` that vLLM accepts (all but the log probabilities without effect)."""

CALLS = {
    "local_shell_call": ("local_shell", "action"),
    "shell_call": ("shell", "action"),
    "apply_patch_call": ("apply_patch", "operation"),
    "computer_call": ("computer", "action"),
}
"""Calls that the client ran, by type: tool name, and the field with the arguments."""

DROPPED_ITEMS = ("compaction_trigger", "configuration_update", "mcp_list_tools", *responses_tools.BRINGING_TOOLS)
"""Items without meaning for a model, or (their tools) with one elsewhere."""

TEXT_PARTS = ("text", "input_text", "output_text", "summary_text", "reasoning_text")


def prepare(request: dict[str, Any], edits: Edits) -> None:
    """Make the request, in place, one that vLLM serves. Raises `RequestRefused` where there is no right way to."""
    _refuse_stored(request)
    responses_tools.add_from_input(request, edits)
    responses_tools.prepare(request, edits)
    _options(request, edits)
    items = request.get("input")
    if not isinstance(items, list):
        return
    made: list[Any] = []
    for number, item in enumerate(items):
        made += _item(item, f"input.{number}", edits, is_last=number == len(items) - 1)
    check_not_empty(made or request.get("instructions"), "input")
    if len(made) != len(items) or any(new is not old for new, old in zip(made, items, strict=True)):
        edits.changed = True
        request["input"] = made
    if items and made and isinstance(items[-1], dict):
        _prefill(request, items[-1], made, edits)


def _refuse_stored(request: dict[str, Any]) -> None:
    """Refuse what needs stored responses."""
    if request.get("background"):
        raise RequestRefused(
            "`background` is not supported: responses are not stored here. Use `stream`.", param="background"
        )
    if previous := request.get("previous_response_id"):
        raise RequestRefused(
            f"Previous response with id '{str(previous)[:100]}' not found: responses are not stored here. "
            "Send the whole conversation in `input`.",
            param="previous_response_id",
        )
    if request.get("conversation"):
        raise RequestRefused(
            "`conversation` is not supported: conversations are not stored here. Send the whole of it in `input`.",
            param="conversation",
        )


def _options(request: dict[str, Any], edits: Edits) -> None:
    include = request.get("include")
    if isinstance(include, list) and not INCLUDED.issuperset(name for name in include if isinstance(name, str)):
        unknown = [name for name in include if isinstance(name, str) and name not in INCLUDED]
        request["include"] = [name for name in include if name not in unknown]
        edits.note("include", ", ".join(unknown))
    if request.get("truncation") == "auto":
        # vLLM would cut the prompt to the whole context, and then find no room for an answer.
        del request["truncation"]
        edits.note("truncation", "auto")


def _item(item: Any, path: str, edits: Edits, *, is_last: bool) -> list[Any]:
    if isinstance(item, str):
        return [{"role": "user", "content": item}]
    if not isinstance(item, dict):
        return [item]
    kind = word(item.get("type")) or ("message" if "role" in item else "")
    if kind == "message":
        return _message(item, path, edits, is_last=is_last)
    if kind == "function_call":
        return [_function_call(item)]
    if kind == "custom_tool_call":
        # `namespace` and `status` are not in all versions of OpenAI's types.
        call_id = item.get("call_id") or item.get("id") or ""
        return [{"type": kind, "call_id": call_id, "name": item.get("name"), "input": compact(item.get("input") or "")}]
    if kind in ("function_call_output", "custom_tool_call_output"):
        return [_output(item, item.get("output"), path, edits)]
    if kind == "reasoning":
        return _reasoning(item, path, edits)
    if kind in CALLS:
        name, field = CALLS[kind]
        call_id = item.get("call_id") or item.get("id") or ""
        arguments = compact(item.get(field) or item.get(f"{field}s") or {})
        return [{"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}]
    if kind.removesuffix("_output") in CALLS:
        return [_output({**item, "call_id": item.get("call_id") or item.get("id")}, item.get("output"), path, edits)]
    return _history(item, kind or "item", path, edits)


def _history(item: Block, kind: str, path: str, edits: Edits) -> list[Any]:
    """A hosted tool's items as the assistant's text. What is stored elsewhere is refused, but for reasoning."""
    if kind == "item_reference" or (kind == "item" and item.keys() <= {"type", "id"}):
        name = str(item.get("id", ""))[:100]
        if not name.startswith("rs_"):
            raise RequestRefused(
                f"Item '{name}' is not stored on this server; send the item itself "
                "(Vercel AI SDK: providerOptions: {openai: {store: false}}).",
                param=path,
            )
        edits.note(path, f"item_reference {name}")
        return []  # reasoning, which the answer does not depend on
    if kind in ("compaction", "compaction_summary", "context_compaction"):
        text = readable(item.get("summary") or item.get("content"))
        if not text:
            edits.note(path, f"{kind}, encrypted")
            return [{"role": "user", "content": "[The conversation before this point cannot be read by this server.]"}]
        return [{"role": "user", "content": f"The conversation so far, summarised:\n{text}"}]
    is_dropped = kind in DROPPED_ITEMS
    edits.note(path, kind if is_dropped else f"{kind} as text")
    return [] if is_dropped else [_assistant_text(history_text({**item, "type": kind}))]


def _assistant_text(text: str) -> Block:
    return {"role": "assistant", "content": text}


def _message(item: Block, path: str, edits: Edits, *, is_last: bool) -> list[Any]:
    role, content = item.get("role"), item.get("content")
    check_role(role, f"{path}.role")
    if role == "tool":
        return [_output({"call_id": item.get("tool_call_id")}, content, path, edits)]
    if role == "assistant":
        return _assistant(item, content)
    if isinstance(content, str) and role != "developer":
        return [item]
    if content is not None and not isinstance(content, str | list):
        return [item]  # vLLM's to refuse
    if content is None or isinstance(content, str):
        return [{"role": "system" if role == "developer" else role, "content": content or ""}]
    each = (_part(part, f"{path}.content.{number}", edits) for number, part in enumerate(as_list(content)))
    parts = finish_parts([*itertools.chain.from_iterable(each)], f"{path}.content", may_stand_alone=not is_last)
    # Without `type` and `status`: the form that both of OpenAI's types for a message accept.
    return [{"role": "system" if role == "developer" else role, "content": parts}]


def _assistant(item: Block, content: object) -> list[Any]:
    """With all text in one part: vLLM reads the first part only, and fails on a refusal."""
    if isinstance(content, str):
        # With an id or a status vLLM's check takes it for an item of OpenAI's, whose content is a list.
        return [item if item.keys() <= {"type", "role", "content"} else _assistant_text(content)] if content else []
    parts = [part if isinstance(part, dict) else {"text": str(part)} for part in as_list(content)]
    text = "".join(str(part.get("text") or part.get("refusal") or "") for part in parts)
    return [_assistant_text(text)] if text else []


def _function_call(item: Block) -> Block:
    call = {
        "type": "function_call",
        "call_id": item.get("call_id") or item.get("id") or "",
        "name": item.get("name"),
        "arguments": json_body.repaired_arguments(compact(item.get("arguments") or "{}")),
    }
    return {**call, "namespace": item["namespace"]} if isinstance(item.get("namespace"), str) else call


def _output(item: Block, output: object, path: str, edits: Edits) -> Block:
    """A tool's output, as text or as text and images."""
    made: object = output
    if isinstance(output, dict) and output.get("type") == "computer_screenshot":
        output = [{**output, "type": "input_image"}]
    if isinstance(output, list):
        parts: list[Any] = []
        for number, part in enumerate(output):
            known = isinstance(part, dict) and isinstance(part.get("type"), str)
            each = part if known else {"type": "input_text", "text": compact(part)}
            parts += _part(each, f"{path}.output.{number}", edits)
        made = finish_parts(parts, path, may_stand_alone=True)
    elif not isinstance(output, str):
        made = "" if output is None else compact(output)
    return {"type": "function_call_output", "call_id": item.get("call_id") or item.get("id") or "", "output": made}


def _reasoning(item: Block, path: str, edits: Edits) -> list[Any]:
    """With all text in one part. Only its issuer can read encrypted reasoning."""
    text = "\n".join(
        str(part.get("text"))
        for part in as_list(item.get("content")) or as_list(item.get("summary"))
        if isinstance(part, dict) and part.get("text")
    )
    if item.get("encrypted_content"):
        edits.note(path, "reasoning.encrypted_content")
    if not text:
        return []
    made = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": text}]}
    return [{**made, "id": item["id"]}] if isinstance(item.get("id"), str) else [made]


def _part(part: Any, path: str, edits: Edits) -> list[Any]:
    """A part of a user's or system message, or of a tool's output."""
    if isinstance(part, str):
        return [{"type": "input_text", "text": part}]
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        return [part]
    if kind in TEXT_PARTS or kind == "refusal":
        return [{"type": "input_text", "text": str(part.get("text") or part.get("refusal") or "")}]
    if kind in ("input_image", "image_url", "image", "computer_screenshot"):
        return [_image(part, path, edits)]
    if kind in ("input_file", "file"):
        made = file_parts(part.get("file", part), path, edits)
    elif kind == "document":
        made = document_parts(part, path, edits)
    elif kind in UNSUPPORTED_MEDIA:
        made = [unsupported_media(part, kind, path, edits)]
    else:
        edits.note(path, f"{kind} as text")
        made = [history_block(part)]
    for each in made:
        if each.get("type") == "text":
            each["type"] = "input_text"
    return [_image(each, path, edits) if each.get("type") == "image" else each for each in made]


def _image(part: Block, path: str, edits: Edits) -> Block:
    url = part["image_url"].get("url") if isinstance(part.get("image_url"), dict) else part.get("image_url")
    check_image_url(url, f"{path}.image_url")
    source = part.get("source")
    if url is None and isinstance(source, dict) and source.get("type") != "file":
        check_image_source(part, path)
        data = f"data:{source.get('media_type', 'image/jpeg')};base64,{source.get('data', '')}"
        url = source.get("url") or (data if source.get("data") else None)
    if not isinstance(url, str):
        made = placeholder("image", str(part.get("file_id") or ""), "", None, path, edits)
        made["type"] = "input_text"
        return made
    return {"type": "input_image", "image_url": url, "detail": "auto"}


def _prefill(request: dict[str, Any], sent: Block, items: list[Any], edits: Edits) -> None:
    """A last message from the assistant is the beginning of the answer. vLLM continues one that says "incomplete"."""
    kind, place = word(sent.get("type")), f"input.{len(request['input']) - 1}"
    if kind in ("function_call", "custom_tool_call", *CALLS):
        raise RequestRefused("The last item calls a tool: its output must follow.", param=place)
    if kind == "reasoning":
        raise RequestRefused(
            "The last item is reasoning, which cannot be continued; end with text, or leave it out.", param=place
        )
    last = items[-1]
    # What else is told in the assistant's voice (a hosted tool's call) is not the answer's beginning.
    if sent.get("role") != "assistant" or not isinstance(last, dict) or last.get("role") != "assistant":
        return
    refuse_with_format(request, ("structured_outputs",))
    text = request.get("text")
    if isinstance(text, dict):
        refuse_with_format({"text.format": text.get("format")}, ("text.format",))
    beginning = {
        "type": "message",
        "role": "assistant",
        "id": "msg_prefill",
        "status": "incomplete",
        "content": [{"type": "output_text", "text": last["content"], "annotations": []}],
    }
    request["input"] = [*items[:-1], beginning]
    edits.changed = True
