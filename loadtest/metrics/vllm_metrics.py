"""vLLM's benchmark figures, formula for formula (`vllm/benchmarks/serve.py`, 0.32): same bytes in, same bits out.

All arithmetic is on float seconds as `time.perf_counter()` gives them, in vLLM's order of operations, because a sum in
another order differs in its last bits. What these figures hide is shown by `metrics/extended_metrics.py`, beside them,
never instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from loadtest.api.record import Floats, Record, itl_s, latency_s, tpot_s, ttft_s


@dataclass(frozen=True)
class Stats:
    """One metric's summary in milliseconds; `std` is the population's."""

    mean: float
    median: float
    std: float
    percentiles: Mapping[float, float]

    @staticmethod
    def of(values: Sequence[float] | Floats, percentiles: Sequence[float]) -> Stats:
        """Summary of values in seconds. No values give zeros, as in vLLM."""
        some = values if len(values) else [0.0]
        return Stats(
            mean=float(np.mean(some) * 1000),
            median=float(np.median(some) * 1000),
            std=float(np.std(some) * 1000),
            percentiles={p: float(np.percentile(some, p) * 1000) for p in percentiles},
        )


@dataclass(frozen=True)
class VllmMetrics:
    """The figures of `vllm bench serve` for one set of records. Times in ms, rates per second of the whole run."""

    duration_s: float
    completed: int
    failed: int
    total_input_tokens: int
    total_output_tokens: int
    request_throughput: float
    request_goodput: float | None
    output_throughput: float
    total_token_throughput: float
    max_output_tokens_per_s: float
    max_concurrent_requests: int
    ttft: Stats
    tpot: Stats
    itl: Stats
    e2el: Stats


def compute_vllm_metrics(
    records: Sequence[Record],
    duration_s: float,
    percentiles: Sequence[float],
    goodput_ms: Mapping[str, float] | None = None,
) -> VllmMetrics:
    """vLLM's `calculate_metrics`, with this tool's stricter notion of success (`Record.ok`)."""
    good = [record for record in records if record.ok]
    ttfts = [ttft_s(record) for record in good]
    e2els = [latency_s(record) for record in good]
    all_tpots = [tpot_s(record) for record in good]
    tpots = [tpot for tpot, record in zip(all_tpots, good, strict=True) if record.output_tokens_or_one() > 1]
    itls = np.concatenate([itl_s(record) for record in good]) if good else np.zeros(0)
    inputs = sum(record.vllm_prompt_tokens for record in good)
    outputs = sum(record.output_tokens_or_one() for record in good)
    goodput = None
    if goodput_ms:
        goodput = _good_count(goodput_ms, {"ttft": ttfts, "tpot": all_tpots, "e2el": e2els}) / duration_s
    peak_tokens, peak_requests = _peaks(good)
    return VllmMetrics(
        duration_s=duration_s,
        completed=len(good),
        failed=sum(record.failed for record in records),
        total_input_tokens=inputs,
        total_output_tokens=outputs,
        request_throughput=len(good) / duration_s,
        request_goodput=goodput,
        output_throughput=outputs / duration_s,
        total_token_throughput=(inputs + outputs) / duration_s,
        max_output_tokens_per_s=peak_tokens,
        max_concurrent_requests=peak_requests,
        ttft=Stats.of(ttfts, percentiles),
        tpot=Stats.of(tpots, percentiles),
        itl=Stats.of(itls, percentiles),
        e2el=Stats.of(e2els, percentiles),
    )


def _good_count(limits_ms: Mapping[str, float], metrics: Mapping[str, Sequence[float]]) -> int:
    rows = zip(*(metrics[name] for name in limits_ms), strict=True)
    limits = [limit / 1000 for limit in limits_ms.values()]
    return sum(all(limit >= value for limit, value in zip(limits, row, strict=True)) for row in rows)


def _peaks(good: Sequence[Record]) -> tuple[float, int]:
    """Busiest second in chunks (vLLM calls them tokens) and in requests. Chunk times are summed up from the gaps."""
    if not good:
        return 0.0, 0
    first = min(record.start_ns / 1e9 for record in good)
    last = max(record.start_ns / 1e9 + latency_s(record) for record in good)
    running = np.zeros(math.ceil(last - first) + 1)
    seconds = []
    for record in good:
        start = record.start_ns / 1e9
        times = np.cumsum(np.concatenate(([start + ttft_s(record)], itl_s(record))))
        seconds.append((times - first).astype(np.int64))
        running[int(start - first) : int(start + latency_s(record) - first) + 1] += 1
    every = np.concatenate(seconds)
    chunks = np.bincount(every[(every >= 0) & (every < len(running))], minlength=1)
    return float(chunks.max()), int(running.max())
