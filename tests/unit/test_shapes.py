"""Errors in each API's own shape."""

from __future__ import annotations

import json

import pytest

from serve_app.shapes import Api, error_body, reshape_error


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
    error = json.loads(error_body(Api.ANTHROPIC, status, "why", "id-1"))
    assert error == {"type": "error", "error": {"type": kind, "message": "why"}, "request_id": "id-1"}


def test_vllms_own_openai_errors_pass_untouched() -> None:
    body = b'{"error":{"message":"m","type":"BadRequestError","param":"body.n","code":400}}'
    assert reshape_error(Api.OPENAI, 400, body, "id-1") == body


def test_an_openai_error_on_an_anthropic_route_is_translated() -> None:
    body = b'{"error":{"message":"m","type":"Bad Request","param":"body.n","code":400}}'
    error = json.loads(reshape_error(Api.ANTHROPIC, 400, body, "id-1"))
    assert error["error"] == {"type": "invalid_request_error", "message": "m"}


@pytest.mark.parametrize("body", [b"", b"not json", b'{"detail":"Not Found"}', b"[1]", b'{"error":"text"}', b"\xff"])
def test_any_other_body_becomes_an_error_with_its_status(body: bytes) -> None:
    error = json.loads(reshape_error(Api.OPENAI, 404, body, "id-1"))["error"]
    assert error["code"] == 404
    assert isinstance(error["message"], str)
    assert error["message"]
