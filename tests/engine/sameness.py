"""When two servers' answers count as the same: everything but ids and times, and how a stream was cut into chunks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

VOLATILE = frozenset({
    "id", "created", "created_at", "completed_at", "request_id", "item_id", "call_id", "signature", "tool_use_id",
    "response_id", "metrics", "system_fingerprint",
})  # fmt: skip
"""Ids and times; `metrics`, which are times; `system_fingerprint`, which names a server's configuration."""

TEXTS = frozenset({
    "content", "reasoning", "reasoning_content", "text", "thinking", "partial_json", "arguments", "delta",
})  # fmt: skip
"""Fields of a stream's events that grow: two events that differ in these alone are one, cut in two."""

LISTS = frozenset({"token_ids"})


def stable(value: Any) -> Any:
    """The answer without what differs from one run to the next."""
    if isinstance(value, dict):
        return {key: stable(item) for key, item in value.items() if key not in VOLATILE}
    if isinstance(value, list):
        return [stable(item) for item in value]
    return value


def without_line_breaks(value: Any) -> Any:
    """The answer without the line breaks that the template puts before it; no content and empty content are one."""
    if isinstance(value, dict):
        return {
            key: (item.lstrip("\n") or None) if key in TEXTS and isinstance(item, str) else without_line_breaks(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [without_line_breaks(item) for item in value]
    return value


def events(body: str) -> list[tuple[str, Any]]:
    """A stream's events: name ("" where it has none) and data; comments and pings, which carry nothing, left out."""
    found = []
    for block in body.split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        fields = dict(line.split(": ", 1) for line in lines)
        if fields and fields.get("event") != "ping":
            data = fields.get("data", "")
            found.append((fields.get("event", ""), data if data == "[DONE]" else stable(json.loads(data))))
    return found


def joined(stream: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """The events with neighbours of one kind put together, each sequence's (`n`, several prompts) by itself.

    `sequence_number` counts chunks, so it goes.
    """
    result: list[tuple[str, Any]] = []
    for name, event in sorted(ends_apart(stream), key=lambda event: sequence(event[1])):
        data = without_sequence(event)
        if result and result[-1][0] == name and shape(result[-1][1]) == shape(data) and texts(data):
            result[-1] = (name, added(result[-1][1], data))
        else:
            result.append((name, data))
    return result


def ends_apart(stream: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """A sequence's end as an event of its own: a busy server sends it with the last text, an idle one behind it."""
    for name, event in stream:
        choices = event.get("choices") if isinstance(event, dict) else None
        if not choices:
            yield name, event
            continue
        ends = choices[0].get("finish_reason") is not None
        said = {key: item for key, item in choices[0].items() if key != "stop_reason"} | {"finish_reason": None}
        if texts(said) or not ends:
            yield name, {**event, "choices": [said]}
        if ends:
            yield name, {"end": {key: choices[0].get(key) for key in ("index", "finish_reason", "stop_reason")}}


def sequence(data: Any) -> int:
    """Which of the answer's sequences an event is of; those of none come last, as they were."""
    if not isinstance(data, dict):
        return 1 << 30
    choices = data.get("choices") or [data["end"]] if "end" in data else data.get("choices")
    return int(choices[0]["index"]) if choices else 1 << 30


def without_sequence(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: value for key, value in data.items() if key != "sequence_number"}
    return data


def texts(value: Any) -> list[str]:
    """Every growing text in an event."""
    if isinstance(value, dict):
        own = [item for key, item in value.items() if key in TEXTS and isinstance(item, str) and item]
        return own + [text for item in value.values() for text in texts(item)]
    if isinstance(value, list):
        return [text for item in value for text in texts(item)]
    return []


def shape(value: Any) -> Any:
    """An event with its growing parts blanked."""
    if isinstance(value, dict):
        return {
            key: "" if key in TEXTS and isinstance(item, str) else [] if grows(key, item) else shape(item)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [shape(item) for item in value]
    return value


def grows(key: str, item: Any) -> bool:
    return key in LISTS and isinstance(item, list)


def added(first: Any, second: Any) -> Any:
    """`first` with the growing parts of `second` put behind its own. Both have one shape."""
    if isinstance(first, dict):
        return {
            key: item + second[key]
            if (key in TEXTS and isinstance(item, str)) or grows(key, item)
            else added(item, second[key])
            for key, item in first.items()
        }
    if isinstance(first, list):
        return [added(one, other) for one, other in zip(first, second, strict=True)]
    return first
