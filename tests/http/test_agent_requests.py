"""What agents send to Anthropic's Messages API and we cannot do: never a failed turn, never dropped in silence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.http.asking import CHAT, COMPLETIONS, COUNT, IMAGE, MESSAGES, PNG, RESPONSES, Asking, asking
from tests.http.harness import NAME

pytestmark = pytest.mark.asyncio(loop_scope="module")

SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 8}
WEATHER = {"name": "get_weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
CALL = {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "Read", "input": {"path": "x"}}]}
PDF = {"type": "base64", "media_type": "application/pdf", "data": "A" * 160_000}
IMAGE_BLOCK = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}


def user(content: object) -> dict[str, Any]:
    return {"role": "user", "content": content}


def result(content: object) -> dict[str, Any]:
    return user([{"type": "tool_result", "tool_use_id": "t1", "content": content}])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client() -> AsyncIterator[Asking]:
    async with asking() as running:
        yield running


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", [NAME, "claude-opus-4"])
async def test_hosted_tools_are_left_out_and_named(client: Asking, model: str, *, stream: bool) -> None:
    hosted = [
        SEARCH,
        {"type": "web_fetch_20250910", "name": "web_fetch"},
        {"type": "code_execution_20250825", "name": "code_execution"},
        {"type": "tool_search_tool_regex_20251119", "name": "tool_search"},
        {"type": "mcp_toolset", "mcp_server_name": "files"},
        {"type": "of_next_year_20270101", "name": "new"},
    ]
    body = {"model": model, "messages": [user("hi")], "tools": [*hosted, WEATHER], "stream": stream}
    answer = await client.ask(MESSAGES, body)
    assert answer.status == 200
    assert [f"tools.{number} ({tool['type']})" in answer.ignored for number, tool in enumerate(hosted)] == [True] * 6
    assert answer.prompt.count('"name": ') == 1
    assert "get_weather" in answer.prompt
    line = await asyncio.wait_for(client.served.log.lines.get(), 5)
    while line.context.request_id != answer.response.headers["x-request-id"]:
        line = await asyncio.wait_for(client.served.log.lines.get(), 5)
    assert len(line.context.ignored) == 6


async def test_tools_that_the_client_runs_get_their_documented_input(client: Asking) -> None:
    tools = [
        {"type": "bash_20250124", "name": "bash"},
        {"type": "text_editor_20250728", "name": "str_replace_based_edit_tool", "max_characters": 100},
        {"type": "memory_20250818", "name": "memory"},
        {"type": "computer_20250124", "name": "computer", "display_width_px": 1024, "display_height_px": 768},
    ]
    answer = await client.ask(MESSAGES, {"messages": [user("hi")], "tools": tools})
    assert (answer.status, answer.ignored) == (200, "")
    for told in ('"name": "bash"', '"restart"', '"insert_text"', '"old_path"', "1024x768"):
        assert told in answer.prompt


async def test_a_demand_for_a_hosted_tool_is_loosened_or_refused(client: Asking) -> None:
    forced = {"type": "tool", "name": "web_search"}
    answer = await client.ask(MESSAGES, {"messages": [user("hi")], "tools": [SEARCH, WEATHER], "tool_choice": forced})
    assert answer.status == 200
    assert answer.ignored == "tools.0 (web_search_20250305), tool_choice (tool web_search)"
    for choice in (forced, {"type": "any"}):
        answer = await client.ask(MESSAGES, {"messages": [user("hi")], "tools": [SEARCH], "tool_choice": choice})
        assert answer.status == 400
        assert "web_search" in answer.error["message"]
    answer = await client.ask(MESSAGES, {"messages": [user("hi")], "tools": [SEARCH], "tool_choice": {"type": "auto"}})
    assert (answer.status, answer.ignored) == (200, "tools.0 (web_search_20250305)")


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "nobody"}])
async def test_a_demand_for_a_tool_that_is_not_there_is_refused(client: Asking, choice: dict[str, str]) -> None:
    assert (await client.ask(MESSAGES, {"messages": [user("hi")], "tool_choice": choice})).status == 400
    named = await client.ask(MESSAGES, {"messages": [user("hi")], "tools": [WEATHER], "tool_choice": choice})
    assert named.status == (200 if choice["type"] == "any" else 400)


async def test_a_document_that_a_tool_returned_is_named_where_it_cannot_be_read(client: Asking) -> None:
    document = {"type": "document", "title": "report.pdf", "source": PDF}
    answer = await client.ask(MESSAGES, {"messages": [user("read it"), CALL, result([document])]})
    assert answer.status == 200
    assert "[The document 'report.pdf' (application/pdf, 117 KB) cannot be read by this server.]" in answer.prompt
    assert answer.ignored == "messages.2.content.0.content.0 (document report.pdf application/pdf)"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("not found", ">Error: not found<"),
        ([{"type": "text", "text": "not found"}], ">Error: not found<"),
        (["", "not found"], "Error: not found<"),
        (None, ">Error: the tool failed.<"),
        ("", ">Error: the tool failed.<"),
        ([], ">Error: the tool failed.<"),
        ([IMAGE_BLOCK], "Error: the tool failed."),
        ("Error: not found", "response>Error: not found<"),
        ("<tool_use_error>not found</tool_use_error>", "response><tool_use_error>not found</tool_use_error><"),
    ],
)
async def test_a_tool_that_failed_is_told_as_that(client: Asking, content: object, told: str) -> None:
    failed = result(content)
    failed["content"][0]["is_error"] = True
    answer = await client.ask(MESSAGES, {"messages": [user("q"), CALL, failed]})
    assert (answer.status, answer.ignored) == (200, "")
    assert told in answer.prompt
    assert (IMAGE in answer.prompt) == (content == [IMAGE_BLOCK])
    failed["content"][0]["is_error"] = False
    answer = await client.ask(MESSAGES, {"messages": [user("q"), CALL, failed]})
    assert ("Error" in answer.prompt) == (isinstance(content, str) and content.startswith("Error"))


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ({"type": "text", "media_type": "text/plain", "data": "BODY"}, "BODY"),
        ({"type": "base64", "media_type": "text/plain", "data": "Qk9EWQ=="}, "BODY"),
        ({"type": "content", "content": "BODY"}, "BODY"),
        ({"type": "content", "content": [{"type": "text", "text": "BODY"}, IMAGE_BLOCK]}, IMAGE),
        ({"type": "url", "url": "https://example.com/a.pdf"}, "cannot be read"),
        ({"type": "file", "file_id": "file_1"}, "cannot be read"),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
async def test_documents_are_inlined_or_named(
    client: Asking, source: dict[str, Any], told: str, *, inside: bool
) -> None:
    document = {"type": "document", "title": "a.txt", "context": "CONTEXT", "source": source}
    last = [CALL, result([document])] if inside else [user([document, {"type": "text", "text": "sum it up"}])]
    answer = await client.ask(MESSAGES, {"messages": [user("q"), *last]})
    assert answer.status == 200
    assert told in answer.prompt
    assert ("cannot be read" in told) == bool(answer.ignored)
    assert "a.txt" in answer.prompt
    assert "cannot be read" in told or "CONTEXT" in answer.prompt


async def test_a_document_that_cannot_be_read_does_not_stand_for_a_question(client: Asking) -> None:
    alone = user([{"type": "document", "title": "report.pdf", "source": PDF}])
    answer = await client.ask(MESSAGES, {"messages": [alone]})
    assert answer.status == 400
    assert "report.pdf" in answer.error["message"]
    later = await client.ask(MESSAGES, {"messages": [alone, {"role": "assistant", "content": "?"}, user("go on")]})
    assert later.status == 200
    assert "report.pdf" in later.prompt


HISTORY = [
    {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"query": "cats"}},
    {
        "type": "web_search_tool_result",
        "tool_use_id": "s1",
        "content": [{"type": "web_search_result", "url": "https://c.at", "title": "Cats", "encrypted_content": "zzz"}],
    },
    {"type": "web_search_tool_result", "tool_use_id": "s2",
     "content": {"type": "web_search_tool_result_error", "error_code": "max_uses_exceeded"}},
    {"type": "web_fetch_tool_result", "tool_use_id": "s3", "content": {
        "type": "web_fetch_result", "url": "https://f.et",
        "content": {"type": "document", "source": {"type": "text", "data": "fetched words"}}}},
    {"type": "bash_code_execution_tool_result", "tool_use_id": "s4",
     "content": {"type": "bash_code_execution_result", "stdout": "forty-two", "stderr": "", "return_code": 0}},
    {"type": "mcp_tool_use", "id": "m1", "name": "echo", "server_name": "files", "input": {"word": "hello"}},
    {"type": "mcp_tool_result", "tool_use_id": "m1", "content": [{"type": "text", "text": "echoed"}]},
    {"type": "tool_search_tool_result", "tool_use_id": "s5", "content": {
        "type": "tool_search_tool_search_result",
        "tool_references": [{"type": "tool_reference", "tool_name": "found_tool"}]}},
    {"type": "redacted_thinking", "data": "zzz"},
    {"type": "of_next_year", "words": "future words"},
    {"type": "text", "text": "done", "citations": []},
]  # fmt: skip


@pytest.mark.parametrize("path", [MESSAGES, COUNT])
async def test_the_history_of_hosted_tools_is_told_as_text(client: Asking, path: str) -> None:
    messages = [user("q"), {"role": "assistant", "content": HISTORY}, user("and now?")]
    answer = await client.ask(path, {"messages": messages})
    assert answer.status == 200
    kinds = [block["type"] for block in HISTORY[:-1]]
    assert all(kind in answer.ignored for kind in kinds)
    if path == MESSAGES:
        words = ("cats", "https://c.at", "Cats", "max_uses_exceeded", "fetched words", "forty-two", "hello", "echoed",
                 "found_tool", "future words", "done")  # fmt: skip
        assert [word for word in words if word not in answer.prompt] == []
        assert "zzz" not in answer.prompt


async def test_what_a_user_message_holds_beside_text_is_told(client: Asking) -> None:
    blocks = [
        {
            "type": "search_result",
            "source": "https://s.rc",
            "title": "T",
            "content": [{"type": "text", "text": "found"}],
        },
        {"type": "container_upload", "file_id": "file_1"},
        {"type": "image", "source": {"type": "file", "file_id": "file_2"}},
        {"type": "text", "text": "go on"},
    ]
    answer = await client.ask(MESSAGES, {"messages": [user(blocks)]})
    assert answer.status == 200
    for word in ("https://s.rc", "found", "'file_1'", "'file_2'", "go on"):
        assert word in answer.prompt


async def test_a_compaction_stands_for_what_was_before_it(client: Asking) -> None:
    compacted = {
        "role": "assistant",
        "content": [{"type": "compaction", "content": "SUMMARY"}, {"type": "text", "text": "ok"}],
    }
    answer = await client.ask(MESSAGES, {"messages": [user("OLD"), compacted, user("go on")]})
    assert "SUMMARY" in answer.prompt
    assert "OLD" not in answer.prompt
    failed = {"role": "assistant", "content": [{"type": "compaction", "content": None}, {"type": "text", "text": "ok"}]}
    assert "OLD" in (await client.ask(MESSAGES, {"messages": [user("OLD"), failed, user("go on")]})).prompt


async def test_fields_that_change_the_answer_are_noted_and_hints_are_not(client: Asking) -> None:
    remote = {
        "mcp_servers": [{"type": "url", "url": "https://m.cp", "name": "files"}],
        "container": "container_1",
        "context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]},
    }
    answer = await client.ask(MESSAGES, {"messages": [user("hi")], **remote})
    assert answer.status == 200
    assert answer.ignored == (
        "mcp_servers (files), container (container_1), context_management (clear_tool_uses_20250919)"
    )
    hints = {
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "metadata": {"user_id": "u"}, "service_tier": "auto", "betas": ["b"], "speed": "fast",
        "inference_geo": "us", "diagnostics": {}, "mcp_servers": [], "container": None, "stop_sequences": None,
        "tools": [{**WEATHER, "type": "custom", "defer_loading": True, "strict": True, "eager_input_streaming": True,
                   "allowed_callers": ["direct"], "input_examples": [{}], "cache_control": {"type": "ephemeral"}}],
    }  # fmt: skip
    answer = await client.ask(MESSAGES, {"messages": [user("hi")], **hints})
    assert (answer.status, answer.ignored) == (200, "")


async def test_images_in_tool_results_reach_the_model_on_all_apis(client: Asking) -> None:
    url = f"data:image/png;base64,{PNG}"
    answer = await client.ask(MESSAGES, {"messages": [user("q"), CALL, result([IMAGE_BLOCK])]})
    assert (answer.status, IMAGE in answer.prompt) == (200, True)
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "t1", "function": {"name": "Read"}}]}
    tool = {"role": "tool", "tool_call_id": "t1", "content": [{"type": "image_url", "image_url": {"url": url}}]}
    answer = await client.ask(CHAT, {"messages": [user("q"), call, tool]})
    assert (answer.status, IMAGE in answer.prompt) == (200, True)
    items = [
        {"type": "function_call", "call_id": "t1", "name": "Read", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "t1", "output": [{"type": "input_image", "image_url": url}]},
    ]
    answer = await client.ask(RESPONSES, {"input": [user("q"), *items]})
    assert (answer.status, IMAGE in answer.prompt) == (200, True)


BODIES = {
    CHAT: b'{"model":"%s","max_tokens":4,"messages":[{"role":"user","content":"cut \\ud83d x"}]}',
    MESSAGES: b'{"model":"%s","max_tokens":4,"messages":[{"role":"user","content":"cut \\ud83d x"}]}',
    RESPONSES: b'{"model":"%s","max_output_tokens":4,"input":"cut \\ud83d x"}',
    COMPLETIONS: b'{"model":"%s","max_tokens":4,"prompt":"cut \\ud83d x"}',
}


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("model", [NAME, "claude-opus-4"])
async def test_half_an_emoji_is_repaired_for_every_model_name(client: Asking, path: str, model: str) -> None:
    answer = await client.ask(path, BODIES[path] % model.encode())
    assert answer.status == 200
    assert "cut � x" in answer.prompt


@pytest.mark.parametrize("path", BODIES)
async def test_bodies_that_are_no_object_are_refused_in_the_apis_shape(client: Asking, path: str) -> None:
    for body in (b"", b"[]", b"{", b'{"model": "\xff"}', b'{"temperature": NaN}'):
        answer = await client.ask(path, body)
        assert answer.status == 400
        assert answer.error["type"] == "invalid_request_error"
        assert "\n" not in answer.error["message"]


async def test_content_of_resumed_sessions_is_read(client: Asking) -> None:
    words = {"type": "text", "text": "a block"}
    messages = [user(words), {"role": "assistant", "content": None}, user(["a string", words]), user(None)]
    answer = await client.ask(MESSAGES, {"messages": messages})
    assert answer.status == 200
    assert "user\na block<" in answer.prompt
    assert "user\na stringa block<" in answer.prompt


async def test_an_older_name_of_the_output_format_counts(client: Asking) -> None:
    broken = {"type": "json_schema", "schema": {"type": "nonsense"}}
    assert (await client.ask(MESSAGES, {"messages": [user("hi")], "output_format": broken})).status == 400


@pytest.mark.parametrize("stream", [False, True])
async def test_a_thread_is_noted_and_its_continuation_asks_for_the_whole_conversation(
    client: Asking, *, stream: bool
) -> None:
    started = await client.ask(MESSAGES, {"messages": [user("hi")], "stream": stream, "thread": {"type": "create"}})
    assert (started.status, started.ignored) == (200, "thread (create)")
    thread = {"type": "continue", "previous_message_id": "msg_1"}
    answer = await client.ask(MESSAGES, {"messages": [result("sunny")], "stream": stream, "thread": thread})
    assert (answer.status, answer.error["type"]) == (404, "not_found_error")
    assert answer.error["details"] == {"error_code": "thread_not_found"}
    assert "send the whole conversation" in answer.error["message"]
