"""What clients of OpenAI's APIs send: what they leave out is optional, what we cannot do is named."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.http.asking import CHAT, IMAGE, PNG, RESPONSES, Asking, asking

pytestmark = pytest.mark.asyncio(loop_scope="module")

URL = f"data:image/png;base64,{PNG}"
PDF = "data:application/pdf;base64,AAAA"
WEATHER = {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
CHAT_TOOL = {"type": "function", "function": WEATHER}
TOOL = {"type": "function", **WEATHER}
CALL = {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": '{"city":"Paris"}'}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "sunny"}
CHAT_CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c1", "function": {"name": "get_weather", "arguments": '{"city":"Paris"}'}}],
}


def user(content: object) -> dict[str, Any]:
    return {"role": "user", "content": content}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client() -> AsyncIterator[Asking]:
    async with asking() as running:
        yield running


async def test_chat_tools_that_are_no_functions_are_left_out(client: Asking) -> None:
    others = [{"type": "web_search"}, {"type": "custom", "custom": {"name": "shell"}}, {"type": "of_next_year"}]
    answer = await client.ask(CHAT, {"messages": [user("hi")], "tools": [*others, CHAT_TOOL], "web_search_options": {}})
    assert answer.status == 200
    assert answer.ignored == (
        "tools.0 (web_search), tools.1 (custom), tools.2 (of_next_year), web_search_options (web search)"
    )
    assert "get_weather" in answer.prompt
    only = {"messages": [user("hi")], "tools": others[:1]}
    assert (await client.ask(CHAT, {**only, "tool_choice": "auto"})).status == 200
    assert (await client.ask(CHAT, {**only, "tool_choice": "required"})).status == 400


async def test_codex_tools_work_or_are_left_out(client: Asking) -> None:
    tools = [
        TOOL,
        {"type": "web_search", "external_web_access": True},
        {"type": "local_shell"},
        {"type": "custom", "name": "apply_patch", "description": "Patch files.",
         "format": {"type": "grammar", "syntax": "lark", "definition": "start: begin_patch"}},
        {"type": "namespace", "name": "files", "description": "d",
         "tools": [{"type": "function", "name": "read", "parameters": {}}, {"type": "custom", "name": "raw"}]},
        {"type": "mcp", "server_label": "s", "server_url": "https://m.cp"},
        {"type": "of_next_year"},
    ]  # fmt: skip
    codex = {
        "instructions": "You are a coding agent.",
        "input": [user("hi")],
        "tools": tools,
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "store": False,
        "stream": True,
        "prompt_cache_key": "k",
        "include": ["reasoning.encrypted_content", "web_search_call.action.sources"],
        "service_tier": "standard",
        "reasoning": {"effort": "medium", "summary": "auto"},
        "text": {"verbosity": "low"},
        "client_metadata": {"a": "b"},
        "safety_identifier": "s",
    }
    answer = await client.ask(RESPONSES, codex)
    assert answer.status == 200
    assert answer.response.text.count("event: response.created") == 1
    for told in ("get_weather", "apply_patch", "start: begin_patch", "files__read"):
        assert told in answer.prompt
    for named in ("web_search", "local_shell", "apply_patch: grammar", "files: raw", "mcp", "of_next_year", "sources"):
        assert named in answer.ignored


async def test_a_demand_for_a_hosted_tool_is_loosened_or_refused(client: Asking) -> None:
    search = {"type": "web_search_preview"}
    answer = await client.ask(RESPONSES, {"input": "hi", "tools": [search, TOOL], "tool_choice": search})
    assert (answer.status, "tool_choice" in answer.ignored) == (200, True)
    assert (await client.ask(RESPONSES, {"input": "hi", "tools": [search], "tool_choice": search})).status == 400
    assert (await client.ask(RESPONSES, {"input": "hi", "tools": [search], "tool_choice": "required"})).status == 400
    assert (await client.ask(RESPONSES, {"input": "hi", "tools": [search]})).status == 200


async def test_only_the_allowed_tools_are_shown(client: Asking) -> None:
    other = {"type": "function", "function": {"name": "other"}}
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [other]}}
    body = {"messages": [user("hi")], "tools": [CHAT_TOOL, other], "tool_choice": allowed}
    answer = await client.ask(CHAT, body)
    assert (answer.status, "get_weather" in answer.prompt, '"other"' in answer.prompt) == (200, False, True)
    named = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "other"}]}
    tools = [TOOL, {"type": "function", "name": "other", "parameters": {}}]
    answer = await client.ask(RESPONSES, {"input": "hi", "tools": tools, "tool_choice": named})
    assert (answer.status, "get_weather" in answer.prompt, '"other"' in answer.prompt) == (200, False, True)


async def test_functions_of_2023_are_tools(client: Asking) -> None:
    messages = [
        user("hi"),
        {"role": "assistant", "content": None, "function_call": {"name": "get_weather", "arguments": "{}"}},
        {"role": "function", "name": "get_weather", "content": "sunny"},
    ]
    body = {"messages": messages, "functions": [WEATHER], "function_call": "auto"}
    answer = await client.ask(CHAT, body)
    assert (answer.status, answer.ignored) == (200, "functions (answered as tool_calls)")
    assert "<tool_call>\n<function=get_weather>" in answer.prompt
    assert "<tool_response>sunny</tool_response>" in answer.prompt


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([user("q"), CHAT_CALL, {"role": "tool", "tool_call_id": "c1", "name": "w", "content": "sunny"}], ">sunny<"),
        ([user("q"), CHAT_CALL, {"role": "tool", "content": "sunny"}], ">sunny<"),
        ([user("q"), CHAT_CALL, {"role": "tool", "tool_call_id": "c1", "content": None}], "_response><"),
        ([user("q"), {"role": "assistant", "content": "b", "tool_calls": []}, user("c")], "\nb<"),
        ([user("q"), {"role": "assistant", "content": "b", "tool_calls": None, "function_call": None, "refusal": None,
                      "audio": None, "annotations": [], "reasoning_content": None}, user("c")], "\nb<"),
        ([user("q"), {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, user("c")], "\nno<"),
        ([{"role": "user", "content": "q", "name": None}], "\nq<"),
        ([{"role": "developer", "content": "RULES"}, user("q")], "system\nReasoning: medium\nRULES"),
        ([user("q"), {"role": "developer", "content": [{"type": "text", "text": "RULES"}]}], "system\nRULES"),
        ([user([{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}])], "\na<"),
        ([user([{"type": "output_text", "text": "a"}, {"type": "input_text", "text": "b"}])], "\nab<"),
        ([user([{"type": "text", "text": None}, {"type": "text", "text": "a"}])], "\na<"),
        ([user({"type": "text", "text": "a"})], "\na<"),
        ([user([{"type": "image_url", "image_url": URL}])], IMAGE),
        ([user([{"type": "image_url", "image_url": {"url": URL, "detail": None}}])], IMAGE),
        ([user(["a", {"text": "b"}])], "\nab<"),
        ([user("q"), {**CHAT_CALL, "content": [], "thinking_blocks": [], "cache_control": {"type": "ephemeral"}},
          {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "sunny"}], "status": "success"}],
         ">sunny<"),
        ([user([{"type": "input_image", "image_url": URL}])], IMAGE),
        ([user([{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}])], IMAGE),
        ([user("q"), CHAT_CALL, {"role": "tool", "tool_call_id": "c1", "content": {"ok": True}}], '>{"ok": true}<'),
        ([user("q"), CHAT_CALL, {"role": "tool", "tool_call_id": "c1", "content": {"text": "a", "n": 1}}],
         '>{"text": "a", "n": 1}<'),
        ([user("q"), CHAT_CALL, {"role": "tool", "tool_call_id": "c1", "content": [{"ok": True}]}], '>{"ok": true}<'),
        ([user("q"), CHAT_CALL, {"role": "tool", "tool_call_id": "c1", "content": {"text": "a"}}], ">a<"),
        ([user([{"image_url": {"url": URL, "detail": "original"}}])], IMAGE),
        ([user("")], "user\n<"),
        ([user("q"), {"role": "assistant", "content": [{"type": "thinking", "thinking": "t"},
                                                       {"type": "text", "text": "b"}]}, user("c")], "\nb<"),
        ([user("q"), {"role": "assistant", "tool_calls": [
            {"id": "1", "type": "custom", "custom": {"name": "x", "input": "raw"}}]},
          {"role": "tool", "tool_call_id": "1", "content": "ok"}], "raw"),
    ],
)  # fmt: skip
async def test_what_chat_clients_leave_out_is_optional(client: Asking, messages: list[Any], told: str) -> None:
    answer = await client.ask(CHAT, {"messages": messages})
    assert (answer.status, answer.ignored) == (200, "")
    assert told in answer.prompt


@pytest.mark.parametrize(
    ("items", "told"),
    [
        ([CALL, {**OUTPUT, "output": [{"type": "input_text", "text": "see"}, {"type": "input_image",
                                                                             "image_url": URL}]}], IMAGE),
        ([CALL, {**OUTPUT, "output": [{"type": "input_image", "image_url": URL, "detail": None}]}], IMAGE),
        ([CALL, {**OUTPUT, "output": [{"type": "output_text", "text": "sunny"}]}], ">sunny<"),
        ([CALL, {**OUTPUT, "output": {"sky": "blue"}}], '{"sky": "blue"}'),
        ([CALL, {**OUTPUT, "output": None}], "_response><"),
        ([CALL, {**OUTPUT, "output": [], "id": None, "status": None}], "_response><"),
        ([{**CALL, "id": None, "status": None, "caller": None, "arguments": {"city": "Paris"}}, OUTPUT], "Paris"),
        ([CALL, {"role": "tool", "tool_call_id": "c1", "content": "sunny"}], ">sunny<"),
        ([{"type": "custom_tool_call", "call_id": "c1", "name": "apply_patch", "input": "*** Begin"},
          {"type": "custom_tool_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "ok"}]}],
         "*** Begin"),
        ([{"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hmm"}]}, CALL, OUTPUT], "hmm"),
        ([{"type": "reasoning", "id": "rs_1", "content": None, "summary": [
            {"type": "summary_text", "text": "one"}, {"type": "summary_text", "text": "two"}]}, CALL, OUTPUT],
         "one\ntwo"),
        ([{"role": "developer", "content": "RULES"}, user("q")], "system\nRULES"),
        ([{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"},
                                                          {"type": "input_image", "image_url": URL}]}], IMAGE),
        ([user([{"type": "output_text", "text": "a"}, {"type": "text", "text": "b"}])], "ab<"),
        ([{"role": "assistant", "content": [{"type": "output_text", "text": "b1"},
                                            {"type": "output_text", "text": "b2"}]}, user("c")], "b1b2<"),
        ([{"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, user("c")], "\nno<"),
        ([{"role": "assistant", "content": ""}, user("c")], "\nc<"),
        ([{"role": "user", "content": "a", "id": "msg_1", "status": "completed", "type": "message"}], "\na<"),
        (["a"], "\na<"),
        ([{"id": "m", "type": "message", "role": "assistant", "content": "b", "status": "completed"}, user("c")],
         "\nb<"),
        ([{"type": "message", "id": "m", "status": "completed", "role": "assistant", "phase": "final", "content": [
            {"type": "output_text", "text": "b", "annotations": [{"type": "url_citation"}], "logprobs": []}]},
          user("c")], "\nb<"),
    ],
)  # fmt: skip
async def test_what_clients_of_responses_leave_out_is_optional(client: Asking, items: list[Any], told: str) -> None:
    answer = await client.ask(RESPONSES, {"input": [user("q"), *items]})
    assert (answer.status, answer.ignored) == (200, "")
    assert told in answer.prompt


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
@pytest.mark.parametrize("stream", [False, None])
async def test_null_is_the_same_as_nothing(client: Asking, path: str, *, stream: bool | None) -> None:
    names = (
        "tools tool_choice instructions metadata temperature top_p top_logprobs text reasoning truncation service_tier "
        "include max_tool_calls store background previous_response_id user safety_identifier prompt conversation stop "
        "stream_options logprobs n parallel_tool_calls response_format seed modalities prediction web_search_options"
    )
    content = {"messages": [user("hi")]} if path == CHAT else {"input": "hi"}
    answer = await client.ask(path, {**content, "stream": stream, **dict.fromkeys(names.split())})
    assert (answer.status, answer.ignored) == (200, "")


async def test_the_history_of_hosted_tools_is_told_as_text(client: Asking) -> None:
    items = [
        {"type": "web_search_call", "id": "1", "status": "completed", "action": {"type": "search", "query": "cats"}},
        {"type": "file_search_call", "id": "2", "queries": ["a"], "results": [{"filename": "x.txt", "text": "body"}]},
        {"type": "code_interpreter_call", "id": "3", "code": "1 + 41", "outputs": [{"type": "logs", "logs": "forty"}]},
        {"type": "image_generation_call", "id": "4", "result": "zzz", "status": "completed"},
        {"type": "mcp_call", "id": "5", "name": "echo", "server_label": "s", "arguments": "{}", "output": "echoed"},
        {"type": "of_next_year", "words": "future words"},
    ]
    answer = await client.ask(RESPONSES, {"input": [user("q"), *items, user("and now?")]})
    assert answer.status == 200
    assert [item["type"] for item in items if f"({item['type']} as text)" not in answer.ignored] == []
    for word in ("cats", "x.txt", "body", "1 + 41", "forty", "echoed", "future words"):
        assert word in answer.prompt
    assert "zzz" not in answer.prompt


async def test_what_only_another_server_knows_is_named(client: Asking) -> None:
    items = [
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "zzz"},
        {"type": "item_reference", "id": "rs_1"},
        {"id": "rs_2"},
        {"type": "compaction", "encrypted_content": "zzz"},
        {"type": "mcp_list_tools", "id": "l", "server_label": "s", "tools": []},
    ]
    answer = await client.ask(RESPONSES, {"input": [user("q"), *items, user("go on")]})
    assert answer.status == 200
    for number in range(1, 6):
        assert f"input.{number} " in answer.ignored
    assert "cannot be read by this server" in answer.prompt


def namespace(*names: str) -> dict[str, Any]:
    functions = [{"type": "function", "name": name, "parameters": {}} for name in names]
    return {"type": "namespace", "name": "files", "description": "d", "tools": functions}


@pytest.mark.parametrize(
    ("tools", "brought", "seen"),
    [
        (None, [TOOL], {"get_weather": 1}),
        ([TOOL], [TOOL, {"type": "function", "name": "get_time", "parameters": {}}], {"get_weather": 1, "get_time": 1}),
        ([namespace("read")], [namespace("read", "write")], {"files__read": 1, "files__write": 1}),
        ([], [{"type": "custom", "name": "shell"}, {"type": "web_search"}], {"shell": 1}),
    ],
)
@pytest.mark.parametrize("kind", ["additional_tools", "tool_search_output"])
async def test_tools_that_come_in_the_conversation_are_offered_once(
    client: Asking, kind: str, tools: list[Any] | None, brought: list[Any], seen: dict[str, int]
) -> None:
    item = {"type": kind, "role": "developer", "call_id": "1", "tools": brought}
    answer = await client.ask(RESPONSES, {"input": [item, user("hi"), item], "tools": tools})
    assert answer.status == 200
    assert {name: answer.prompt.count(f'"name": "{name}"') for name in seen} == seen, answer.prompt
    assert f"input.0 ({kind})" in answer.ignored
    assert answer.prompt.count("user\n") == 1


@pytest.mark.parametrize(
    "reference",
    [
        {"type": "item_reference", "id": "msg_90d9"},
        {"id": "msg_90d9"},
        {"type": "item_reference", "id": "msg_90d9", "x": 1},
    ],
)
async def test_an_earlier_answer_that_is_only_referred_to_is_refused(client: Asking, reference: dict[str, Any]) -> None:
    answer = await client.ask(RESPONSES, {"input": [user("a code word?"), reference, user("which was it?")]})
    assert (answer.status, answer.prompt) == (400, "")
    assert answer.error["param"] == "input.1"
    assert "'msg_90d9' is not stored on this server; send the item itself" in answer.error["message"]
    assert "providerOptions: {openai: {store: false}}" in answer.error["message"]


async def test_calls_that_the_client_ran_are_calls(client: Asking) -> None:
    items = [
        {"type": "local_shell_call", "call_id": "1", "action": {"type": "exec", "command": ["ls"]}},
        {"type": "local_shell_call_output", "id": "1", "output": "files"},
        {"type": "shell_call", "call_id": "2", "action": {"commands": ["pwd"]}},
        {"type": "shell_call_output", "call_id": "2", "output": [{"stdout": "home", "stderr": ""}]},
        {"type": "computer_call", "call_id": "3", "action": {"type": "screenshot"}},
        {"type": "computer_call_output", "call_id": "3", "output": {"type": "computer_screenshot", "image_url": URL}},
        {"type": "apply_patch_call", "call_id": "4", "operation": {"type": "delete_file", "path": "a.txt"}},
        {"type": "apply_patch_call_output", "call_id": "4", "output": "gone", "status": "completed"},
    ]
    answer = await client.ask(RESPONSES, {"input": [user("q"), *items]})
    assert (answer.status, answer.ignored) == (200, "")
    assert answer.prompt.count("<tool_call>") == answer.prompt.count("<tool_response>") == 4
    for word in ("<function=local_shell>", "files", "home", IMAGE, "a.txt", "gone"):
        assert word in answer.prompt


@pytest.mark.parametrize(
    "part",
    [
        {"type": "file", "file": {"filename": "report.pdf", "file_data": PDF}},
        {"type": "input_file", "filename": "report.pdf", "file_data": PDF},
        {"type": "input_file", "file_id": "report.pdf"},
        {"type": "input_file", "file_url": "https://example.com/report.pdf"},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "video_url", "video_url": {"url": "https://example.com/a.mp4"}},
        {"type": "input_image", "file_id": "file_1"},
    ],
)
@pytest.mark.parametrize("path", [CHAT, RESPONSES])
async def test_files_and_sound_are_named_beside_a_question_and_refused_alone(
    client: Asking, path: str, part: dict[str, Any]
) -> None:
    field = "messages" if path == CHAT else "input"
    beside = await client.ask(path, {field: [user([part, {"type": "text", "text": "sum it up"}])]})
    assert beside.status == 200
    assert "cannot be read by this server.]\nsum it up" in beside.prompt
    assert beside.ignored.startswith(f"{field}.0.content.0 (")
    alone = await client.ask(path, {field: [user([part])]})
    assert alone.status == 400
    assert alone.error["param"] == f"{field}.0.content"


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
async def test_text_files_are_inlined(client: Asking, path: str) -> None:
    part = {"filename": "a.txt", "file_data": "data:text/plain;base64,Qk9EWQ=="}
    part = {"type": "file", "file": part} if path == CHAT else {"type": "input_file", **part}
    answer = await client.ask(path, {"messages" if path == CHAT else "input": [user([part])]})
    assert (answer.status, answer.ignored) == (200, "")
    assert '<document title="a.txt">\nBODY\n</document>' in answer.prompt


@pytest.mark.parametrize(
    "field", [{"background": True}, {"previous_response_id": "resp_1"}, {"conversation": "conv_1"}]
)
async def test_what_needs_stored_responses_is_refused(client: Asking, field: dict[str, Any]) -> None:
    answer = await client.ask(RESPONSES, {"input": "hi", **field})
    assert (answer.status, answer.error["param"]) == (400, next(iter(field)))
