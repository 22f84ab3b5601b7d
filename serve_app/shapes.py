"""How an error looks in each API. OpenAI's: `{"error": {message, type, param, code}}`. Anthropic's: `{"type": "error",
...}`."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec


class Api(StrEnum):
    """Whose shapes a route speaks."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"


ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}
"""Anthropic's error types by status (https://docs.anthropic.com/en/api/errors); other 4xx are
`invalid_request_error`."""

OPENAI_TYPES = {401: "authentication_error", 404: "not_found_error", 413: "invalid_request_error"}


def anthropic_type(status: int) -> str:
    """The error type that Anthropic's API gives with a status."""
    return ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")


def error_body(api: Api, status: int, message: str, request_id: str, param: str | None = None) -> bytes:
    """An error response's body in the API's shape."""
    if api is Api.ANTHROPIC:
        error: dict[str, Any] = {"type": anthropic_type(status), "message": message}
        return msgspec.json.encode({"type": "error", "error": error, "request_id": request_id})
    kind = OPENAI_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": status}})


def reshape_error(api: Api, status: int, body: bytes, request_id: str) -> bytes:
    """vLLM's error response in the API's shape. Its own is OpenAI's, also for some errors of its Anthropic routes."""
    message, param, ours = parse_error(body)
    if api is Api.OPENAI and ours:
        return body
    return error_body(api, status, message or f"HTTP {status}", request_id, param)


def parse_error(body: bytes) -> tuple[str, str | None, bool]:
    """Message and parameter of an error in either shape, and whether it is in OpenAI's."""
    try:
        decoded = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return body.decode("utf-8", "replace"), None, False
    error = decoded.get("error") if isinstance(decoded, dict) else None
    if isinstance(error, dict):
        return str(error.get("message", "")), error.get("param"), "code" in error
    detail = decoded.get("detail") if isinstance(decoded, dict) else None
    return (str(detail) if detail is not None else body.decode("utf-8", "replace")), None, False
