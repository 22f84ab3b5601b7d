"""From options to a job: the model is found, the tokenizer read, prompts made, intended times fixed."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from loadtest.api.requests import Api, BodyRules
from loadtest.data.datasets import FORCED, sample
from loadtest.data.from_file import trace
from loadtest.data.prompt import DatasetSpec, Prompt
from loadtest.data.tokenizer import PromptTokenizer, load_tokenizer
from loadtest.errors import DataError, UsageError
from loadtest.http.pool import Endpoint
from loadtest.http.probe import Served, find_model, open_endpoint
from loadtest.load.schedule import LoadSchedule, LoadSpec, parse_phases, phased_times, steady_times
from loadtest.load.sizing import WorkerCount, choose_worker_count, usable_cores
from loadtest.load.worker import Job, sessions_of

Times = np.ndarray[tuple[int], np.dtype[np.float64]] | None
DEFAULT_PROMPTS = 1000
"""vLLM's default."""
PROMPTS_PER_TIMED_RUN = 4096
"""Made for a closed loop that ends by the clock, whose need nobody knows beforehand."""
DEFAULT_CONCURRENCY = 32


@dataclass(frozen=True)
class TargetSpec:
    """Which server, and as whom."""

    url: str
    model: str | None = None
    api: Api = Api.CHAT
    headers: Mapping[str, str] = field(default_factory=dict)
    verify: bool = True
    ca_file: str | None = None
    tokenizer: str | None = None
    timeout_s: float = 6 * 3600.0
    reuse_connections: bool = True


@dataclass(frozen=True)
class Plan:
    """A run that is ready to start."""

    job: Job
    endpoint: Endpoint
    served: Served
    target: TargetSpec
    data: DatasetSpec
    load: LoadSpec
    tokenizer: PromptTokenizer | None
    worker_count: WorkerCount


async def reach(target: TargetSpec) -> tuple[Endpoint, Served]:
    """Find the server and its model before anything else is done."""
    endpoint = await open_endpoint(target.url, verify=target.verify, ca_file=target.ca_file)
    return endpoint, await find_model(endpoint, target.headers, target.model)


def tokenizer_for(target: TargetSpec, served: Served) -> PromptTokenizer | None:
    """The named tokenizer, or the one beside the served model where that is a local folder."""
    if target.tokenizer:
        return load_tokenizer(target.tokenizer)
    root = Path(served.root) if served.root else None
    return load_tokenizer(served.root) if root is not None and (root / "tokenizer.json").is_file() else None


def make_plan(target: TargetSpec, data: DatasetSpec, load: LoadSpec, endpoint: Endpoint, served: Served) -> Plan:
    """Everything slow that can be done before the clock starts."""
    tokenizer = tokenizer_for(target, served)
    prompts, times = _prompts_and_times(data, load, tokenizer)
    if target.api is Api.COMPLETIONS and data.dataset in ("sessions", "images", "tools"):
        raise UsageError(f"the completions API cannot carry {data.dataset}", "Use --api chat or --api messages")
    check_lengths(prompts, served)
    forced = data.ignore_eos if data.ignore_eos is not None else data.dataset in FORCED or bool(load.trace)
    run_id = secrets.token_hex(4)
    job = Job(
        prompts=prompts,
        rules=BodyRules(target.api, served.model, ignore_eos=forced, extra=data.extra_body),
        load=as_load(load, times),
        headers=target.headers,
        request_id_prefix=f"loadtest-{run_id}-",
        session_header=data.session_header,
        session_prefix=f"loadtest-{run_id}-",
        timeout_s=target.timeout_s,
        reuse_connections=target.reuse_connections,
    )
    return Plan(
        job,
        endpoint,
        served,
        target,
        data,
        load,
        tokenizer,
        choose_worker_count(load.workers, job.load, usable_cores()),
    )


def _prompts_and_times(
    data: DatasetSpec, load: LoadSpec, tokenizer: PromptTokenizer | None
) -> tuple[list[Prompt], Times]:
    rng = np.random.default_rng([data.seed, 1])  # a stream of its own: prompts must not depend on the load
    if load.trace:
        prompts = trace(data, tokenizer, data.num_prompts, file=load.trace, speed=load.trace_speed)
        return prompts, np.array([prompt.at_s or 0.0 for prompt in prompts])
    if load.phases:
        if data.num_prompts:
            raise UsageError("--phases fixes the number of requests", "Leave --num-prompts out")
        times = phased_times(parse_phases(load.phases), load.burstiness, rng)
        # In an open loop it is sessions that arrive; their turns follow by themselves.
        return sample(data, tokenizer, len(times) * (data.turns if data.dataset == "sessions" else 1)), times
    prompts = sample(data, tokenizer, data.num_prompts or _count(data, load))
    if load.rate < math.inf:
        return prompts, steady_times(len(sessions_of(prompts)), load.rate, load.burstiness, rng)
    return prompts, None


def as_load(load: LoadSpec, times: Times) -> LoadSchedule:
    """The load with its intended times."""
    return LoadSchedule(
        max_inflight=load.concurrency if times is not None else load.concurrency or DEFAULT_CONCURRENCY,
        times_s=tuple(times.tolist()) if times is not None else None,
        stop_after_s=load.duration_s,
    )


def _count(data: DatasetSpec, load: LoadSpec) -> int:
    if data.dataset == "jsonl" and math.isinf(load.duration_s):
        return 0  # every line once
    if math.isinf(load.duration_s):
        return DEFAULT_PROMPTS
    if load.rate < math.inf:
        return max(1, math.ceil(load.duration_s * load.rate * 1.2) + 10)
    return PROMPTS_PER_TIMED_RUN


def check_lengths(prompts: list[Prompt], served: Served) -> None:
    """Refuse prompts that the server must refuse, before 512 of them fail."""
    if not prompts:
        raise DataError("the data set gave no prompt", "Check --dataset-path")
    longest = max(prompts, key=lambda prompt: prompt.prompt_tokens + prompt.output_tokens)
    need = longest.prompt_tokens + longest.output_tokens
    if served.max_model_len and need > served.max_model_len:
        raise UsageError(
            f"{need} tokens of prompt and answer do not fit the model's {served.max_model_len}",
            "Lower --input-len or --output-len, or give the server a larger --max-model-len",
        )


def warmup_job(plan: Plan) -> Job | None:
    """A short run of other prompts: the measured ones must not be in the prefix cache yet."""
    if not plan.load.warmup:
        return None
    seed = int(np.random.default_rng([plan.data.seed, 2]).integers(2**31))
    data = replace(plan.data, seed=seed, num_prompts=plan.load.warmup)
    prompts = sample(data, plan.tokenizer, plan.load.warmup)
    load = LoadSchedule(max_inflight=plan.load.concurrency or DEFAULT_CONCURRENCY)
    return replace(plan.job, prompts=prompts, load=load, request_id_prefix=plan.job.request_id_prefix + "warmup-")
