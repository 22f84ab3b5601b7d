"""How a request ended: one enum for errors, metrics, the access log and the load test.

A metric's label comes from here and never from user input, so that the number of series stays bounded.
"""

from __future__ import annotations

from enum import StrEnum


class Outcome(StrEnum):
    """How one request ended, as its client saw it."""

    OK = "ok"
    BAD_REQUEST = "bad_request"
    UNAUTHENTICATED = "unauthenticated"
    NOT_FOUND = "not_found"
    SHED_QUEUE_FULL = "shed_queue_full"
    NO_REPLICA = "no_replica"
    POISON = "poison"
    """The request took as many replicas with it as one request may."""
    CANCELLED = "cancelled"
    SERVER_ERROR = "server_error"

    @classmethod
    def from_status(cls, status: int) -> Outcome:
        """The outcome of an HTTP response that nothing has described more closely."""
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
