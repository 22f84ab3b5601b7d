"""vLLM's part of the result file: its keys and their order, so that its plots and sweeps read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from loadtest.api.record import RunRecords, itl_s, latency_s, ttft_s
from loadtest.api.requests import BACKENDS, Api
from loadtest.data.prompt import Json
from loadtest.metrics.vllm_metrics import VllmMetrics

METRICS = ("ttft", "tpot", "itl", "e2el")


@dataclass(frozen=True)
class RunInfo:
    """What was run against what; goes into the file as it stands."""

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
    """How many client processes, and why."""


def vllm_result(about: RunInfo, run: RunRecords, vllm_metrics: VllmMetrics, *, detailed: bool) -> dict[str, Json]:
    """The object that `vllm bench serve --save-result` would have written for these records."""
    started = datetime.fromtimestamp(run.wall_start_s).astimezone()
    rate: Json = about.request_rate if about.request_rate < float("inf") else "inf"
    out: dict[str, Json] = {
        "date": started.strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": BACKENDS[about.api],
        "backend": BACKENDS[about.api],
        "label": about.label or None,
        "model_id": about.model,
        "tokenizer_id": about.tokenizer,
        "num_prompts": about.num_prompts,
        **(about.metadata or {}),
        "request_rate": rate,
        "burstiness": about.burstiness,
        "max_concurrency": about.max_concurrency,
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
    for name in METRICS:
        out.update(_spread(name, vllm_metrics))
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


def _spread(name: str, vllm_metrics: VllmMetrics) -> dict[str, Json]:
    spread = getattr(vllm_metrics, name)
    out: dict[str, Json] = {
        f"mean_{name}_ms": spread.mean,
        f"median_{name}_ms": spread.median,
        f"std_{name}_ms": spread.std,
    }
    for percentile, value in spread.percentiles.items():
        out[f"p{percentile:g}_{name}_ms"] = value
    return out
