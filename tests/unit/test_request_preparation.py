"""Whatever a client sends: a request is prepared, or refused by name; nothing else is raised, and it stays JSON."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import pytest

from serve_app.ingress.requests import json_body, preparation
from serve_app.ingress.requests.edits import Edits, header_value
from serve_app.protocol.errors import RequestRefused

JUNK: tuple[Any, ...] = (
    *(None, True, 0, -1.5, "", "x", [], {}, [[]], [None], ["x"], {"type": "text"}, {"type": []}, {"text": {}}),
    *({"type": "document", "source": []}, {"type": "file", "file": 1}, {"type": "input_image", "image_url": {}}),
    *({"type": "tool_result", "content": [1, "x", {"type": "document"}]}, {"type": "function_call", "name": {}}),
    *({"type": "web_search_20250305"}, {"type": "custom", "format": {"type": "grammar"}}, {"role": "assistant"}),
)
SOURCE = {"type": "base64", "media_type": "text/plain", "data": "eA=="}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/messages": {
        "system": [{"type": "text", "text": "s"}, {"type": "document", "source": SOURCE}],
        "tools": [{"type": "bash_20250124", "name": "bash"}, {"type": "web_search_20250305", "name": "web_search"},
                  {"name": "f", "input_schema": {}, "defer_loading": True}],
        "tool_choice": {"type": "tool", "name": "web_search"},
        "context_management": {"edits": [{"type": "clear"}]}, "mcp_servers": [{"name": "s"}], "container": {"id": "c"},
        "output_format": {"type": "json_schema"},
        "messages": [
            {"role": "user", "content": [{"type": "document", "source": SOURCE}, {"type": "image", "source": SOURCE}]},
            {"role": "assistant", "content": [{"type": "compaction", "content": "c"}, {"type": "redacted_thinking"},
                                              {"type": "tool_use", "id": "t", "name": "f", "input": "{}"}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": [
                {"type": "search_result", "content": [{"type": "text", "text": "x"}]}]}]},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "t"}, {"type": "text", "text": "x"}]},
        ],
    },
    "/v1/chat/completions": {
        "tools": [{"type": "function", "function": {"name": "f"}}, {"type": "custom", "custom": {"name": "c"}}],
        "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"function": {}}]}},
        "functions": [{"name": "f"}], "function_call": {"name": "f"}, "web_search_options": {},
        "messages": [
            {"role": "developer", "content": None, "name": None},
            {"role": "user", "content": [{"type": "file", "file": {"filename": "a", "file_data": "eA=="}},
                                         {"type": "input_audio", "input_audio": {"data": "eA=="}},
                                         {"type": "document", "source": SOURCE}]},
            {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}, {"custom": {"name": "c"}}]},
            {"role": "tool", "content": [{"type": "image_url", "image_url": "u"}]},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "t"}, {"type": "text", "text": "x"}]},
        ],
    },
    "/v1/responses": {
        "tools": [{"type": "function", "name": "f"}, {"type": "custom", "name": "c", "format": {"type": "grammar"}},
                  {"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "g"}, {"type": "custom"}]}],
        "tool_choice": {"type": "allowed_tools", "tools": [{"name": "f"}]},
        "include": ["a"], "service_tier": "x", "text": {"format": {"type": "text"}},
        "input": [
            {"role": "user", "content": [{"type": "input_file", "file_data": "eA=="}, {"type": "input_image"}]},
            {"type": "reasoning", "summary": [{"text": "t"}], "encrypted_content": "z"},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "x"}]},
            {"type": "shell_call", "action": {}}, {"type": "computer_call_output", "output": {"image_url": "u"}},
            {"type": "web_search_call", "action": {"query": "q"}}, {"type": "item_reference", "id": "rs_1"},
            {"type": "additional_tools", "tools": [{"type": "function", "name": "h"}, {"type": "namespace", "name": "n",
                                                    "tools": [{"type": "function", "name": "i"}]}]},
            {"type": "compaction", "summary": [{"text": "x"}]},
            {"role": "assistant", "content": [{"type": "output_text", "text": "x"}, {"type": "refusal"}]},
        ],
    },
}  # fmt: skip


def mutated(value: Any, chance: float, draw: random.Random) -> Any:
    if draw.random() < chance:
        return copy.deepcopy(draw.choice(JUNK))
    if isinstance(value, dict):
        return {name: mutated(entry, chance, draw) for name, entry in value.items() if draw.random() > chance / 4}
    if isinstance(value, list):
        return [mutated(entry, chance, draw) for entry in value]
    return value


def mutant(path: str, chance: float, draw: random.Random) -> dict[str, Any]:
    return {"model": "m"} | {name: mutated(entry, chance, draw) for name, entry in BODIES[path].items()}


@pytest.mark.parametrize("path", BODIES)
def test_nothing_but_a_refusal_is_raised(path: str) -> None:
    draw = random.Random(path)
    served, refusals = 0, []
    for number in range(2000):
        request = mutant(path, 0.02 + 0.1 * (number % 4), draw) if number else {}
        edits = Edits()
        try:
            preparation.prepare(path, request, edits)
        except RequestRefused as error:
            refusals.append(error.message)
            continue
        served += 1
        assert json.loads(json_body.encode(request)) is not None
        header_value(edits.ignored).decode("ascii")
    assert served > 200
    assert all(refusals)
    assert "\n" not in "".join(refusals)


@pytest.mark.parametrize("path", BODIES)
def test_what_is_not_changed_is_not_said_to_be(path: str) -> None:
    draw = random.Random(path)
    for _ in range(2000):
        request = mutant(path, 0.1, draw)
        before, edits = json.dumps(request), Edits()
        try:
            preparation.prepare(path, request, edits)
        except RequestRefused:
            continue
        assert edits.changed or json.dumps(request) == before
