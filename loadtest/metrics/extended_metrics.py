"""What vLLM's figures hide: gaps per token, tokens per chunk, visible text, intended times, drift of lengths.

Definitions, all over successful requests and in ms unless said otherwise:
- first token: the first event with text of any channel; vLLM's TTFT counts the role-only event too.
- first visible: the first answer text or tool call, after any reasoning.
- token gap: a chunk gap divided by its request's tokens per chunk. With MTP a chunk carries about 2.8 tokens, so
  vLLM's ITL is about 2.8 times what a reader feels.
- read gap: gaps between socket reads with tokens. Events that share a read came as one burst; vLLM calls
  their gap 0.
- from intended: latency counted from when the schedule wanted the request sent. A client or queue that holds requests
  back cannot hide in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loadtest.api.record import Floats, Record
from loadtest.metrics.vllm_metrics import Stats


@dataclass(frozen=True)
class Drift:
    """Tokens that the server counted against those planned, per request."""

    planned_mean: float
    mean: float
    low: int
    high: int
    off_ratio: float
    """Share of requests whose count differs from the plan."""

    @staticmethod
    def of(planned: Sequence[int], counted: Sequence[int]) -> Drift | None:
        """None where nothing was planned or counted."""
        rows = [(p, c) for p, c in zip(planned, counted, strict=True) if p and c]
        if not rows:
            return None
        plan, seen = np.asarray(rows).T
        off = float(np.mean(plan != seen))
        return Drift(float(plan.mean()), float(seen.mean()), int(seen.min()), int(seen.max()), off)


@dataclass(frozen=True)
class ExtendedMetrics:
    """See the module's definitions."""

    first_token: Stats
    first_visible: Stats
    token_gap: Stats
    read_gap: Stats
    first_token_intended: Stats
    e2e_intended: Stats
    queue: Stats
    connect: Stats
    tokens_per_chunk: float
    bursts_ratio: float
    """Share of token events that came in the same read as the one before."""
    reasoning_ratio: float
    """Share of requests that reasoned before they answered."""
    cached_ratio: float | None
    """Prompt tokens that the server took from its cache; None where it does not say."""
    prompt_drift: Drift | None
    output_drift: Drift | None
    token_sources: dict[str, int]
    vllm_completed: int
    """How many requests vLLM's client would have called successful."""


def extended_metrics_of(records: Sequence[Record], percentiles: Sequence[float]) -> ExtendedMetrics:
    """The strict figures of a set of records."""
    good = [record for record in records if record.ok]

    def spread(values: Sequence[float] | Floats) -> Stats:
        return Stats.of(values, percentiles)

    chunks = sum(int(np.count_nonzero(record.chunk_has_token)) for record in good)
    visible = [(r.first_visible_ns - r.start_ns) / 1e9 for r in good if r.first_visible_ns]
    prompts = sum(record.prompt_tokens for record in good)
    cached = sum(record.cached_tokens for record in good)
    sources: dict[str, int] = {}
    for record in good:
        sources[record.tokens_from] = sources.get(record.tokens_from, 0) + 1
    return ExtendedMetrics(
        first_token=spread([(r.first_token_ns - r.start_ns) / 1e9 for r in good if r.first_token_ns]),
        first_visible=spread(visible),
        token_gap=spread(_pool([token_gaps_s(record) for record in good])),
        read_gap=spread(_pool([_read_gaps_s(record) for record in good])),
        first_token_intended=spread([(r.first_token_ns - r.intended_ns) / 1e9 for r in good if r.first_token_ns]),
        e2e_intended=spread([(r.last_chunk_ns - r.intended_ns) / 1e9 for r in good]),
        queue=spread([(r.start_ns - r.intended_ns) / 1e9 for r in good]),
        connect=spread([r.connect_ns / 1e9 for r in good if r.connect_ns]),
        tokens_per_chunk=sum(record.output_tokens for record in good) / chunks if chunks else 0.0,
        bursts_ratio=sum(_bursts(record) for record in good) / chunks if chunks else 0.0,
        reasoning_ratio=sum(bool(r.first_reasoning_ns) for r in good) / len(good) if good else 0.0,
        cached_ratio=cached / prompts if prompts and any(r.cached_tokens for r in good) else None,
        prompt_drift=Drift.of([r.planned_prompt_tokens for r in good], [r.prompt_tokens for r in good]),
        output_drift=Drift.of([r.planned_output_tokens for r in good], [r.output_tokens for r in good]),
        token_sources=sources,
        vllm_completed=sum(record.vllm_success for record in records),
    )


def tokens_per_event(record: Record) -> float:
    """Tokens that each event with text stands for, spread evenly: servers do not say it per event."""
    return record.output_tokens / max(1, int(np.count_nonzero(record.chunk_has_token)))


def token_gaps_s(record: Record) -> Floats:
    """Gaps between token events, per token."""
    gaps: Floats = np.diff(record.chunk_ns[record.chunk_has_token]) / 1e9
    return gaps / max(tokens_per_event(record), 1e-9)


def _read_gaps_s(record: Record) -> Floats:
    times = np.unique(record.chunk_ns[record.chunk_has_token])
    gaps: Floats = np.diff(times) / 1e9
    return gaps


def _bursts(record: Record) -> int:
    return len(record.chunk_ns[record.chunk_has_token]) - len(np.unique(record.chunk_ns[record.chunk_has_token]))


def _pool(parts: list[Floats]) -> Floats:
    return np.concatenate(parts) if parts else np.zeros(0)
