"""Turns every exception and error response of vLLM's server into one of our errors (`protocol/errors.py`).

vLLM makes error responses in many places: FastAPI's handlers, `except` clauses of its routes, streams that have begun.
The handlers are ours, and the few functions in between are replaced, so that all of them pass here. The error is kept
with the request (`RequestContext.fail`), and the middleware answers with it, in the API's shape and words.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from types import ModuleType
from typing import Any

import jinja2
import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from vllm.exceptions import (
    GracefulHTTPError,
    VLLMClientError,
    VLLMError,
    VLLMNotFoundError,
    VLLMUnprocessableEntityError,
    VLLMValidationError,
)
from vllm.v1.engine.exceptions import EngineGenerateError

from serve_app.ingress.error_format import (
    NOT_VALID,
    SERVER_FAULT,
    ApiStyle,
    error_object,
    message_of,
    openai_code,
    plain_sentence,
)
from serve_app.ingress.requests.fields import find_problem
from serve_app.ingress.validation_errors import Problem, describe
from serve_app.protocol.errors import PromptTooLong, RequestRefused, ServeError
from serve_app.router.admission import UNKNOWN_START_S
from serve_app.router.request_context import CURRENT
from serve_app.vllm_patches import vllm_api
from serve_app.vllm_patches.patching import Function, replace

SHAPELESS = "A field of the request has a value of the wrong type or shape."
NOT_UNDERSTOOD = (TypeError, AttributeError, LookupError, AssertionError)
"""What Python raises for a value that code did not expect. Before an engine has the request, the request is the
cause."""

TOO_DEEP = "The request is nested too deeply."
TEMPLATE_FAULT = "The messages cannot be rendered by the model's chat template."

TOO_LONG = re.compile(
    r"Input length \((?P<a>\d+)\) exceeds model's maximum context length \((?P<b>\d+)\)"
    r"|prompt \(length (?P<c>\d+)\).* longer than the maximum model length of (?P<d>\d+)"
    r"|engine prompt length (?P<e>\d+) exceeds the max_model_len (?P<f>\d+)",
    re.DOTALL,
)
"""vLLM's messages for a prompt that became too long after it was tokenised (images): only their text has the
numbers."""

FIELD_FIRST = re.compile(r"`?([a-z]+(?:_[a-z]+)*)`? (?:must be|cannot contain)\b")
"""How vLLM's checks of sampling parameters begin; most of them name the field in no other way."""

LOGGERS = (
    "vllm.entrypoints.anthropic.api_router",
    "vllm.entrypoints.anthropic.serving",
    "vllm.entrypoints.openai.chat_completion.serving",
    "vllm.entrypoints.openai.completion.serving",
)
"""Loggers that write a traceback for whatever ends a stream or an Anthropic request, a client's mistake too."""


logger = logging.getLogger(__name__)


class ServeHTTPError(GracefulHTTPError):  # type: ignore[misc]  # vLLM is not read by mypy
    """Our error in a form that vLLM's handlers pass on."""

    def __init__(self, error: ServeError) -> None:
        super().__init__(error.message, error.status)
        self.error = error


def use(app: FastAPI) -> None:
    """Install our handlers in `app`, and the log filter."""
    for kind in (
        RequestValidationError, HTTPException, VLLMError, jinja2.TemplateError, RecursionError,
        ValueError, OverflowError, NotImplementedError, ServeError, *NOT_UNDERSTOOD, Exception,
    ):  # fmt: skip
        app.add_exception_handler(kind, _answer)
    app.middleware_stack = None  # built when it is first asked for; vLLM's `build_app` may have done so
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_no_traceback_of_refusals)


def patch() -> None:
    """Replace vLLM's functions between an exception and its response. Calling it again changes nothing."""
    replace(vllm_api.SERVING_ERROR, _reporting)
    replace(vllm_api.ANTHROPIC_ERROR, _reporting)
    replace(vllm_api.RESPONSE_EVENTS, _failing_properly)


# ---- what an exception means -----------------------------------------------------------------------------------------


def classify(error: BaseException) -> ServeError:
    """The error for a client, from an exception raised while its request was handled."""
    for kinds, meaning in MEANINGS:
        if isinstance(error, kinds):
            return meaning(error)
    if isinstance(error, EngineGenerateError) and error.__cause__ is not None:
        return classify(error.__cause__)
    context = CURRENT.get()
    if isinstance(error, NOT_UNDERSTOOD) and context is not None and not context.sequences:
        # vLLM does not check all that it relies on. The log line helps to fix that.
        logger.warning("request_not_understood", extra={"id": context.request_id, "error": repr(error)[:200]})
        return RequestRefused(SHAPELESS)
    return ServeError(SERVER_FAULT, HTTPStatus(getattr(error, "status_code", HTTPStatus.INTERNAL_SERVER_ERROR)))


def _of_template(error: Any) -> ServeError:
    reason = plain_sentence(str(error), "")
    return RequestRefused(f"{TEMPLATE_FAULT[:-1]}: {reason}" if reason else TEMPLATE_FAULT)


def _refused(problem: Problem) -> ServeError:
    if problem.message.startswith("Unsupported Media Type"):
        return RequestRefused("Send the body with `Content-Type: application/json`.", HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
    return RequestRefused(problem.message, param=problem.param)


def _of_framework(error: HTTPException) -> ServeError:
    if error.status_code == HTTPStatus.BAD_REQUEST and error.__cause__ is not None:  # FastAPI could not read the body
        deep = isinstance(error.__cause__, RecursionError)
        return RequestRefused(TOO_DEEP if deep else "The request body is not valid JSON in UTF-8.")
    return _worded(str(error.detail), HTTPStatus(error.status_code))


def _of_pydantic(error: ValidationError) -> ServeError:
    if error.title.endswith(("Response", "Event", "Chunk")):
        return ServeError(SERVER_FAULT)  # our own response does not fit its model
    return _refused(describe(error.errors(include_url=False)))


def _worded(text: str, status: HTTPStatus, param: str | None = None) -> ServeError:
    """An error from a message of vLLM's."""
    too_long = TOO_LONG.search(text)
    if too_long is not None:
        prompt_tokens, limit = (int(number) for number in too_long.groups() if number is not None)
        return PromptTooLong(prompt_tokens, limit)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        retry = status is HTTPStatus.SERVICE_UNAVAILABLE
        text = "The service is overloaded. Please retry." if retry else SERVER_FAULT
        return ServeError(text, status, retry_after_s=UNKNOWN_START_S if retry else None)
    if param is None and (named := FIELD_FIRST.match(text)) is not None:
        param = named[1]
    code = "model_not_found" if status is HTTPStatus.NOT_FOUND and param == "model" else None
    return RequestRefused(plain_sentence(text, NOT_VALID), status, param=param, code=code)


MEANINGS: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], Callable[[Any], ServeError]], ...] = (
    (ServeError, lambda error: error),
    (ServeHTTPError, lambda error: error.error),
    (RequestValidationError, lambda error: _refused(describe(error.errors(), error.body))),
    (ValidationError, _of_pydantic),
    (HTTPException, _of_framework),
    (GracefulHTTPError, lambda error: _worded(error.message, HTTPStatus(error.http_status))),
    (VLLMNotFoundError, lambda error: _worded(str(error), HTTPStatus.NOT_FOUND)),
    (
        (VLLMValidationError, VLLMUnprocessableEntityError),  # their `str()` adds the parameter's value
        lambda error: _worded(str(error.args[0]) if error.args else "", HTTPStatus.BAD_REQUEST, error.parameter),
    ),
    (jinja2.TemplateError, _of_template),
    (RecursionError, lambda _: RequestRefused(TOO_DEEP)),
    (
        (VLLMClientError, ValueError, OverflowError, NotImplementedError),
        lambda error: _worded(str(error), HTTPStatus.BAD_REQUEST),
    ),
)
"""The first match gives the error. Any other exception is a fault of the server."""


# ---- where it is reported --------------------------------------------------------------------------------------------


def report(error: ServeError) -> ServeError:
    """Keep the error with the request that is being handled; the middleware answers with it."""
    context = CURRENT.get()
    if context is None:
        return error
    context.fail(error)
    return context.error or error


async def _answer(request: Request, raised: Exception) -> Response:
    if isinstance(raised, NOT_UNDERSTOOD) and not isinstance(raised, UnicodeError):
        problem = await find_problem(request)
        error = report(_refused(problem) if problem is not None else classify(raised))
    else:
        error = report(classify(raised))
    headers = getattr(raised, "headers", None)
    return JSONResponse(error_object(ApiStyle.OPENAI, error, ""), error.status, headers=headers)


def _reporting(original: Function, _module: ModuleType) -> Function:
    """`create_error_response`, which every handler of vLLM's calls for an error that it answers itself."""

    def create_error_response(
        message: str | Exception,
        err_type: str = "BadRequestError",
        status_code: HTTPStatus = HTTPStatus.BAD_REQUEST,
        param: str | None = None,
    ) -> Any:
        if isinstance(message, Exception):
            error = report(classify(message))
        else:
            error = report(_worded(message, HTTPStatus(status_code), param))
        return original(error.message, err_type, error.status, error.param)

    return create_error_response


def _failing_properly(original: Function, _module: ModuleType) -> Function:
    """The events of `/v1/responses`: what is raised among them ends the stream with `response.failed`, where vLLM
    breaks the connection off."""

    async def _convert_stream_to_sse_events(generator: AsyncIterator[Any]) -> AsyncIterator[Any]:
        progress = _Progress()
        try:
            async for text in original(progress.of(generator)):
                yield text
        except Exception as raised:  # the request's edge: behind it there is only the open connection
            error = report(classify(raised))
            if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR and not isinstance(raised, VLLMError):
                logger.exception("response_stream_failed")
            yield progress.failed(error)

    return _convert_stream_to_sse_events


class _Progress:
    """The progress of a stream of `/v1/responses`."""

    def __init__(self) -> None:
        self._response: Any = None
        self._events = 0

    async def of(self, generator: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for event in generator:
            self._events += 1
            self._response = getattr(event, "response", self._response)
            yield event

    def failed(self, error: ServeError) -> str:
        """The event `response.failed`, in OpenAI's shape."""
        response = self._response
        if response is not None and not isinstance(response, dict):
            response = response.model_dump(mode="json", by_alias=True)
        server = error.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        code = openai_code(error) or ("server_error" if server else "invalid_prompt")
        reason = {"code": code, "message": message_of(ApiStyle.OPENAI, error)}
        context = CURRENT.get()
        repeated = context.repeated_chunks if context is not None else 0  # sent beside this generator
        event = {
            "type": "response.failed",
            "sequence_number": self._events + repeated,
            "response": {**(response or {}), "status": "failed", "error": reason},
        }
        return f"event: response.failed\ndata: {msgspec.json.encode(event).decode()}\n\n"


def _no_traceback_of_refusals(record: logging.LogRecord) -> bool:
    """Whether to log the record: the access log has a line for each refused request that says more."""
    raised = record.exc_info[1] if record.exc_info else None
    if raised is None:
        return True
    if isinstance(raised, ServeHTTPError):
        return False  # foreseen, whatever its status
    context = CURRENT.get()
    error = context.error if context is not None and context.error is not None else classify(raised)
    return error.status >= HTTPStatus.INTERNAL_SERVER_ERROR
