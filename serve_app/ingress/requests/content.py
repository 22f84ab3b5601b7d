"""Turns parts of a conversation that the model cannot read into text: documents, files, audio, and the history of tools
that ran on a vendor's servers.

Readable content is inlined. Other content is named by a placeholder, so that the model can say so instead of guessing.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import json
from typing import Any

from serve_app.ingress.requests.edits import Edits
from serve_app.protocol.errors import RequestRefused

Block = dict[str, Any]


class InsertedText(dict[str, Any]):
    """A text block of ours, in place of a part that the model does not know."""


class Placeholder(InsertedText):
    """A text block for content that could not be read."""


OPAQUE = frozenset(
    {"type", "id", "tool_use_id", "cache_control", "citations", "encrypted_content", "encrypted_index",
     "encrypted_stdout", "signature", "data", "result", "caller", "logprobs", "annotations", "status", "call_id",
     "tool_call_id", "server_label", "pending_safety_checks", "acknowledged_safety_checks", "fingerprint"}
)  # fmt: skip
"""Fields without meaning for a model: ids, and what only its issuer can decrypt. (`result`: a generated image.)"""

ROLES = ("user", "assistant", "system", "developer", "tool")
"""Roles of the messages among the items of `/v1/responses`."""

TEXT_TYPES = ("text/", "application/json", "application/xml", "application/yaml", "application/x-yaml",
              "application/javascript", "application/x-sh", "application/sql", "application/toml")  # fmt: skip


def word(value: object) -> str:
    """`value` if it is a string, else an empty one, which vLLM then refuses."""
    return value if isinstance(value, str) else ""


def as_list(content: object) -> list[Any]:
    """Content as a list of parts, in whatever form a client has sent it."""
    if content is None:
        return []
    return content if isinstance(content, list) else [content]


def readable(value: object) -> str:
    """A block of an unknown kind as text: its texts, and its fields by name."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "\n".join(text for text in map(readable, value) if text)
    if not isinstance(value, dict):
        return json.dumps(value)
    if value.get("type") in ("text", "input_text", "output_text"):
        words = value.get("text", value.get("data"))  # `data`: the source of a document
        if isinstance(words, str):
            return words
    lines = []
    for name, entry in value.items():
        if name in OPAQUE or entry in (None, "", [], {}):
            continue
        text = compact(entry) if name in ("input", "arguments", "action") else readable(entry)
        if text:
            lines.append(f"{name}: {text}" if not isinstance(entry, list) else text)
    return "\n".join(lines)


def compact(value: object) -> str:
    """JSON in one line; a string as it is."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def tool_part(part: object) -> Any:
    """A part of a tool's result: what is no part is the result itself, as JSON in one line."""
    if isinstance(part, dict):
        is_text = part.keys() <= {"type", "text"} and isinstance(part.get("text"), str)
        return part if is_text or isinstance(part.get("type"), str) else compact(part)
    return compact(part)


def history_block(block: Block) -> InsertedText:
    """A block from the history of a hosted tool, as text."""
    return InsertedText(type="text", text=history_text(block))


def history_text(block: Block) -> str:
    """The text of `history_block`."""
    kind = block.get("type", "block")
    text = readable(block)
    return f"[{kind}]\n{text}\n[end of {kind}]" if text else f"[{kind}]"


def check_image_source(block: Block, path: str) -> None:
    """Raises `RequestRefused` for an Anthropic image without a source: vLLM would silently answer without it."""
    source = block.get("source")
    if not isinstance(source, dict) or not source:
        raise RequestRefused(f"`{path}.source` must be an object with the image.", param=f"{path}.source")
    if source.get("type") == "file":
        return
    name = "url" if source.get("type") == "url" or (source.get("url") and not source.get("data")) else "data"
    if not isinstance(source.get(name), str) or not source[name]:
        raise RequestRefused(f"`{path}.source.{name}` must be a string with the image.", param=f"{path}.source.{name}")
    if not isinstance(source.get("media_type", ""), str | None):
        raise RequestRefused(f"`{path}.source.media_type` must be a string.", param=f"{path}.source.media_type")


def check_image_url(url: object, path: str) -> None:
    """Raises `RequestRefused` for an address that is empty or no string: vLLM's message about it helps nobody."""
    if url is not None and not word(url).strip():
        raise RequestRefused(f"`{path}` must be the address of an image, or a data URL.", param=path)


def check_string(value: object, path: str) -> None:
    """Raises `RequestRefused` for what is no string: of a content part vLLM does not say which one."""
    if not isinstance(value, str):
        raise RequestRefused(f"`{path}` must be a string.", param=path)


def check_role(role: object, path: str) -> None:
    """Raises `RequestRefused` for a role that no item of `/v1/responses` has: vLLM would miss another item's fields."""
    if role is None:
        raise RequestRefused(f"`{path}` is required.", param=path)
    if role not in ROLES:
        known = ", ".join(f'"{name}"' for name in ROLES)
        raise RequestRefused(f"`{path}` must be one of {known}.", param=path)


def check_not_empty(conversation: object, name: str) -> None:
    """Raises `RequestRefused` for a conversation without anything in it."""
    if not conversation:
        raise RequestRefused(f"`{name}` must not be empty.", param=name)


def document_parts(block: Block, path: str, edits: Edits) -> list[Block]:
    """An Anthropic `document` block as text and image blocks."""
    raw = block.get("source")
    source: Block = raw if isinstance(raw, dict) else {}
    title = str(block.get("title") or source.get("filename") or source.get("url") or source.get("file_id") or "")
    media_type = str(source.get("media_type") or "")
    if source.get("type") == "content":
        inner = source.get("content")
        parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in as_list(inner)]
        words = [part for part in parts if isinstance(part, dict) and part.get("type") == "text"]
        others = [part for part in parts if isinstance(part, dict) and part.get("type") == "image"]
        return [_inlined(title, block.get("context"), "\n".join(str(part.get("text")) for part in words)), *others]
    if source.get("type") == "text":
        return [_inlined(title, block.get("context"), str(source.get("data") or ""))]
    data = source.get("data")
    if isinstance(data, str) and (text := text_of(data, media_type, f"{path}.source.data")) is not None:
        return [_inlined(title, block.get("context"), text)]
    if not media_type and source.get("type") == "base64":
        media_type = "application/pdf"
    return [placeholder("document", title, media_type, data, path, edits)]


def _inlined(title: str, context: object, text: str) -> Block:
    named = f" title={json.dumps(title, ensure_ascii=False)}" if title else ""
    about = f"{context}\n" if isinstance(context, str) and context else ""
    return InsertedText(type="text", text=f"<document{named}>\n{about}{text}\n</document>")


def file_parts(file: object, path: str, edits: Edits) -> list[Block]:
    """OpenAI's file (`file` of chat completions, `input_file` of responses) as text blocks."""
    fields = file if isinstance(file, dict) else {}
    name = str(fields.get("filename") or fields.get("file_url") or fields.get("file_id") or "")
    media_type, data = split_data_url(fields.get("file_data"))
    if data and not media_type and name.lower().endswith((".txt", ".md", ".csv", ".json", ".py", ".html", ".xml")):
        media_type = "text/plain"
    if data and (text := text_of(data, media_type, f"{path}.file_data")) is not None:
        return [_inlined(name, None, text)]
    return [placeholder("file", name, media_type, data, path, edits)]


def split_data_url(value: object) -> tuple[str, str | None]:
    """Media type and base64 data of a data URL; a bare base64 string has no type."""
    if not isinstance(value, str):
        return "", None
    if not value.startswith("data:"):
        return "", value
    head, _, data = value.partition(",")
    return head[5:].split(";")[0], data


def text_of(data: str, media_type: str, path: str) -> str | None:
    """The text of a base64 document; None for one that is not text. Raises `RequestRefused` for what is no base64."""
    if not media_type.lower().startswith(TEXT_TYPES):
        return None
    try:
        return base64.b64decode(data, validate=False).decode("utf-8-sig", "replace")
    except (binascii.Error, ValueError) as error:
        raise RequestRefused(f"`{path}` is not valid base64.", param=path) from error


def placeholder(kind: str, name: str, media_type: str, data: object, path: str, edits: Edits) -> Block:
    """The text for content that this server cannot read, which is noted too."""
    size = f"{max(1, len(data) * 3 // 4096)} KB" if isinstance(data, str) and data else ""
    facts = ", ".join(fact for fact in (media_type, size) if fact)
    named = f" {name[:200]!r}" if name else ""
    edits.note(path, f"{kind} {name[:80]} {media_type}".strip().replace("  ", " "))
    what = f"{kind}{named}{f' ({facts})' if facts else ''}"
    return Placeholder(type="text", text=f"[The {what} cannot be read by this server.]")


def finish_parts(parts: list[Any], path: str, *, may_stand_alone: bool) -> list[Any]:
    """The final parts of one message: our text is separated from what follows it.

    Raises `RequestRefused` where nothing of a message can be read, unless it `may_stand_alone`.
    """
    inserted = [part for part in parts if isinstance(part, InsertedText)]
    if not inserted:
        return parts
    unread = next((part for part in inserted if isinstance(part, Placeholder)), None)
    if unread is not None and not may_stand_alone and not any(map(_has_content, parts)):
        said = unread["text"].strip("[]").removesuffix(".")
        raise RequestRefused(f"{said}, and the message has nothing else. Send its text, or images of it.", param=path)
    for part, following in itertools.pairwise(parts):
        if isinstance(part, InsertedText) and isinstance(following, dict) and "text" in following:
            part["text"] += "\n"
    return [dict(part) if isinstance(part, InsertedText) else part for part in parts]


def _has_content(part: object) -> bool:
    if isinstance(part, Placeholder):
        return False
    return not isinstance(part, dict) or "text" not in part or bool(part["text"])
