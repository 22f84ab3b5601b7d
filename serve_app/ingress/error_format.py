"""The form of an error in each API: its status, its body, its words.

    OpenAI     {"error": {"message", "type", "param", "code"}}, `code` a string or null
    Anthropic  {"type": "error", "error": {"type", "message"}, "request_id"}

A message is one short sentence that says what to do and names the field. Where agents read the words themselves (a
prompt that is too long makes them compact the conversation), the words are the vendor's own.
"""

from __future__ import annotations

import re
from enum import StrEnum
from http import HTTPStatus
from typing import Any

import msgspec

from serve_app.protocol.errors import OutputTooLong, PromptTooLong, RequestRefused, ServeError, ThreadNotFound

NOT_VALID = "The request is not valid."
SERVER_FAULT = "The request failed on the server. Please retry."

MESSAGE_LIMIT = 400
"""Longest message in characters. What vLLM quotes of a request can be as long as the request."""


class ApiStyle(StrEnum):
    """The API whose formats a route uses."""

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

OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
"""OpenAI's error types by status; other 4xx, an unknown model among them, are `invalid_request_error`."""

OPENAI_CODES = {
    401: "invalid_api_key",
    405: "method_not_supported",
    413: "request_too_large",
    415: "unsupported_media_type",
    429: "rate_limit_exceeded",
    503: "service_unavailable",
}
"""OpenAI's codes by status, for errors that have none of their own; null for any other."""

OVERLOADED = 529
"""Anthropic's status where others answer 503; its clients wait and retry."""


def anthropic_type(status: int) -> str:
    """The error type that Anthropic's API gives with a status."""
    return ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")


def openai_type(status: int) -> str:
    """The error type that OpenAI's API gives with a status."""
    return OPENAI_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")


def openai_code(error: ServeError) -> str | None:
    """The error's code as OpenAI's API names it."""
    return error.code or OPENAI_CODES.get(error.status)


def status_of(api: ApiStyle, error: ServeError) -> int:
    """The HTTP status that the API gives the error."""
    unavailable = error.status == HTTPStatus.SERVICE_UNAVAILABLE
    return OVERLOADED if api is ApiStyle.ANTHROPIC and unavailable else int(error.status)


def message_of(api: ApiStyle, error: ServeError) -> str:
    """The error in the API's words."""
    fallback = NOT_VALID if error.status < HTTPStatus.INTERNAL_SERVER_ERROR else SERVER_FAULT
    return plain_sentence(_words(api, error), fallback)


def _words(api: ApiStyle, error: ServeError) -> str:
    if isinstance(error, PromptTooLong):
        if api is ApiStyle.ANTHROPIC:
            return f"prompt is too long: {error.prompt_tokens} tokens > {error.limit} maximum"
        # With its code: OpenAI's SDK keeps the code out of the exception's text, where LangChain looks for it.
        return (
            f"This model's maximum context length is {error.limit} tokens. However, your messages resulted in "
            f"{error.prompt_tokens} tokens. Please reduce the length of the messages ({error.code})."
        )
    if isinstance(error, OutputTooLong):
        if api is ApiStyle.ANTHROPIC:
            return f"max_tokens: {error.asked} > {error.limit}, which is the maximum allowed number of output tokens"
        return (
            f"{error.param} is too large: {error.asked}. This model supports at most {error.limit} completion tokens, "
            f"whereas you provided {error.asked}."
        )
    return error.message


def error_body(api: ApiStyle, error: ServeError, request_id: str) -> bytes:
    """An error response's body in the API's shape."""
    return msgspec.json.encode(error_object(api, error, request_id))


def error_object(api: ApiStyle, error: ServeError, request_id: str) -> dict[str, Any]:
    """`error_body` before it is encoded."""
    message = message_of(api, error)
    if api is ApiStyle.ANTHROPIC:
        inner: dict[str, Any] = {"type": anthropic_type(error.status), "message": message}
        if isinstance(error, ThreadNotFound):
            inner["details"] = {"error_code": error.code}  # its SDK then sends the whole conversation
        return {"type": "error", "error": inner, "request_id": request_id}
    kind = openai_type(error.status)
    return {"error": {"message": message, "type": kind, "param": error.param, "code": openai_code(error)}}


FOREIGN = re.compile(
    r"validation errors? for |errors\.pydantic\.dev|https?://docs\.|Traceback|\bat 0x[0-9a-f]|<class '|object at|"
    r"object has no attribute|object is not |unexpected keyword|\[type=|input_value=|\bNoneType\b|\bndarray\b"
)
"""Texts of pydantic and Python, which mean nothing to a client."""

OBJECT = re.compile(r"<[\w.]+ object at 0x[0-9a-f]+>")
"""An object of Python's, as it prints itself."""

PYTHON_LITERAL = re.compile(r"[:,]?\s*(?:[\[({]+'|\{[^{}]*: None|[\[(]None\b).*$", re.DOTALL)
"""A list or dictionary as Python prints it, to the end of the text: it repeats the request, or vLLM's state."""

SERVER_PATH = re.compile(r"(?<![\w:/])/(?:home|usr|opt|var|tmp|root|lib|mnt|srv)(?:/[\w.\-]+)+")


def plain_sentence(text: str, fallback: str) -> str:
    """A library's `text` as one line that a client can read; `fallback` where that is not possible."""
    text = " ".join(OBJECT.sub("", text).split())
    if not text or FOREIGN.search(text):
        return fallback
    text = PYTHON_LITERAL.sub(".", text)
    text = SERVER_PATH.sub("<path>", text)
    return text if len(text) <= MESSAGE_LIMIT else text[: MESSAGE_LIMIT - 3].rstrip() + "..."


def foreign_error(status: int, body: bytes) -> ServeError:
    """The error from the response of vLLM's app, where no more specific one was reported."""
    message, param = _parse(body)
    try:
        known = HTTPStatus(status)
    except ValueError:
        known = HTTPStatus.BAD_REQUEST if status < 500 else HTTPStatus.INTERNAL_SERVER_ERROR
    return RequestRefused(plain_sentence(message, known.phrase), known, param=param)


def _parse(body: bytes) -> tuple[str, str | None]:
    """Message and parameter of an error in either API's shape, FastAPI's, or none."""
    try:
        decoded = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return body.decode("utf-8", "replace"), None
    error = decoded.get("error") if isinstance(decoded, dict) else None
    if isinstance(error, dict):
        param = error.get("param")
        return str(error.get("message", "")), param if isinstance(param, str) else None
    detail = decoded.get("detail") if isinstance(decoded, dict) else None
    return (str(detail) if detail is not None else body.decode("utf-8", "replace")), None
