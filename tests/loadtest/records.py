"""Records that tests make up, instead of measuring them."""

from __future__ import annotations

import numpy as np

from loadtest.api.record import Record, RunRecords
from loadtest.errors import RequestOutcome

MS = 1_000_000
BEGIN = 10**12


def record(
    start_ms: float, ttft_ms: float, gap_ms: float, chunks: int, *, index: int = 0, ok: bool = True, per_chunk: int = 1
) -> Record:
    """A request with even gaps."""
    start = BEGIN + int(start_ms * MS)
    times = start + int(ttft_ms * MS) + np.arange(chunks, dtype=np.int64) * int(gap_ms * MS)
    return Record(
        index=index,
        intended_ns=start,
        start_ns=start,
        end_ns=int(times[-1]),
        chunk_ns=times,
        chunk_has_token=np.ones(chunks, dtype=np.bool_),
        first_visible_ns=int(times[0]),
        status=200 if ok else 500,
        outcome=RequestOutcome.OK if ok else RequestOutcome.SERVER_ERROR,
        output_tokens=chunks * per_chunk,
        vllm_output_tokens=chunks * per_chunk,
        vllm_prompt_tokens=100,
        prompt_tokens=100,
        planned_prompt_tokens=100,
        planned_output_tokens=chunks * per_chunk,
        tokens_from="usage",
        vllm_success=ok,
    )


def run_of(records: list[Record]) -> RunRecords:
    return RunRecords(records, BEGIN, max(r.end_ns for r in records), 1_700_000_000.0)
