"""The errors a client can meet, and the one place that gives them a status, a code and a retry hint.

    ServeError
    |-- RequestRefused     4xx  the request itself is wrong; nobody would run it
    |   |-- PromptTooLong      400  the prompt does not fit into the context
    |   |-- OutputTooLong      400  `max_tokens` is more than the context holds
    |   |-- TooManySequences   400  `n` is more than there is ever room for
    |   |-- ModelNotFound      404  no such model here
    |   `-- ThreadNotFound     404  the request continues a conversation that only a storing server would have
    |-- QueueFull          429  we are full; come back after `retry_after_s`
    |-- NoReplica          503  nobody can serve now
    |   `-- OtherVersion       503  all that is there runs another vLLM than this ingress
    |-- CutOff             503  the replicas cannot be reached, one after the other
    |-- InQuarantine       429  a request of this client has taken a replica with it
    `-- PoisonRequest      500  the request has taken a replica with it

How an error is worded where the APIs differ (a prompt that is too long) is `ingress/error_format.py`'s.
429 means that we are full, 503 that nobody can serve: a client may treat them differently, and so does our metric.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from http import HTTPStatus

from serve_app.protocol.outcome import Outcome


@dataclass
class ServeError(Exception):
    """A request could not be served. `message` is for the client; it names what to do and no internals."""

    message: str
    status: HTTPStatus = HTTPStatus.INTERNAL_SERVER_ERROR
    outcome: Outcome = Outcome.SERVER_ERROR
    retry_after_s: float | None = None
    measured: bool = False
    """Whether `retry_after_s` was reckoned from what was measured, and is no constant."""
    param: str | None = None
    """The field of the request that is at fault, as its API names it: `messages`, `messages.0.content`."""
    code: str | None = None
    """OpenAI's code of the error where clients look for one; None: that of the status."""

    def __str__(self) -> str:
        return self.message


class RequestRefused(ServeError):
    """The request itself is at fault. Another replica would say the same."""

    def __init__(
        self,
        message: str,
        status: HTTPStatus = HTTPStatus.BAD_REQUEST,
        *,
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message, status, Outcome.from_status(status), param=param, code=code)


class PromptTooLong(RequestRefused):
    """The prompt has `prompt_tokens` tokens, and the context holds `limit`. Agents read both and shorten the prompt.

    A prompt as long as the context leaves no room for an answer: then the limit is one less.
    """

    def __init__(self, prompt_tokens: int, limit: int, param: str | None = None) -> None:
        limit = min(limit, prompt_tokens - 1)
        super().__init__(
            f"The prompt has {prompt_tokens} tokens; at most {limit} fit into the model's context.",
            param=param,
            code="context_length_exceeded",
        )
        self.prompt_tokens = prompt_tokens
        self.limit = limit


class OutputTooLong(RequestRefused):
    """`asked` tokens of output are more than the whole context of `limit`."""

    def __init__(self, asked: int, limit: int, param: str | None = "max_tokens") -> None:
        super().__init__(f"`{param}` is {asked}; the model's context holds {limit} tokens.", param=param)
        self.asked = asked
        self.limit = limit


class TooManySequences(RequestRefused):
    """`asked` sequences at a time are more than an empty fleet would take."""

    def __init__(self, asked: int, limit: int) -> None:
        super().__init__(f"{asked} sequences at a time are too many: at most {limit}.", param="n")


class ModelNotFound(RequestRefused):
    """The request asks for a model that is not served here."""

    def __init__(self, model: str, available: str) -> None:
        super().__init__(
            f"The model `{model[:100]}` does not exist. Available: {available}.",
            HTTPStatus.NOT_FOUND,
            param="model",
            code="model_not_found",
        )


class ThreadNotFound(RequestRefused):
    """The request brings only what is new of a conversation, and nothing is stored here."""

    def __init__(self, message_id: str) -> None:
        super().__init__(
            f"Nothing is stored here for the message '{message_id[:100]}': send the whole conversation in `messages`.",
            HTTPStatus.NOT_FOUND,
            param="thread.previous_message_id",
            code="thread_not_found",
        )


ENGINE_TOO_LONG = re.compile(r"the prompt has (\d+) tokens; the engine holds (\d+)")


def refused_by_engine(text: str) -> RequestRefused:
    """The refusal of an engine (`engine/contract.py`), which comes over the wire as its text."""
    too_long = ENGINE_TOO_LONG.search(text)
    if too_long is None:
        return RequestRefused(text)
    prompt_tokens, limit = (int(number) for number in too_long.groups())
    return PromptTooLong(prompt_tokens, limit)


class QueueFull(ServeError):
    """More is waiting than can be promised. `retry_after_s` is when to ask again; `why` says what that comes from."""

    def __init__(self, retry_after_s: int, why: str = "", *, measured: bool = False) -> None:
        super().__init__(
            f"The server is full{why and ': '}{why}. Please retry in {_seconds(retry_after_s)}.",
            HTTPStatus.TOO_MANY_REQUESTS,
            Outcome.SHED_QUEUE_FULL,
            retry_after_s,
            measured,
        )


OTHER_VERSION_RETRY_S = 5
"""When to ask again where all replicas run another version: in an upgrade one by one, the next may be of ours."""


class NoReplica(ServeError):
    """No replica could take the request: not before its deadline, or too many wait for one already (`what`)."""

    def __init__(self, what: str, retry_after_s: int, *, measured: bool = False) -> None:
        basis = ", which is when the one that starts should be up, by how long the last one took" if measured else ""
        super().__init__(
            f"No replica of the model is available ({what}). Please retry in {_seconds(retry_after_s)}{basis}.",
            HTTPStatus.SERVICE_UNAVAILABLE,
            Outcome.NO_REPLICA,
            retry_after_s,
            measured,
        )


class OtherVersion(NoReplica):
    """Every replica that is there runs another vLLM than this ingress. `why` names both versions and the fix."""

    def __init__(self, why: str) -> None:
        super().__init__("another version of vLLM", OTHER_VERSION_RETRY_S)
        self.message = f"No replica of the model can be used: {why}."


class CutOff(ServeError):
    """`attempts` in a row gave no token and were cut off. Nothing shows that the request is why."""

    def __init__(self, attempts: int, retry_after_s: float) -> None:
        super().__init__(
            f"This request was stopped: {attempts} attempts in a row were cut off from their replica. "
            f"Please retry in {_seconds(retry_after_s)}.",
            HTTPStatus.SERVICE_UNAVAILABLE,
            Outcome.NO_REPLICA,
            retry_after_s,
        )


class InQuarantine(ServeError):
    """A request of this client has cost a replica. The client may ask again after `retry_after_s`."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(
            "A request of yours has made a replica of the model fail. "
            f"Please do not send it again, and retry others in {retry_after_s:.0f} seconds.",
            HTTPStatus.TOO_MANY_REQUESTS,
            Outcome.POISON,
            retry_after_s,
        )


class PoisonRequest(ServeError):
    """`replicas` replicas died of the request, as far as there is evidence. It will not get another."""

    def __init__(self, replicas: int) -> None:
        super().__init__(
            "This request was stopped: "
            + ("a replica" if replicas == 1 else f"{replicas} replicas")
            + " failed while working on it.",
            HTTPStatus.INTERNAL_SERVER_ERROR,
            Outcome.POISON,
        )


def _seconds(seconds: float) -> str:
    return "1 second" if seconds == 1 else f"{seconds:.0f} seconds"
