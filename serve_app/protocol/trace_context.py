"""Where a request belongs in its trace (W3C Trace Context). Only sampled requests have one."""

from __future__ import annotations

import random
from dataclasses import dataclass

HEADERS = (b"traceparent", b"tracestate")
"""The headers of W3C Trace Context."""


@dataclass(frozen=True)
class TraceContext:
    """A sampled request: the id of its trace, of its own span, and of its client's span (None: the trace begins here).

    `state` is the client's `tracestate`."""

    trace_id: int
    span_id: int
    parent_id: int | None = None
    state: str = ""

    @property
    def trace_id_hex(self) -> str:
        """The trace's id as the headers and every trace viewer write it."""
        return f"{self.trace_id:032x}"

    def headers(self, span_id: int) -> dict[str, str]:
        """What makes another process' spans children of that span of this trace."""
        parent = {"traceparent": f"00-{self.trace_id:032x}-{span_id:016x}-01"}
        return {**parent, "tracestate": self.state} if self.state else parent


def new_span_id() -> int:
    """An id for a span."""
    return random.getrandbits(64) or 1  # 0 is no id
