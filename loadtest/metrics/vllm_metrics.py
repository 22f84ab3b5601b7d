"""The metrics and the result object of `vllm bench serve` (0.32), formula for formula: same bytes in, same bits out.

All arithmetic is on float seconds as `time.perf_counter()` returns them, in vLLM's order of operations, because a sum
in another order differs in its last bits. `extended_metrics.py` has what these metrics hide. It adds to them and
replaces none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from loadtest.api.record import Floats, Record, RunRecords, itl_s, latency_s, tpot_s, ttft_s
from loadtest.api.requests import BACKENDS, Api
from loadtest.data.prompt import Json


@dataclass(frozen=True)
class Stats:
    """Statistics of one metric in milliseconds; `std` is the population's."""

    mean: float
    median: float
    std: float
    percentiles: Mapping[float, float]

    @staticmethod
    def of(values: Sequence[float] | Floats, percentiles: Sequence[float]) -> Stats:
        """Statistics of values in seconds. No values give zeros, as in vLLM."""
        some = values if len(values) else [0.0]
        return Stats(
            mean=float(np.mean(some) * 1000),
            median=float(np.median(some) * 1000),
            std=float(np.std(some) * 1000),
            percentiles={p: float(np.percentile(some, p) * 1000) for p in percentiles},
        )


@dataclass(frozen=True)
class VllmMetrics:
    """The metrics of `vllm bench serve` for one set of records. Times in ms, rates per second of the whole run."""

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
    """vLLM's `calculate_metrics`, with this tool's stricter definition of success (`Record.ok`)."""
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
    """The most chunks (vLLM calls them tokens) and requests in any one second. Chunk times are the sums of the gaps."""
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


@dataclass(frozen=True)
class RunInfo:
    """The run's configuration, as the result file states it."""

    api: Api
    url: str
    model: str
    served_root: str
    tokenizer: str | None
    num_prompts: int
    max_concurrency: int | None
    request_rate: float
    burstiness: float
    label: str = ""
    metadata: Mapping[str, str] | None = None
    worker_count: str = ""
    """Number of client processes, and the reason for it."""


def vllm_result(run_info: RunInfo, run: RunRecords, vllm_metrics: VllmMetrics, *, detailed: bool) -> dict[str, Json]:
    """The object that `vllm bench serve --save-result` would have written for these records."""
    started = datetime.fromtimestamp(run.wall_start_s).astimezone()
    rate: Json = run_info.request_rate if run_info.request_rate < float("inf") else "inf"
    out: dict[str, Json] = {
        "date": started.strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": BACKENDS[run_info.api],
        "backend": BACKENDS[run_info.api],
        "label": run_info.label or None,
        "model_id": run_info.model,
        "tokenizer_id": run_info.tokenizer,
        "num_prompts": run_info.num_prompts,
        **(run_info.metadata or {}),
        "request_rate": rate,
        "burstiness": run_info.burstiness,
        "max_concurrency": run_info.max_concurrency,
        "duration": vllm_metrics.duration_s,
        "completed": vllm_metrics.completed,
        "failed": vllm_metrics.failed,
        "total_input_tokens": vllm_metrics.total_input_tokens,
        "total_output_tokens": vllm_metrics.total_output_tokens,
        "request_throughput": vllm_metrics.request_throughput,
        "request_goodput": vllm_metrics.request_goodput,
        "output_throughput": vllm_metrics.output_throughput,
        "total_token_throughput": vllm_metrics.total_token_throughput,
        **(_details(run) if detailed else {}),
        "latencies": [latency_s(record) for record in run.records],
        "queue_times": [(record.start_ns - _arrival_ns(record.intended_ns, run)) / 1e9 for record in run.records],
        "max_output_tokens_per_s": vllm_metrics.max_output_tokens_per_s,
        "max_concurrent_requests": vllm_metrics.max_concurrent_requests,
        "rtfx": 0.0,
    }
    for name in ("ttft", "tpot", "itl", "e2el"):
        out.update(_stats_fields(name, vllm_metrics))
    return out


def _arrival_ns(intended_ns: int, run: RunRecords) -> int:
    return intended_ns or run.begin_ns


def _details(run: RunRecords) -> dict[str, Json]:
    records = run.records
    return {
        "input_lens": [record.vllm_prompt_tokens for record in records],
        "output_lens": [record.output_tokens_or_one() if record.ok else 0 for record in records],
        "ttfts": [ttft_s(record) for record in records],
        "itls": [itl_s(record).tolist() for record in records],
        "start_times": [record.start_ns / 1e9 for record in records],
        "generated_texts": [record.text for record in records],
        "errors": [record.error for record in records],
    }


def _stats_fields(name: str, vllm_metrics: VllmMetrics) -> dict[str, Json]:
    stats = getattr(vllm_metrics, name)
    out: dict[str, Json] = {
        f"mean_{name}_ms": stats.mean,
        f"median_{name}_ms": stats.median,
        f"std_{name}_ms": stats.std,
    }
    for percentile, value in stats.percentiles.items():
        out[f"p{percentile:g}_{name}_ms"] = value
    return out
