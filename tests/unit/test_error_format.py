"""Errors in each API's own shape."""

from __future__ import annotations

import json
from http import HTTPStatus

import pytest

from serve_app.ingress.error_format import ApiStyle, error_body, foreign_error, plain_sentence, status_of
from serve_app.protocol.errors import NoReplica, OutputTooLong, PromptTooLong, QueueFull, RequestRefused


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (404, "not_found_error"),
        (413, "request_too_large"),
        (422, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (503, "overloaded_error"),
    ],
)
def test_anthropic_errors_have_anthropics_types(status: int, kind: str) -> None:
    error = json.loads(error_body(ApiStyle.ANTHROPIC, RequestRefused("why", HTTPStatus(status)), "id-1"))
    assert error == {"type": "error", "error": {"type": kind, "message": "why"}, "request_id": "id-1"}


def test_openai_errors_have_a_code_that_is_a_string_or_null() -> None:
    refused = json.loads(error_body(ApiStyle.OPENAI, RequestRefused("why", param="n"), "id-1"))
    assert refused == {"error": {"message": "why", "type": "invalid_request_error", "param": "n", "code": None}}
    full = json.loads(error_body(ApiStyle.OPENAI, QueueFull(3), "id-1"))["error"]
    assert (full["type"], full["code"]) == ("rate_limit_error", "rate_limit_exceeded")


def test_a_prompt_that_is_too_long_is_said_in_the_vendors_own_words() -> None:
    error = PromptTooLong(280012, 262144)
    anthropic = json.loads(error_body(ApiStyle.ANTHROPIC, error, "id-1"))["error"]
    assert anthropic == {
        "type": "invalid_request_error",
        "message": "prompt is too long: 280012 tokens > 262144 maximum",
    }
    openai = json.loads(error_body(ApiStyle.OPENAI, error, "id-1"))["error"]
    assert openai["code"] == "context_length_exceeded"
    assert openai["message"].startswith("This model's maximum context length is 262144 tokens. However, your messages")
    assert "280012" in openai["message"]


def test_more_output_than_the_context_holds_is_said_in_the_vendors_own_words() -> None:
    error = OutputTooLong(300_000, 262_144, "max_completion_tokens")
    openai = json.loads(error_body(ApiStyle.OPENAI, error, "id-1"))["error"]
    assert openai["message"].startswith("max_completion_tokens is too large: 300000.")
    assert (
        "max_tokens: 300000 > 262144" in json.loads(error_body(ApiStyle.ANTHROPIC, error, "id-1"))["error"]["message"]
    )


def test_nobody_to_serve_is_529_in_anthropics_api_and_503_in_openais() -> None:
    assert (
        status_of(ApiStyle.ANTHROPIC, NoReplica("waited 1 s", 5)),
        status_of(ApiStyle.OPENAI, NoReplica("waited 1 s", 5)),
    ) == (529, 503)


@pytest.mark.parametrize("body", [b"", b"not json", b'{"detail":"Not Found"}', b"[1]", b'{"error":"text"}', b"\xff"])
def test_any_other_body_becomes_an_error_with_its_status(body: bytes) -> None:
    error = foreign_error(404, body)
    assert error.status == HTTPStatus.NOT_FOUND
    assert error.message


@pytest.mark.parametrize(
    "text",
    [
        "2 validation errors for ChatCompletionStreamResponse\nid\n  Field required [type=missing, input_value={}]",
        "'NoneType' object is not subscriptable",
        "ChatRequest() got an unexpected keyword argument 'x'",
        "",
    ],
)
def test_texts_for_programmers_are_not_passed_on(text: str) -> None:
    assert plain_sentence(text, "The request is not valid.") == "The request is not valid."


def test_long_and_broken_lines_are_one_short_line() -> None:
    assert plain_sentence("a\n  b", "") == "a b"
    assert len(plain_sentence("x " * 5000, "")) <= 400
