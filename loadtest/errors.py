"""Errors that end a command, and the outcomes of single requests.

An error has a message and a remedy. A failed request is not an exception: its record has a `RequestOutcome`.

LoadTestError
  UsageError        the command line contradicts itself or is incomplete     exit 2
  TargetError       the server cannot be used (not reachable, 401, model)    exit 3
  DataError         a data set, tokenizer or result file cannot be used      exit 4
  AssertionUnmet    the run is complete and misses a bound of --assert       exit 1
"""

from __future__ import annotations

from enum import Enum


class LoadTestError(Exception):
    """Base of all errors that the user sees as one line, never as a traceback."""

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}. {self.remedy}" if self.remedy else self.message


class UsageError(LoadTestError):
    """The command line contradicts itself, is incomplete, or names something unknown."""

    exit_code = 2


class TargetError(LoadTestError):
    """The server cannot be reached, refuses the key, or does not serve the model."""

    exit_code = 3


class DataError(LoadTestError):
    """A file that the run needs is absent or has the wrong content."""

    exit_code = 4


class AssertionUnmet(LoadTestError):
    """The run is complete, and a figure misses a bound of `--assert`."""

    exit_code = 1


class RequestOutcome(Enum):
    """How one request ended, as the client observed it. Only OK requests count towards latency figures.

    vLLM's benchmark counts every 200 with at least one chunk as a success, so an incomplete stream improves its
    throughput. Here it is a failure, a miss of every objective, and its body is kept.
    """

    OK = "ok"
    NOT_CONNECTED = "not_connected"
    """The connection failed: refused, unreachable, timeout or TLS."""
    FULL = "full_429"
    """The server is full (429). The request is not retried."""
    UNAVAILABLE = "unavailable_503"
    """No replica can serve the request (503)."""
    REFUSED = "refused_4xx"
    SERVER_ERROR = "server_error_5xx"
    ERROR_EVENT = "error_in_stream"
    """A 200 whose stream contains an error."""
    CUT = "cut"
    """The connection ended before the response was complete."""
    NO_END = "no_end"
    """The HTTP response is complete, but it has neither a finish reason nor an end marker."""
    SHORT = "short"
    """Fewer tokens than the forced length."""
    EMPTY = "empty"
    """A 200 without a token."""
    MALFORMED = "malformed"
    """The bytes are not the protocol of the request."""
    TIMEOUT = "timeout"
    INTERRUPTED = "interrupted"
    """The user stopped the run while the request was in flight: neither success nor failure."""


def outcome_of_status(status: int) -> RequestOutcome:
    """The outcome of a response whose status is not 200."""
    if status == 429:
        return RequestOutcome.FULL
    if status in (503, 529):  # 529 is Anthropic's status for it
        return RequestOutcome.UNAVAILABLE
    return RequestOutcome.SERVER_ERROR if status >= 500 else RequestOutcome.REFUSED
