"""Errors that end a command, and the outcomes of single requests.

Every error has one line that says what happened and one that says what to do. The failure of a single request is no
exception but a `RequestOutcome`: it is data.

LoadTestError
  UsageError        the command line asks for something impossible          exit 2
  TargetError       the server cannot be used as asked (absent, 401, model)  exit 3
  DataError         a data set, tokenizer or result file cannot be used      exit 4
  AssertionUnmet    the run worked and missed what --assert demands          exit 1
"""

from __future__ import annotations

from enum import Enum


class LoadTestError(Exception):
    """Base of all errors shown to the user as one line and a remedy, never as a traceback."""

    exit_code = 1

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what}. {self.remedy}" if self.remedy else self.what


class UsageError(LoadTestError):
    """The command line contradicts itself or names something unknown."""

    exit_code = 2


class TargetError(LoadTestError):
    """The server cannot be reached or refuses to be used as asked."""

    exit_code = 3


class DataError(LoadTestError):
    """A file that the run needs is absent or not what it should be."""

    exit_code = 4


class AssertionUnmet(LoadTestError):
    """The run is complete and its figures miss a bound of `--assert`."""

    exit_code = 1


class RequestOutcome(Enum):
    """How one request ended, as the client saw it: exactly one each, and only OK counts towards latency figures.

    vLLM's benchmark counts every 200 that carried one chunk as a success, so a stream that was cut half-way improves
    its throughput. Here it is a failure with its body kept, and a miss for every objective.
    """

    OK = "ok"
    NOT_CONNECTED = "not_connected"
    """No connection: refused, unreachable, TLS or name failure."""
    FULL = "full_429"
    """The server says that it is full (429); not retried."""
    UNAVAILABLE = "unavailable_503"
    """Nobody can serve (503)."""
    REFUSED = "refused_4xx"
    SERVER_ERROR = "server_error_5xx"
    ERROR_EVENT = "error_in_stream"
    """A 200 whose stream carried an error."""
    CUT = "cut"
    """The connection ended before the response did."""
    NO_END = "no_end"
    """The HTTP response ended properly, the answer did not: no finish reason and no end marker."""
    SHORT = "short"
    """Fewer tokens than the forced length."""
    EMPTY = "empty"
    """A 200 with no token in it."""
    MALFORMED = "malformed"
    """Bytes that are not the protocol asked for."""
    TIMEOUT = "timeout"
    INTERRUPTED = "interrupted"
    """The user stopped the run while this was in flight: neither success nor failure."""


def outcome_of_status(status: int) -> RequestOutcome:
    """The outcome of a response whose status is not 200."""
    if status == 429:
        return RequestOutcome.FULL
    if status in (503, 529):  # 529: what Anthropic's API says for it
        return RequestOutcome.UNAVAILABLE
    return RequestOutcome.SERVER_ERROR if status >= 500 else RequestOutcome.REFUSED
