"""Request bodies are those of vLLM's benchmark, with the user's fields, for each API."""

from __future__ import annotations

import json

import pytest

from loadtest.api.requests import Api, BodySpec, encode_body, new_messages
from loadtest.data.prompt import Json, Prompt

PNG = "data:image/png;base64,iVBORw0"
TOOL: dict[str, Json] = {
    "type": "function",
    "function": {"name": "f", "description": "d", "parameters": {"type": "object"}},
}
USER = [{"type": "text", "text": "hi"}]


def body_of(api: Api, prompt: Prompt, **fields: object) -> dict[str, object]:
    history = fields.pop("history", ())
    body: dict[str, object] = json.loads(encode_body(BodySpec(api, "m", **fields), prompt, history))  # type: ignore[arg-type]  # of one test each
    return body


def test_a_chat_body_is_vllms() -> None:
    assert body_of(Api.CHAT, Prompt(text="hi", output_tokens=9)) == {
        "model": "m",
        "messages": [{"role": "user", "content": USER}],
        "max_completion_tokens": 9,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_a_completions_body_is_vllms() -> None:
    assert body_of(Api.COMPLETIONS, Prompt(text="hi", output_tokens=9), ignore_eos=True) == {
        "model": "m",
        "prompt": "hi",
        "repetition_penalty": 1.0,
        "max_tokens": 9,
        "logprobs": None,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }


def test_token_ids_replace_the_text_of_a_completions_prompt() -> None:
    assert body_of(Api.COMPLETIONS, Prompt(text="hi", token_ids=(5, 6)))["prompt"] == [5, 6]


def test_a_messages_body_is_anthropics() -> None:
    assert body_of(Api.MESSAGES, Prompt(text="hi", output_tokens=9)) == {
        "model": "m",
        "messages": [{"role": "user", "content": USER}],
        "max_tokens": 9,
        "stream": True,
    }


def test_images_follow_the_text_in_each_apis_format() -> None:
    prompt = Prompt(text="hi", images=(PNG, PNG))
    openai = {"type": "image_url", "image_url": {"url": PNG}}
    anthropic = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0"}}
    assert body_of(Api.CHAT, prompt)["messages"] == [{"role": "user", "content": [*USER, openai, openai]}]
    assert body_of(Api.MESSAGES, prompt)["messages"] == [{"role": "user", "content": [*USER, anthropic, anthropic]}]


@pytest.mark.parametrize("api", [Api.CHAT, Api.MESSAGES])
def test_ready_messages_follow_the_history(api: Api) -> None:
    prompt = Prompt(text="unused", messages=[{"role": "user", "content": "and now?"}])
    history = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    body = body_of(api, prompt, history=history)
    assert body["messages"] == [*history, {"role": "user", "content": "and now?"}]
    assert new_messages(prompt) == [{"role": "user", "content": "and now?"}]


def test_tools_are_converted_for_anthropic_and_left_alone_for_openai() -> None:
    prompt = Prompt(text="hi", extra={"tools": [TOOL], "tool_choice": "auto"})
    assert body_of(Api.CHAT, prompt)["tools"] == [TOOL]
    body = body_of(Api.MESSAGES, prompt)
    assert body["tools"] == [{"name": "f", "description": "d", "input_schema": {"type": "object"}}]
    assert body["tool_choice"] == {"type": "auto"}


def test_tools_in_anthropics_format_stay_as_they_are() -> None:
    tools = [{"name": "f", "input_schema": {"type": "object"}}]
    prompt = Prompt(text="hi", extra={"tools": tools, "tool_choice": {"type": "any"}})
    body = body_of(Api.MESSAGES, prompt)
    assert (body["tools"], body["tool_choice"]) == (tools, {"type": "any"})


def test_the_prompts_fields_win_over_the_runs_and_those_over_the_defaults() -> None:
    prompt = Prompt(text="hi", output_tokens=9, extra={"temperature": 1, "max_completion_tokens": 3})
    body = body_of(Api.CHAT, prompt, extra={"temperature": 0, "stream_options": None, "max_completion_tokens": 5})
    assert (body["temperature"], body["stream_options"], body["max_completion_tokens"]) == (1, None, 3)
    assert "ignore_eos" not in body
