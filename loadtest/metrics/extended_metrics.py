"""What vLLM's metrics hide: gaps per token, tokens per chunk, visible text, scheduled times, length drift.

Definitions, over successful requests and in ms unless stated otherwise:
- first token: the first event with text of any channel. vLLM's TTFT counts the event that only carries a role, too.
- first visible: the first answer text or tool call, after any reasoning.
- token gap: the gap between two chunks divided by the request's tokens per chunk. With MTP a chunk carries about 2.8
  tokens, so vLLM's ITL is about 2.8 times the time per token.
- read gap: the gap between socket reads with tokens. Events of the same read arrived as one burst, and vLLM counts the
  gap between them as 0.
- from intended: latency from the time at which the schedule wanted the request sent. It includes the wait in this
  client.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loadtest.api.record import Floats, Record
from loadtest.metrics.vllm_metrics import Stats


@dataclass(frozen=True)
class Drift:
    """Tokens per request as the server counted them, compared with the plan."""

    planned_mean: float
    mean: float
    low: int
    high: int
    off_ratio: float
    """Share of requests whose count differs from the plan."""

    @staticmethod
    def of(planned: Sequence[int], counted: Sequence[int]) -> Drift | None:
        """From the numbers of each request; None where nothing was planned or counted."""
        rows = [(p, c) for p, c in zip(planned, counted, strict=True) if p and c]
        if not rows:
            return None
        plan, actual = np.asarray(rows).T
        off = float(np.mean(plan != actual))
        return Drift(float(plan.mean()), float(actual.mean()), int(actual.min()), int(actual.max()), off)


@dataclass(frozen=True)
class ExtendedMetrics:
    """The module's docstring defines them."""

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
    """Share of token events that arrived in the same read as the one before."""
    reasoning_ratio: float
    """Share of requests with reasoning before the answer."""
    cached_ratio: float | None
    """Share of prompt tokens from the server's cache; None where it does not report any."""
    prompt_drift: Drift | None
    output_drift: Drift | None
    token_sources: dict[str, int]
    vllm_completed: int
    """Requests that vLLM's client would have counted as successful."""


def extended_metrics_of(records: Sequence[Record], percentiles: Sequence[float]) -> ExtendedMetrics:
    """The metrics of a set of records."""
    good = [record for record in records if record.ok]

    def stats(values: Sequence[float] | Floats) -> Stats:
        return Stats.of(values, percentiles)

    chunks = sum(int(np.count_nonzero(record.chunk_has_token)) for record in good)
    visible = [(r.first_visible_ns - r.start_ns) / 1e9 for r in good if r.first_visible_ns]
    prompts = sum(record.prompt_tokens for record in good)
    cached = sum(record.cached_tokens for record in good)
    sources: dict[str, int] = {}
    for record in good:
        sources[record.tokens_from] = sources.get(record.tokens_from, 0) + 1
    return ExtendedMetrics(
        first_token=stats([(r.first_token_ns - r.start_ns) / 1e9 for r in good if r.first_token_ns]),
        first_visible=stats(visible),
        token_gap=stats(_pool([token_gaps_s(record) for record in good])),
        read_gap=stats(_pool([_read_gaps_s(record) for record in good])),
        first_token_intended=stats([(r.first_token_ns - r.intended_ns) / 1e9 for r in good if r.first_token_ns]),
        e2e_intended=stats([(r.last_chunk_ns - r.intended_ns) / 1e9 for r in good]),
        queue=stats([(r.start_ns - r.intended_ns) / 1e9 for r in good]),
        connect=stats([r.connect_ns / 1e9 for r in good if r.connect_ns]),
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
    """Mean tokens per event with text. Servers report tokens per request only."""
    return record.output_tokens / max(1, int(np.count_nonzero(record.chunk_has_token)))


def token_gaps_s(record: Record) -> Floats:
    """Gaps between events with text, each divided by the tokens per event."""
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
