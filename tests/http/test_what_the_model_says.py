"""What the model says reaches the client right: calls, stop strings, white space; on all APIs, streamed and whole."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
from transformers import AutoTokenizer

from tests.http.harness import MODEL, NAME, service
from tests.http.saying import Answer, Apis, Call, Saying, said

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOKENIZER = AutoTokenizer.from_pretrained(MODEL, trust_remote_code=True)
CHATS = ("chat", "messages", "responses")
WAYS = [
    pytest.param(api, stream, id=f"{api}{'-streamed' * stream}")
    for api, stream in itertools.product(CHATS, (False, True))
]
THOUGHT = "I think.\n</think>\n"
WEATHER = "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
END: dict[str, dict[str, object]] = {
    "chat": {"stop": "stop", "calls": "tool_calls", "length": "length", "stop_string": "stop"},
    "messages": {"stop": "end_turn", "calls": "tool_use", "length": "max_tokens", "stop_string": "stop_sequence"},
    "responses": dict.fromkeys(("stop", "calls", "length", "stop_string")),
}
"""How each API says why an answer has ended. Responses say it in their status, which other tests look at."""

Ask = Callable[..., Any]


def body(api: str, max_tokens: int, *, tools: bool = True, **more: Any) -> dict[str, Any]:
    """A request with the tool `get_weather`. `choice` and `stop` are put into the API's words."""
    choice, stop, one_call = more.get("choice", "auto"), more.get("stop"), more.get("one_call", False)
    asked: dict[str, Any] = {"model": NAME}
    match api:
        case "chat":
            asked |= {"messages": [{"role": "user", "content": "hi"}], "max_tokens": max_tokens}
            offered: object = [{"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}]
            chosen: object = {"type": "function", "function": {"name": "get_weather"}} if choice == "named" else choice
        case "messages":
            asked |= {"messages": [{"role": "user", "content": "hi"}], "max_tokens": max_tokens}
            offered = [{"name": "get_weather", "input_schema": SCHEMA}]
            kind = {"required": "any", "named": "tool"}.get(choice, choice)
            chosen = {"type": kind} | ({"name": "get_weather"} if choice == "named" else {})
            chosen |= {"disable_parallel_tool_use": True} if one_call else {}
        case _:
            asked |= {"input": "hi", "max_output_tokens": max_tokens}
            offered = [{"type": "function", "name": "get_weather", "parameters": SCHEMA}]
            chosen = {"type": "function", "name": "get_weather"} if choice == "named" else choice
    asked |= {"tools": offered, "tool_choice": chosen} if tools else {}
    asked |= {"parallel_tool_calls": False} if one_call and api != "messages" else {}
    asked |= {"stop_sequences" if api == "messages" else "stop": stop} if stop else {}
    return asked


@pytest.fixture(scope="module")
def saying() -> Saying:
    return Saying(TOKENIZER.eos_token_id)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def apis(saying: Saying) -> AsyncIterator[Apis]:
    async with service({"a": saying.engine}) as running:
        yield Apis(running.middleware.app)


@pytest.fixture
def ask(apis: Apis, saying: Saying) -> Ask:
    """Ask `api` when the model says `text` (`cut`: and max_tokens ends it there), some tokens at a step."""

    async def asked(api: str, stream: bool, text: str, *, cut: bool = False, step: int = 1, **more: Any) -> Answer:
        ids = [*TOKENIZER.encode(text, add_special_tokens=False), *([] if cut else [saying.eos])]
        steps = [ids[place : place + step] for place in range(0, len(ids), step)]
        answers = await said(apis, saying, api, body(api, len(ids), **more), [steps], stream=stream)
        return answers[0]

    return asked


# ---- calls that are cut off ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", ["auto", "required", "named"])
@pytest.mark.parametrize("place", range(1, len(TOKENIZER.encode(WEATHER, add_special_tokens=False)) - 3))
@pytest.mark.parametrize(("api", "stream"), WAYS)
async def test_a_call_cut_anywhere_is_never_one_that_could_be_run(
    ask: Ask, api: str, stream: bool, place: int, choice: str
) -> None:
    text = TOKENIZER.decode(TOKENIZER.encode(WEATHER, add_special_tokens=False)[:place])
    answer: Answer = await ask(api, stream, THOUGHT + text, cut=True, choice=choice)
    assert answer.finish == END[api]["length"]
    assert answer.content == ""
    for call in answer.calls:
        assert call.name == "get_weather"
        if api == "messages":
            assert json.loads(call.arguments) == {"city": "Paris"}
        else:
            assert call.arguments.startswith('{"city": "P')
            with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
                json.loads(call.arguments)


@pytest.mark.parametrize(("api", "stream"), WAYS)
async def test_a_complete_call_before_a_cut_one_is_reported(ask: Ask, api: str, stream: bool) -> None:
    answer = await ask(api, stream, f"{THOUGHT}{WEATHER}\n<tool_call>\n<function=get_wea", cut=True)
    assert answer.calls == [Call("get_weather", '{"city": "Paris"}')]
    assert answer.finish == END[api]["length"]


@pytest.mark.parametrize(("api", "stream"), WAYS)
async def test_a_number_that_is_cut_is_not_taken_for_a_smaller_one(ask: Ask, api: str, stream: bool) -> None:
    text = "<tool_call>\n<function=get_weather>\n<parameter=city>\nRome\n</parameter>\n<parameter=days>\n1"
    answer = await ask(api, stream, THOUGHT + text, cut=True)
    assert [call.arguments for call in answer.calls] == ['{"city": "Rome"}' if api == "messages" else '{"city": "Rome"']


@pytest.mark.parametrize(("api", "stream"), WAYS)
async def test_a_call_that_the_model_ends_without_its_closing_tags_is_complete(
    ask: Ask, api: str, stream: bool
) -> None:
    answer = await ask(api, stream, THOUGHT + WEATHER.split("\n</function>", maxsplit=1)[0])
    assert answer.calls == [Call("get_weather", '{"city": "Paris"}')]
    assert answer.finish == END[api]["calls"]


SHELL = "<tool_call>\n<function=shell>\n<parameter=input>\n"


@pytest.mark.parametrize("end", ["", "\n</parameter>\n", "\n</parameter>\n</function>\n</tool_call>"])
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("said_input", ["rm -rf /tmp/build", 'echo "a\\tb" | tee\nls', '{"input": "ls"}'])
@pytest.mark.parametrize("stream", [False, True])
async def test_the_input_of_a_free_form_call_is_what_was_said_of_it(
    apis: Apis, saying: Saying, stream: bool, said_input: str, cut: bool, end: str
) -> None:
    """Cut or not, closed or not. That deltas, done events and the final response agree, `said` checks."""
    ids = TOKENIZER.encode(THOUGHT + SHELL + said_input + end, add_special_tokens=False)
    steps = [[one] for one in (ids if cut else [*ids, saying.eos])]
    asked = {
        "model": NAME,
        "input": "x",
        "max_output_tokens": len(steps),
        "tools": [{"type": "custom", "name": "shell"}],
    }
    (answer,) = await said(apis, saying, "responses", asked, [steps], stream=stream)
    assert answer.calls == [Call("shell", said_input)]
    assert answer.is_cut == cut


@pytest.mark.parametrize(("api", "stream"), WAYS)
async def test_what_looks_like_a_call_and_is_none_is_text(ask: Ask, api: str, stream: bool) -> None:
    text = '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>'
    answer = await ask(api, stream, THOUGHT + text)
    assert (answer.calls, answer.content, answer.finish) == ([], text, END[api]["stop"])


@pytest.mark.parametrize("asked", [{"choice": "none"}, {"tools": False}], ids=["forbidden", "no tools"])
@pytest.mark.parametrize(("api", "stream"), WAYS)
async def test_a_call_that_nobody_asked_for_is_text(ask: Ask, api: str, stream: bool, asked: dict[str, Any]) -> None:
    answer = await ask(api, stream, f"{THOUGHT}Look: {WEATHER}", **asked)
    assert (answer.calls, answer.content, answer.finish) == ([], f"Look: {WEATHER}", END[api]["stop"])


@pytest.mark.parametrize(("api", "stream"), WAYS)
async def test_one_call_at_a_time_is_the_first(ask: Ask, api: str, stream: bool) -> None:
    second = WEATHER.replace("Paris", "Rome")
    answer = await ask(api, stream, f"{THOUGHT}{WEATHER}\n{second}", one_call=True)
    assert answer.calls == [Call("get_weather", '{"city": "Paris"}')]
    assert answer.finish == END[api]["calls"]


# ---- stop strings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 3, 100])
@pytest.mark.parametrize("text", ["One Ones\n</think>\nTwo Ones Three", "Ones</think>Two O" + "nes Three"])
@pytest.mark.parametrize(("api", "stream"), WAYS)
async def test_a_stop_string_looks_at_the_answer_only(ask: Ask, api: str, stream: bool, text: str, step: int) -> None:
    answer = await ask(api, stream, text, stop=["Ones"], step=step)
    assert (answer.content, answer.finish) == ("Two ", END[api]["stop_string"])
    assert "One" in answer.reasoning
    if api == "messages":
        assert answer.stop == "Ones"


@pytest.mark.parametrize("step", [1, 100])
@pytest.mark.parametrize(("api", "stream"), WAYS)
async def test_a_line_break_as_stop_string_is_not_the_templates(ask: Ask, api: str, stream: bool, step: int) -> None:
    answer = await ask(api, stream, "a\nb\n</think>\n\nfirst\nsecond", stop=["\n"], step=step)
    assert (answer.reasoning, answer.content) == ("a\nb", "first")


@pytest.mark.parametrize("step", [1, 100])
@pytest.mark.parametrize(("api", "stream"), WAYS)
async def test_a_stop_string_inside_a_call_does_not_cut_it(ask: Ask, api: str, stream: bool, step: int) -> None:
    answer = await ask(api, stream, f"{THOUGHT}Look.\n{WEATHER}", stop=["Paris", "</function>"], step=step)
    assert answer.calls == [Call("get_weather", '{"city": "Paris"}')]
    assert (answer.content, answer.finish) == ("Look.", END[api]["calls"])


@pytest.mark.parametrize("stream", [False, True])
async def test_a_completion_has_no_reasoning_to_spare(apis: Apis, saying: Saying, stream: bool) -> None:
    ids = TOKENIZER.encode("One Ones Two", add_special_tokens=False)
    asked = {"model": NAME, "prompt": "hi", "max_tokens": len(ids), "stop": ["Ones"]}
    (answer,) = await said(apis, saying, "completions", asked, [[ids]], stream=stream)
    assert (answer.content, answer.finish, answer.stop) == ("One ", "stop", "Ones")


# ---- white space -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 2, 100])
@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("I think.\n</think>\n12 + 30 = 42.", "12 + 30 = 42."),
        ("I think.\n</think>\n\n12\n", "12\n"),
        ("\nI think.\n\n</think>\n  indented", "  indented"),
        ("I think.</think>at once", "at once"),
    ],
)
@pytest.mark.parametrize("tools", [False, True])
@pytest.mark.parametrize(("api", "stream"), WAYS)
async def test_the_templates_line_breaks_are_neither_reasoning_nor_content(
    ask: Ask, api: str, stream: bool, text: str, content: str, step: int, tools: bool
) -> None:
    answer = await ask(api, stream, text, step=step, tools=tools)
    assert (answer.reasoning, answer.content) == ("I think.", content)


@pytest.mark.parametrize("between", ["\n", "\n\n", " \n"])
@pytest.mark.parametrize(("api", "stream"), WAYS)
async def test_white_space_around_calls_is_no_content(ask: Ask, api: str, stream: bool, between: str) -> None:
    answer = await ask(api, stream, f"I think.\n</think>{between}{WEATHER}{between}{WEATHER}{between}")
    assert (answer.content, len(answer.calls)) == ("", 2)
    answer = await ask(api, stream, f"I think.\n</think>\nLook.{between}{WEATHER}")
    assert (answer.content, len(answer.calls)) == ("Look.", 1)


@pytest.mark.parametrize(("api", "stream"), WAYS)
async def test_a_spelled_out_tag_is_text(apis: Apis, saying: Saying, api: str, stream: bool) -> None:
    pieces = ["I say <", "/think> and <", "tool_call> aloud.\n", "</think>", "\nWrite <", "tool_call> <", "/think>"]
    ids = [one for piece in pieces for one in TOKENIZER.encode(piece, add_special_tokens=False)] + [saying.eos]
    for steps in ([ids], [[one] for one in ids]):
        (answer,) = await said(apis, saying, api, body(api, len(ids)), [steps], stream=stream)
        assert answer.reasoning == "I say </think> and <tool_call> aloud."
        assert answer.content == "Write <tool_call> </think>"
