"""How one request ended: exactly one outcome each, and only OK counts towards latency figures.

vLLM's benchmark counts every 200 that carried one chunk as a success, so a stream that was cut half-way improves its
throughput. Here it is a failure with its body kept, and a miss for every objective.
"""

from __future__ import annotations

from enum import Enum


class Outcome(Enum):
    """Low-cardinality label of a finished request."""

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


def of_status(status: int) -> Outcome:
    """The outcome of a response whose status is not 200."""
    if status == 429:
        return Outcome.FULL
    if status in (503, 529):  # 529: what Anthropic's API says for it
        return Outcome.UNAVAILABLE
    return Outcome.SERVER_ERROR if status >= 500 else Outcome.REFUSED
