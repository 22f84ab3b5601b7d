"""vLLM's part of the result file: its keys and their order, so that its plots and sweeps read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from loadtest.api.record import Run
from loadtest.api.requests import BACKENDS, Api
from loadtest.data.prompt import Json
from loadtest.metrics.vllm_metrics import Parity, itl_s, latency_s, ttft_s

METRICS = ("ttft", "tpot", "itl", "e2el")


@dataclass(frozen=True)
class About:
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
    crew: str = ""
    """How many client processes, and why."""


def vllm_result(about: About, run: Run, parity: Parity, *, detailed: bool) -> dict[str, Json]:
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
        "duration": parity.duration_s,
        "completed": parity.completed,
        "failed": parity.failed,
        "total_input_tokens": parity.total_input_tokens,
        "total_output_tokens": parity.total_output_tokens,
        "request_throughput": parity.request_throughput,
        "request_goodput": parity.request_goodput,
        "output_throughput": parity.output_throughput,
        "total_token_throughput": parity.total_token_throughput,
        **(_details(run) if detailed else {}),
        "latencies": [latency_s(record) for record in run.records],
        "queue_times": [(record.start_ns - _arrival_ns(record.intended_ns, run)) / 1e9 for record in run.records],
        "max_output_tokens_per_s": parity.max_output_tokens_per_s,
        "max_concurrent_requests": parity.max_concurrent_requests,
        "rtfx": 0.0,
    }
    for name in METRICS:
        out.update(_spread(name, parity))
    return out


def _arrival_ns(intended_ns: int, run: Run) -> int:
    return intended_ns or run.begin_ns


def _details(run: Run) -> dict[str, Json]:
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


def _spread(name: str, parity: Parity) -> dict[str, Json]:
    spread = getattr(parity, name)
    out: dict[str, Json] = {
        f"mean_{name}_ms": spread.mean,
        f"median_{name}_ms": spread.median,
        f"std_{name}_ms": spread.std,
    }
    for percentile, value in spread.percentiles.items():
        out[f"p{percentile:g}_{name}_ms"] = value
    return out
