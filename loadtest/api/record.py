"""The record of one request. Reports are made from records alone.

Times are nanoseconds of the monotonic clock (`time.perf_counter_ns`), which on Linux is one clock for all processes of
a machine, so records of several workers and of the mock server share a time axis. 0 means "never happened".
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
    """One finished request: plan, times, outcome, token counts."""

    index: int
    kind: str = "all"
    """Class of a mix; reports have figures per class."""
    session: int = -1
    turn: int = 0
    planned_prompt_tokens: int = 0
    planned_output_tokens: int = 0

    intended_ns: int = 0
    """When the schedule intended it to start. Closed loop: when its slot became free."""
    start_ns: int = 0
    """When the client started it, before it acquired a connection. vLLM's client starts its clock here, too."""
    sent_ns: int = 0
    first_byte_ns: int = 0
    end_ns: int = 0
    """Arrival of the last byte, or the moment of failure."""
    connect_ns: int = 0
    """Time spent opening a connection, 0 where an idle one was reused."""

    chunk_ns: Nanos = field(default_factory=lambda: NO_NANOS)
    """Arrival of each event with `choices`, which is what vLLM's client counts as a token's arrival."""
    chunk_has_token: NDArray[np.bool_] = field(default_factory=lambda: NO_FLAGS)
    """False for events without text, such as the first one, which has only a role."""
    first_visible_ns: int = 0
    """Arrival of the first answer text outside reasoning, or tool call."""
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
    """From the response's usage; 0 where it has none."""
    cached_tokens: int = 0
    output_tokens: int = 0
    """From the response's usage, in whichever event it was; otherwise counted, see `tokens_from`."""
    tokens_from: str = "none"
    """`usage`; `chunks`, where events with text were counted instead; or `none`."""
    vllm_output_tokens: int = 0
    """Usage as vLLM's client reads it: only from events without choices. 0 where there is none."""
    vllm_prompt_tokens: int = 0
    vllm_success: bool = False
    """Whether vLLM's client would count this as a success."""
    text: str = ""
    reasoning: str = ""

    @property
    def ok(self) -> bool:
        """Whether it counts towards latency and throughput figures."""
        return self.outcome is RequestOutcome.OK

    @property
    def failed(self) -> bool:
        """Whether it counts as a miss of every objective."""
        return self.outcome not in (RequestOutcome.OK, RequestOutcome.INTERRUPTED)

    @property
    def first_token_ns(self) -> int:
        """Arrival of the first event with generated text of any channel; 0 if there is none."""
        hits = np.flatnonzero(self.chunk_has_token)
        return int(self.chunk_ns[hits[0]]) if len(hits) else 0

    @property
    def last_chunk_ns(self) -> int:
        """Arrival of the last event with choices, so without the final usage event; 0 if there is none."""
        return int(self.chunk_ns[-1]) if len(self.chunk_ns) else 0

    def output_tokens_or_one(self) -> int:
        """The divisor that vLLM uses: `vllm_output_tokens`, or 1 where the response has no usage."""
        return self.vllm_output_tokens or 1


@dataclass(frozen=True)
class RunRecords:
    """All records of one run, in the order of their index, and the run's start and end."""

    records: Sequence[Record]
    begin_ns: int
    end_ns: int
    wall_start_s: float
    """Unix time at `begin_ns`: the only time of a run that is not monotonic."""
    interrupted: bool = False

    @property
    def duration_s(self) -> float:
        """From before the first request to after the last response, including ramp and tail, as vLLM counts it."""
        return self.end_ns / 1e9 - self.begin_ns / 1e9


def ttft_s(record: Record) -> float:
    """Time to first token: from `start_ns` to the first event with choices, even if that has only a role."""
    return float(record.chunk_ns[0] / 1e9 - record.start_ns / 1e9) if len(record.chunk_ns) else 0.0


def latency_s(record: Record) -> float:
    """End-to-end latency: from `start_ns` to the last event with choices; the final usage event does not count."""
    return float(record.chunk_ns[-1] / 1e9 - record.start_ns / 1e9) if len(record.chunk_ns) else 0.0


def itl_s(record: Record) -> Floats:
    """Inter-token latencies: gaps between events with choices, so per chunk and not per token."""
    gaps: Floats = np.diff(record.chunk_ns / 1e9)
    return gaps


def tpot_s(record: Record) -> float:
    """Time per output token: time after the first event, per further token; 0 for answers of one token."""
    tokens = record.output_tokens_or_one()
    return (latency_s(record) - ttft_s(record)) / (tokens - 1) if tokens > 1 else 0.0
