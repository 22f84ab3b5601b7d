"""The errors a client can meet, and the one place that gives them a status, a code and a retry hint.

    ServeError
    |-- RequestRefused     400  the engine will never run this request
    |-- QueueFull          429  we are full; come back after `retry_after_s`
    |-- NoReplica          503  nobody can serve now
    |-- CutOff             503  the replicas cannot be reached, one after the other
    `-- PoisonRequest      500  the request has taken too many replicas with it

429 means that we are full, 503 that nobody can serve: a client may treat them differently, and so does our metric.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus

from serve_app.outcome import Outcome


@dataclass
class ServeError(Exception):
    """A request could not be served. `message` is for the client; it names what to do and no internals."""

    message: str
    status: HTTPStatus = HTTPStatus.INTERNAL_SERVER_ERROR
    outcome: Outcome = Outcome.SERVER_ERROR
    retry_after_s: float | None = None
    param: str | None = None
    """The field of the request that is at fault, as its API names it: `messages`, `messages.0.content`."""

    def __str__(self) -> str:
        return self.message


class RequestRefused(ServeError):
    """The request itself is at fault. Another replica would say the same."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message, HTTPStatus.BAD_REQUEST, Outcome.BAD_REQUEST, param=param)


class QueueFull(ServeError):
    """More is waiting than can be promised. `retry_after_s` is when there should be room."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(
            f"The server is full. Please retry in {retry_after_s:.0f} seconds.",
            HTTPStatus.TOO_MANY_REQUESTS,
            Outcome.SHED_QUEUE_FULL,
            retry_after_s,
        )


class NoReplica(ServeError):
    """No replica could take the request before its deadline."""

    def __init__(self, waited_s: float, retry_after_s: float) -> None:
        super().__init__(
            f"No replica of the model is available (waited {waited_s:.0f} s). "
            f"Please retry in {retry_after_s:.0f} seconds.",
            HTTPStatus.SERVICE_UNAVAILABLE,
            Outcome.NO_REPLICA,
            retry_after_s,
        )


class CutOff(ServeError):
    """`attempts` in a row gave no token and were cut off. Nothing shows that the request is why."""

    def __init__(self, attempts: int, retry_after_s: float) -> None:
        super().__init__(
            f"This request was stopped: {attempts} attempts in a row were cut off from their replica. "
            f"Please retry in {retry_after_s:.0f} seconds.",
            HTTPStatus.SERVICE_UNAVAILABLE,
            Outcome.NO_REPLICA,
            retry_after_s,
        )


class PoisonRequest(ServeError):
    """The request was running on `replicas` replicas when each of them died. It will not get another."""

    def __init__(self, replicas: int) -> None:
        super().__init__(
            f"This request was stopped: {replicas} replicas failed while they worked on it.",
            HTTPStatus.INTERNAL_SERVER_ERROR,
            Outcome.POISON,
        )
