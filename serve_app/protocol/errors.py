"""How a request ends (`Outcome`), the errors that a client gets, and how an attempt fails between our processes.

    ServeError
    |-- RequestRefused     4xx  the request itself is wrong; nobody would run it
    |   |-- PromptTooLong      400  the prompt does not fit into the context
    |   |-- OutputTooLong      400  `max_tokens` is more than the context holds
    |   |-- TooManySequences   400  `n` is more than all replicas hold when they are idle
    |   |-- ModelNotFound      404  no such model here
    |   `-- ThreadNotFound     404  the request continues a conversation that a server would have to store
    |-- QueueFull          429  the server is full; retry after `retry_after_s`
    |-- RateLimited        429  the client's key has used up one of its limits
    |-- NoReplica          503  no replica can serve now
    |   `-- OtherVersion       503  every replica runs another vLLM than this ingress
    |-- WeightsGone        503  the model version that began the answer has been withdrawn
    |-- CutOff             503  several replicas in a row could not be reached
    |-- InQuarantine       429  a request of this client has crashed a replica
    `-- PoisonRequest      500  the request has crashed a replica

Status, code and retry hint of an error are set here only. `ingress/error_format.py` words it for each API.
429 means that the server takes no more of this client now, 503 that no replica can serve: clients and our metric treat
them differently.

    ReplicaLost             an attempt lost its replica, and must run on another one
    `-- ReplicaDied             the replica's process has ended
    WrongReplica            the attempt did not run: the call reached another replica than the one meant
    `-- ReplicaStopping         the replica is being stopped
    ReplicaFull             the attempt did not run: the replica holds as many as it may
    Preempted               the attempt made room for one of a higher class, and its request goes on later
    ImagesMissing           the attempt did not run: the replica no longer has an image that was not sent again
    EngineDead              the engine died with the attempt in it
    |-- EngineDeadByRequest     and the evidence points at this attempt
    `-- EngineDeadBeside        and nothing points at this attempt
    AttemptRefused          the engine can never run this request
    EngineCannotStart       there is no engine, and none is started any more
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus


class Outcome(StrEnum):
    """How one request ended, as its client saw it: in errors, metrics and the access log.

    A metric's label comes from here and never from user input, so that the number of series stays bounded.
    """

    OK = "ok"
    BAD_REQUEST = "bad_request"
    UNAUTHENTICATED = "unauthenticated"
    NOT_FOUND = "not_found"
    SHED_QUEUE_FULL = "shed_queue_full"
    RATE_LIMITED = "rate_limited"
    """The client's key has used up one of its limits."""
    NO_REPLICA = "no_replica"
    POISON = "poison"
    """The request crashed as many replicas as one request may."""
    CANCELLED = "cancelled"
    SERVER_ERROR = "server_error"

    @classmethod
    def from_status(cls, status: int) -> Outcome:
        """The outcome of an HTTP response without a more specific error."""
        if status < 400:
            return cls.OK
        by_status = {
            401: cls.UNAUTHENTICATED,
            404: cls.NOT_FOUND,
            429: cls.SHED_QUEUE_FULL,
            503: cls.NO_REPLICA,
            529: cls.NO_REPLICA,
        }
        if status in by_status:
            return by_status[status]
        return cls.BAD_REQUEST if status < 500 else cls.SERVER_ERROR


@dataclass
class ServeError(Exception):
    """A request could not be served. `message` is for the client: it says what to do and shows no internals."""

    message: str
    status: HTTPStatus = HTTPStatus.INTERNAL_SERVER_ERROR
    outcome: Outcome = Outcome.SERVER_ERROR
    retry_after_s: float | None = None
    measured: bool = False
    """Whether `retry_after_s` comes from measurements; otherwise it is a constant."""
    param: str | None = None
    """The faulty field of the request, as its API names it: `messages`, `messages.0.content`."""
    code: str | None = None
    """OpenAI's code of the error, where clients read it; None: the code that belongs to the status."""

    def __str__(self) -> str:
        return self.message


class RequestRefused(ServeError):
    """The request itself is wrong. Every replica would refuse it."""

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

    A prompt as long as the context leaves no room for an answer, so the limit that is named is one less.
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
    """`asked` sequences at a time are more than all replicas hold when they are idle."""

    def __init__(self, asked: int, limit: int) -> None:
        super().__init__(f"{asked} sequences at a time are too many: at most {limit}.", param="n")


class ModelNotFound(RequestRefused):
    """The request names a model that is not served here."""

    def __init__(self, model: str, available: str) -> None:
        super().__init__(
            f"The model `{model[:100]}` does not exist. Available: {available}.",
            HTTPStatus.NOT_FOUND,
            param="model",
            code="model_not_found",
        )


class ThreadNotFound(RequestRefused):
    """The request holds only the new part of a conversation, and nothing is stored here."""

    def __init__(self, message_id: str) -> None:
        super().__init__(
            f"Nothing is stored here for the message '{message_id[:100]}': send the whole conversation in `messages`.",
            HTTPStatus.NOT_FOUND,
            param="thread.previous_message_id",
            code="thread_not_found",
        )


ENGINE_TOO_LONG = re.compile(r"the prompt has (\d+) tokens; the engine holds (\d+)")


def refused_by_engine(text: str) -> RequestRefused:
    """The refusal of an engine (`engine/contract.py`) from its text, which is all that crosses the data channel."""
    too_long = ENGINE_TOO_LONG.search(text)
    if too_long is None:
        return RequestRefused(text)
    prompt_tokens, limit = (int(number) for number in too_long.groups())
    return PromptTooLong(prompt_tokens, limit)


class QueueFull(ServeError):
    """All replicas are full. `retry_after_s`: when to retry; `why`: how that time was estimated."""

    def __init__(self, retry_after_s: int, why: str = "", *, measured: bool = False) -> None:
        super().__init__(
            f"The server is full{why and ': '}{why}. Please retry in {_seconds(retry_after_s)}.",
            HTTPStatus.TOO_MANY_REQUESTS,
            Outcome.SHED_QUEUE_FULL,
            retry_after_s,
            measured,
        )


class LimitKind(StrEnum):
    """What a key's limit is of (`ingress/rate_limits/`)."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    CONCURRENT = "concurrent"


_LIMIT_WORDS = {
    LimitKind.REQUESTS: "{} per minute",
    LimitKind.TOKENS: "{} per minute",
    LimitKind.CONCURRENT: "{} at a time",
}


class RateLimited(ServeError):
    """The client's key has used up its `limit` of `kind`. There is room for a request after `retry_after_s`."""

    def __init__(self, kind: LimitKind, limit: int, retry_after_s: float, *, measured: bool = True) -> None:
        retry_after_s = max(1, math.ceil(retry_after_s))
        unit = "token" if kind is LimitKind.TOKENS else "request"
        counted = f"{limit} {unit}{'' if limit == 1 else 's'}"
        super().__init__(
            f"Rate limit reached for this API key: {_LIMIT_WORDS[kind].format(counted)}. "
            f"Please retry in {_seconds(retry_after_s)}.",
            HTTPStatus.TOO_MANY_REQUESTS,
            Outcome.RATE_LIMITED,
            retry_after_s,
            measured,
        )
        self.kind = kind


OTHER_VERSION_RETRY_S = 5
"""When to retry where all replicas run another version: in a rolling upgrade, a matching one may come next."""


class NoReplica(ServeError):
    """No replica could take the request: not before its deadline, or too many requests wait already (`what`)."""

    def __init__(self, what: str, retry_after_s: int, *, measured: bool = False) -> None:
        basis = ", when the replica that is starting should be up (the last start took as long)" if measured else ""
        super().__init__(
            f"No replica of the model is available ({what}). Please retry in {_seconds(retry_after_s)}{basis}.",
            HTTPStatus.SERVICE_UNAVAILABLE,
            Outcome.NO_REPLICA,
            retry_after_s,
            measured,
        )


class OtherVersion(NoReplica):
    """Every replica runs another vLLM than this ingress. `why` names both versions and the fix."""

    def __init__(self, why: str) -> None:
        super().__init__("another version of vLLM", OTHER_VERSION_RETRY_S)
        self.message = f"No replica of the model can be used: {why}."


class WeightsGone(ServeError):
    """The answer was begun by a canary of other weights, which has been withdrawn: no replica can finish it."""

    def __init__(self) -> None:
        super().__init__(
            "The version of the model that began this answer has been withdrawn, and another one must not finish it. "
            "Please send the request again.",
            HTTPStatus.SERVICE_UNAVAILABLE,
            Outcome.NO_REPLICA,
            1.0,
        )


class CutOff(ServeError):
    """`attempts` in a row were cut off without a token. There is no evidence that the request caused it."""

    def __init__(self, attempts: int, retry_after_s: float) -> None:
        super().__init__(
            f"This request was stopped: {attempts} attempts in a row were cut off from their replica. "
            f"Please retry in {_seconds(retry_after_s)}.",
            HTTPStatus.SERVICE_UNAVAILABLE,
            Outcome.NO_REPLICA,
            retry_after_s,
        )


class InQuarantine(ServeError):
    """A request of this client has crashed a replica. The client may send requests again after `retry_after_s`."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(
            "A request of yours has made a replica of the model fail. "
            f"Please do not send it again, and retry others in {retry_after_s:.0f} seconds.",
            HTTPStatus.TOO_MANY_REQUESTS,
            Outcome.POISON,
            retry_after_s,
        )


class PoisonRequest(ServeError):
    """The request crashed `replicas` replicas, as far as there is evidence. It gets no further attempt."""

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


class ReplicaLost(Exception):
    """The connection to a replica is gone: its attempts must run elsewhere. The replica itself may be alive."""


class ReplicaDied(ReplicaLost):
    """A replica's process has ended, or no longer takes connections."""


class WrongReplica(Exception):
    """The call reached another replica than the one meant, which Serve no longer routes to. Nothing died."""


class ReplicaStopping(WrongReplica):
    """The replica is being stopped, with the attempt in it. Nothing died."""


class ReplicaFull(Exception):
    """The replica holds as many attempts as it may, and did not take this one. Another replica may have room."""


class WaitedTooLong(ReplicaFull):
    """The attempt has waited in the replica for as long as one may, and did not run."""


class Preempted(Exception):
    """The attempt was ended to make room for one of a higher class. Nothing died: its request goes on when it is its
    turn again."""


class ImagesMissing(Exception):
    """The replica does not have an image that the attempt names without sending it, and did not take the attempt."""


class EngineDead(Exception):
    """The engine's process died, or it reported a fatal error. Every running attempt gets this error."""


class EngineDeadByRequest(EngineDead):
    """The same, for the one attempt that the evidence points at (`protocol/poison.py`)."""


class EngineDeadBeside(EngineDead):
    """The same, for an attempt that nothing points at."""


class AttemptRefused(Exception):
    """The engine can never run this request (for example, it is too long for the cache). Do not retry."""


class EngineCannotStart(Exception):
    """There is no engine, and none is started any more: starts have failed too often."""
