"""A request of OpenAI's chat completions as vLLM's server can serve it: see `prepare`."""

from __future__ import annotations

import json
from typing import Any

from serve_app.ingress.requests import chat_tools, json_body
from serve_app.ingress.requests.content import (
    Block,
    check_image_source,
    check_image_url,
    check_not_empty,
    check_string,
    compact,
    document_parts,
    file_parts,
    finish_parts,
    history_block,
    placeholder,
    split_data_url,
    tool_part,
)
from serve_app.ingress.requests.edits import Edits
from serve_app.protocol.errors import RequestRefused

ROLES = {"developer": "system", "function": "tool"}
"""The model's template knows the newer name of one and the newer form of the other."""

KNOWN = frozenset(
    {"image_url", "refusal", "thinking", "image_embeds", "prompt_embeds", "image_pil", "tool_reference"}
)  # fmt: skip
"""Parts that vLLM and the template know."""

TEXTS = ("text", "input_text", "output_text")

THINKING = ("thinking", "redacted_thinking", "reasoning")

UNSUPPORTED_MEDIA = {"input_audio": "audio", "audio_url": "audio", "video_url": "video", "input_video": "video"}


def prepare(request: dict[str, Any], edits: Edits) -> None:
    """Make the request, in place, one that vLLM serves. Raises `RequestRefused` where there is no right way to."""
    chat_tools.prepare(request, edits)
    _response_format(request, edits)
    modalities = request.get("modalities")
    if isinstance(modalities, list) and "audio" in modalities:
        edits.note("modalities", "audio")
    messages = request.get("messages")
    if not isinstance(messages, list):
        return
    check_not_empty(messages, "messages")
    for number, message in enumerate(messages):
        if isinstance(message, dict):
            _message(message, f"messages.{number}", edits, is_last=number == len(messages) - 1)
    _prefill(request, messages, edits)


def _response_format(request: dict[str, Any], edits: Edits) -> None:
    """OpenAI's `json_schema` may come without a schema: then any object will do."""
    asked = request.get("response_format")
    if not isinstance(asked, dict) or asked.get("type") != "json_schema":
        return
    named = asked.get("json_schema")
    if isinstance(named, dict) and isinstance(named.get("name"), str) and named.get("schema") is None:
        request["response_format"] = {"type": "json_object"}
        edits.changed = True


def _message(message: dict[str, Any], path: str, edits: Edits, *, is_last: bool) -> None:
    _fields(message, edits)
    if "role" not in message:
        # vLLM's check, of several libraries' types at once, would miss the `author` of another one.
        raise RequestRefused(f"`{path}.role` is required.", param=f"{path}.role")
    content = message.get("content")
    if isinstance(content, dict):
        content = [content]
        edits.changed = True
    if isinstance(content, list):
        parts: list[Any] = []
        for number, part in enumerate(content):
            told = tool_part(part) if message["role"] == "tool" else part
            parts += _part(told, f"{path}.content.{number}", edits)
        may_stand_alone = not is_last or message.get("role") == "tool"
        message["content"] = finish_parts(parts, f"{path}.content", may_stand_alone=may_stand_alone)


def _fields(message: dict[str, Any], edits: Edits) -> None:
    """All of a message but its content's parts."""
    if None in message.values():
        # A field that is null is one that the client's library knows and has not been told of.
        for name in [name for name, entry in message.items() if entry is None and name != "content"]:
            del message[name]
            edits.changed = True
    role = message.get("role")
    if isinstance(role, str) and role in ROLES:
        message["role"] = ROLES[role]
        edits.changed = True
        if role == "function":
            message.setdefault("tool_call_id", f"call_{message.get('name', '')}")
    if role == "assistant":
        _calls(message, edits)
        _thinking(message, edits)
    elif "content" in message and message["content"] is None:
        message["content"] = ""
        edits.changed = True


def _thinking(message: dict[str, Any], edits: Edits) -> None:
    """Move thinking among an assistant's parts into `reasoning`; vLLM would read it as part of the answer."""
    content = message.get("content")
    if not isinstance(content, list):
        return
    thinking = [part for part in content if isinstance(part, dict) and part.get("type") in THINKING]
    if thinking:
        message["content"] = [part for part in content if part not in thinking]
        words = "".join(str(part.get("thinking") or part.get("text") or "") for part in thinking)
        message.setdefault("reasoning", words)
        edits.changed = True


def _calls(message: dict[str, Any], edits: Edits) -> None:
    """Complete the tool calls of an assistant's message with what vLLM's type check requires."""
    call = message.pop("function_call", None)
    if isinstance(call, dict):
        identity = f"call_{call.get('name', '')}"
        message.setdefault("tool_calls", [{"id": identity, "type": "function", "function": call}])
        edits.changed = True
    calls = message.get("tool_calls")
    for number, entry in enumerate(calls if isinstance(calls, list) else ()):
        if not isinstance(entry, dict):
            continue
        custom = entry.pop("custom", None)
        if isinstance(custom, dict):
            told = json.dumps({"input": custom.get("input")}, ensure_ascii=False)
            entry["type"], entry["function"] = "function", {"name": custom.get("name"), "arguments": told}
            edits.changed = True
        for name, value in (("id", f"call_{number}"), ("type", "function")):
            if entry.get(name) is None:
                entry[name] = value
                edits.changed = True
        function = entry.get("function")
        if isinstance(function, dict):
            arguments = function.get("arguments")
            made = json_body.repaired_arguments(arguments) if isinstance(arguments, str) else compact(arguments or {})
            edits.changed |= made is not arguments
            function["arguments"] = made
    if calls == []:
        del message["tool_calls"]
        edits.changed = True


def _part(part: Any, path: str, edits: Edits) -> list[Any]:
    if isinstance(part, str):
        edits.changed = True
        return [{"type": "text", "text": part}]
    if isinstance(part, dict) and part.get("uuid") is not None:
        # vLLM takes it for the content's name in caches that all clients share: one client could see another's image.
        part = {name: value for name, value in part.items() if name != "uuid"}
        edits.note(f"{path}.uuid", "known by its content")
    if not isinstance(part, dict):
        raise RequestRefused(f"`{path}` must be an object or a string.", param=path)
    kind = part.get("type")
    if kind is None:
        kind = next((name for name in ("text", "image_url", *UNSUPPORTED_MEDIA) if name in part), None)
        part = {**part, "type": kind}
        edits.changed = True
    if kind is None:
        raise RequestRefused(f"`{path}.type` is required.", param=f"{path}.type")
    check_string(kind, f"{path}.type")
    if kind == "refusal":
        check_string(part.get("refusal"), f"{path}.refusal")
    made = _other_part(part, kind, path, edits)
    if made is None:
        return [part]
    edits.changed = True
    return made


def _other_part(part: Block, kind: str, path: str, edits: Edits) -> list[Block] | None:
    """What vLLM takes in place of a part; None for one that it takes as it is."""
    if kind in ("input_image", "image_url"):
        address = part.get("image_url")
        url, place = (address.get("url"), ".url") if isinstance(address, dict) else (address, "")
        check_image_url(url, f"{path}.image_url{place}")
    if kind == "input_image" or (kind == "image_url" and not _is_whole(part.get("image_url"))):
        return _image_url(part, path, edits)
    if kind in TEXTS:
        if part.get("text") is None:
            return []
        check_string(part["text"], f"{path}.text")
        return None if kind == "text" else [{"type": "text", "text": part["text"]}]
    if kind in KNOWN:
        return None
    if kind in ("file", "input_file"):
        return file_parts(part.get("file", part), path, edits)
    if kind == "document":
        return [each for made in document_parts(part, path, edits) for each in _image_of(made, path, edits)]
    if kind == "image":
        return _image_of(part, path, edits)
    if kind in UNSUPPORTED_MEDIA:
        return [unsupported_media(part, kind, path, edits)]
    edits.note(path, f"{kind} as text")
    return [history_block(part)]


def unsupported_media(part: Block, kind: str, path: str, edits: Edits) -> Block:
    """A placeholder for audio or video."""
    inner = part.get(kind)
    fields = inner if isinstance(inner, dict) else {"url": inner}
    source = str(fields.get("data") or fields.get("url") or "")
    is_address = source.startswith(("http:", "https:", "file:"))
    media_type, data = ("", None) if is_address else split_data_url(source)
    media_type = str(fields.get("format") or media_type)
    return placeholder(UNSUPPORTED_MEDIA[kind], source if is_address else "", media_type, data, path, edits)


def _is_whole(image_url: object) -> bool:
    """Whether vLLM takes the image as it is: an object, with a detail that it knows if it has the field."""
    if not isinstance(image_url, dict) or image_url.get("url") is None:
        return False
    return image_url.get("detail", "auto") in ("auto", "low", "high")


def _image_url(part: Block, path: str, edits: Edits) -> list[Block]:
    """An image as other APIs write it, or with fields that are null, in the form of chat completions."""
    url = part.get("image_url")
    url = url.get("url") if isinstance(url, dict) else url
    if not isinstance(url, str):
        return [placeholder("image", str(part.get("file_id") or ""), "", None, path, edits)]
    return [{"type": "image_url", "image_url": {"url": url}}]


def _image_of(part: Block, path: str, edits: Edits) -> list[Block]:
    """Anthropic's image in OpenAI's form; any other part as it is."""
    if part.get("type") != "image":
        return [part]
    check_image_source(part, path)
    source = part["source"]
    if source.get("type") == "file":
        return [placeholder("image", str(source.get("file_id") or ""), "", None, path, edits)]
    data = f"data:{source.get('media_type', 'image/jpeg')};base64,{source.get('data', '')}"
    return [{"type": "image_url", "image_url": {"url": source.get("url") or data}}]


def _prefill(request: dict[str, Any], messages: list[Any], edits: Edits) -> None:
    """A last message from the assistant is the beginning of the answer, unless the client has set the flags itself."""
    last = messages[-1] if messages else None
    if not isinstance(last, dict) or last.get("role") != "assistant":
        return
    if request.get("continue_final_message") is True and "add_generation_prompt" not in request:
        # vLLM's default of the other contradicts it.
        request["add_generation_prompt"] = False
        edits.changed = True
    if "continue_final_message" in request or "add_generation_prompt" in request:
        return
    path = f"messages.{len(messages) - 1}"
    if last.get("tool_calls"):
        raise RequestRefused(
            "The last message calls a tool: its result must follow, in a message with the role `tool`.", param=path
        )
    content = last.get("content")
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict)]
        content = "".join(str(part.get("text") or part.get("refusal") or "") for part in parts)
    if not content:
        if last.get("reasoning") or last.get("reasoning_content"):
            raise RequestRefused(
                "The last message ends in reasoning, which cannot be continued; end it with text, or leave it out.",
                param=path,
            )
        if len(messages) > 1:
            messages.pop()
            edits.changed = True
        return
    refuse_with_format(request, ("response_format", "structured_outputs"))
    last["content"] = content
    request["continue_final_message"], request["add_generation_prompt"] = True, False
    edits.changed = True


def refuse_with_format(request: dict[str, Any], fields: tuple[str, ...]) -> None:
    """A grammar would start again in the middle of the answer. Raises `RequestRefused`."""
    for name in fields:
        asked = request.get(name)
        if asked and not (isinstance(asked, dict) and asked.get("type") == "text"):
            raise prefill_conflict(name)
    choice = request.get("tool_choice")
    if choice == "required" or isinstance(choice, dict):
        raise prefill_conflict("tool_choice")


def prefill_conflict(name: str) -> RequestRefused:
    """The refusal of a prefilled answer beside the field `name`."""
    return RequestRefused(
        f"The last message is the beginning of an answer, which cannot be combined with `{name}`.", param=name
    )
