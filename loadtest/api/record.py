"""What is kept of one request, and nothing else is ever needed to make a report.

Times are nanoseconds of the monotonic clock (`time.perf_counter_ns`), which on Linux is one clock for all processes of
a machine, so records of several workers and of the mock server share an axis. Zero means "never happened".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from loadtest.errors import RequestOutcome

Nanos = NDArray[np.int64]
Floats = NDArray[np.float64]
NO_NANOS: Nanos = np.zeros(0, dtype=np.int64)
NO_FLAGS: NDArray[np.bool_] = np.zeros(0, dtype=np.bool_)


@dataclass(slots=True)
class Record:
    """One finished request: when its bytes came, what they said, how it ended."""

    index: int
    kind: str = "all"
    """Class of a mix; figures are given per class."""
    session: int = -1
    turn: int = 0
    planned_prompt_tokens: int = 0
    planned_output_tokens: int = 0

    intended_ns: int = 0
    """When the schedule wanted it sent. Closed loop: when its slot became free."""
    start_ns: int = 0
    """The client began: before it took a connection. vLLM's clock starts here too."""
    sent_ns: int = 0
    first_byte_ns: int = 0
    end_ns: int = 0
    """Last byte, or the moment of failure."""
    connect_ns: int = 0
    """Time spent opening a connection, 0 where one was at hand."""

    chunk_ns: Nanos = field(default_factory=lambda: NO_NANOS)
    """Arrival of each event that carries `choices` (vLLM's notion of a token's arrival)."""
    chunk_has_token: NDArray[np.bool_] = field(default_factory=lambda: NO_FLAGS)
    """False for events without text, such as the first one, which carries only a role."""
    first_visible_ns: int = 0
    """First answer text outside reasoning."""
    first_reasoning_ns: int = 0

    status: int = 0
    outcome: RequestOutcome = RequestOutcome.NOT_CONNECTED
    error: str = ""
    body: str = ""
    """The start of a failed response's body."""
    retry_after_s: float = 0.0
    replica: str = ""
    finish_reason: str = ""

    prompt_tokens: int = 0
    """From the server's usage; 0 where it sent none."""
    cached_tokens: int = 0
    output_tokens: int = 0
    """From the server's usage wherever it stood; otherwise counted, see `tokens_from`."""
    tokens_from: str = "none"
    vllm_output_tokens: int = 0
    """Usage as vLLM's client reads it: only from events without choices. 0 where it saw none."""
    vllm_prompt_tokens: int = 0
    vllm_success: bool = False
    """Whether vLLM's client would have called this a success."""
    text: str = ""

    @property
    def ok(self) -> bool:
        """Counts towards latency and throughput figures."""
        return self.outcome is RequestOutcome.OK

    @property
    def failed(self) -> bool:
        """Counts as a miss."""
        return self.outcome not in (RequestOutcome.OK, RequestOutcome.INTERRUPTED)

    @property
    def first_token_ns(self) -> int:
        """Arrival of the first event that carries generated text of any channel, 0 if none did."""
        hits = np.flatnonzero(self.chunk_has_token)
        return int(self.chunk_ns[hits[0]]) if len(hits) else 0

    @property
    def last_chunk_ns(self) -> int:
        """Arrival of the last event with choices; the trailing usage event is no token."""
        return int(self.chunk_ns[-1]) if len(self.chunk_ns) else 0

    def output_tokens_or_one(self) -> int:
        """What vLLM divides by: its own count, or 1 where the server sent no usage."""
        return self.vllm_output_tokens or 1


@dataclass(frozen=True)
class RunRecords:
    """All records of one run, in the order of their index, and the clock's anchor."""

    records: Sequence[Record]
    begin_ns: int
    end_ns: int
    wall_start_s: float
    """Unix time at `begin_ns`, the only wall-clock reading of a run."""
    interrupted: bool = False

    @property
    def duration_s(self) -> float:
        """From before the first send to after the last byte, ramp and tail included, as vLLM counts it."""
        return self.end_ns / 1e9 - self.begin_ns / 1e9


def ttft_s(record: Record) -> float:
    """First event with choices, the role-only one included, counted from when the client began."""
    return float(record.chunk_ns[0] / 1e9 - record.start_ns / 1e9) if len(record.chunk_ns) else 0.0


def latency_s(record: Record) -> float:
    """Last event with choices; the trailing usage event does not count."""
    return float(record.chunk_ns[-1] / 1e9 - record.start_ns / 1e9) if len(record.chunk_ns) else 0.0


def itl_s(record: Record) -> Floats:
    """Gaps between events with choices: per chunk, not per token."""
    gaps: Floats = np.diff(record.chunk_ns / 1e9)
    return gaps


def tpot_s(record: Record) -> float:
    """Time after the first event per further token; 0 for answers of one token."""
    tokens = record.output_tokens_or_one()
    return (latency_s(record) - ttft_s(record)) / (tokens - 1) if tokens > 1 else 0.0
