"""Prepare a run: find the server and its model, load the tokenizer, make the prompts and the schedule."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from loadtest.api.requests import Api, BodySpec
from loadtest.data.datasets import FORCED_LENGTH, sample
from loadtest.data.from_file import trace
from loadtest.data.prompt import DatasetSpec, Prompt
from loadtest.data.tokenizer import PromptTokenizer, load_tokenizer
from loadtest.errors import DataError, UsageError
from loadtest.http.pool import Endpoint
from loadtest.http.probe import ServedModel, find_model, open_endpoint
from loadtest.load.schedule import LoadSchedule, LoadSpec, parse_phases, phased_times, steady_times
from loadtest.load.worker import WorkerJob, sessions_of
from loadtest.load.worker_processes import WorkerCount, choose_worker_count, usable_cores

Times = np.ndarray[tuple[int], np.dtype[np.float64]] | None
DEFAULT_PROMPTS = 1000
"""vLLM's default."""
PROMPTS_PER_TIMED_RUN = 4096
"""For a closed loop that ends after a duration: how many it will send is not known."""
DEFAULT_CONCURRENCY = 32
MAX_AGENT_WAVES = 10
"""Sessions per slot of a timed run, at most: a session of full size is half a megabyte of text."""


@dataclass(frozen=True)
class TargetSpec:
    """The server and how to access it."""

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
class LoadPlan:
    """A run that is ready to start."""

    job: WorkerJob
    endpoint: Endpoint
    served: ServedModel
    target: TargetSpec
    data: DatasetSpec
    load: LoadSpec
    tokenizer: PromptTokenizer | None
    worker_count: WorkerCount


async def find_server(target: TargetSpec) -> tuple[Endpoint, ServedModel]:
    """Connect to the server and find its model; done before anything slow. Raises TargetError."""
    endpoint = await open_endpoint(target.url, verify=target.verify, ca_file=target.ca_file)
    return endpoint, await find_model(endpoint, target.headers, target.model)


def tokenizer_for(target: TargetSpec, served: ServedModel) -> PromptTokenizer | None:
    """The specified tokenizer, or that of the served model where its folder is on this machine."""
    if target.tokenizer:
        return load_tokenizer(target.tokenizer)
    root = Path(served.root) if served.root else None
    return load_tokenizer(served.root) if root is not None and (root / "tokenizer.json").is_file() else None


def make_plan(
    target: TargetSpec, data: DatasetSpec, load: LoadSpec, endpoint: Endpoint, served: ServedModel
) -> LoadPlan:
    """Prepare everything slow before the clock starts. Raises UsageError and DataError."""
    tokenizer = tokenizer_for(target, served)
    if data.dataset == "agents":
        _check_agents(target, data, load)
    prompts, times = _prompts_and_times(data, load, tokenizer)
    if target.api is Api.COMPLETIONS and data.dataset in ("sessions", "images", "tools"):
        raise UsageError(f"the completions API cannot carry {data.dataset}", "Use --api chat or --api messages")
    check_lengths(prompts, served)
    ignore_eos = data.ignore_eos
    if ignore_eos is None:
        ignore_eos = data.dataset in FORCED_LENGTH or bool(load.trace)
    run_id = secrets.token_hex(4)
    job = WorkerJob(
        prompts=prompts,
        body_spec=BodySpec(target.api, served.model, ignore_eos=ignore_eos, extra=data.extra_body),
        load=schedule_of(load, times),
        headers=target.headers,
        request_id_prefix=f"loadtest-{run_id}-",
        session_header="" if data.dataset == "agents" else data.session_header,
        session_prefix=f"loadtest-{run_id}-",
        resend_reasoning=data.dataset == "agents",
        timeout_s=target.timeout_s,
        reuse_connections=target.reuse_connections,
    )
    return LoadPlan(
        job,
        endpoint,
        served,
        target,
        data,
        load,
        tokenizer,
        choose_worker_count(load.workers, job.load, usable_cores()),
    )


def _check_agents(target: TargetSpec, data: DatasetSpec, load: LoadSpec) -> None:
    """Raise UsageError for options that sessions of agents do not have."""
    if target.api is not Api.CHAT:
        raise UsageError("sessions of agents use the chat API", "Leave --api out")
    if data.num_prompts:
        raise UsageError("--num-prompts counts requests", "Use --total-sessions for agents")
    if load.warmup or load.trace:
        raise UsageError("sessions of agents exclude --num-warmups and --trace", "Leave them out")


def _prompts_and_times(
    data: DatasetSpec, load: LoadSpec, tokenizer: PromptTokenizer | None
) -> tuple[list[Prompt], Times]:
    rng = np.random.default_rng([data.seed, 1])  # separate from that of the prompts, which do not depend on the load
    if load.trace:
        prompts = trace(data, tokenizer, data.num_prompts, file=load.trace, speed=load.trace_speed)
        return prompts, np.array([prompt.at_s or 0.0 for prompt in prompts])
    if load.phases:
        if data.num_prompts:
            raise UsageError("--phases fixes the number of requests", "Leave --num-prompts out")
        times = phased_times(parse_phases(load.phases), load.burstiness, rng)
        # In an open loop the times are those of sessions; later turns follow the answers.
        return sample(data, tokenizer, len(times) * (data.turns if data.dataset == "sessions" else 1)), times
    prompts = sample(data, tokenizer, data.num_prompts or _prompt_count(data, load))
    if load.rate < math.inf:
        return prompts, steady_times(len(sessions_of(prompts)), load.rate, load.burstiness, rng)
    return prompts, None


def schedule_of(load: LoadSpec, times: Times) -> LoadSchedule:
    """The schedule of a load with these intended times."""
    return LoadSchedule(
        max_inflight=load.concurrency if times is not None else load.concurrency or DEFAULT_CONCURRENCY,
        times_s=tuple(times.tolist()) if times is not None else None,
        stop_after_s=load.duration_s,
    )


def _prompt_count(data: DatasetSpec, load: LoadSpec) -> int:
    """How many prompts (`agents`: sessions) to make where the user gave no number."""
    if data.dataset == "agents":
        return data.agents.total_sessions or _agent_session_count(data, load)
    if data.dataset == "jsonl" and math.isinf(load.duration_s):
        return 0  # every line once
    if math.isinf(load.duration_s):
        return DEFAULT_PROMPTS
    if load.rate < math.inf:
        return max(1, math.ceil(load.duration_s * load.rate * 1.2) + 10)
    return PROMPTS_PER_TIMED_RUN


def _agent_session_count(data: DatasetSpec, load: LoadSpec) -> int:
    """Enough sessions to keep every slot busy for the duration; without one, two per slot."""
    if load.rate < math.inf:
        return max(1, math.ceil(min(load.duration_s, 600.0) * load.rate * 1.2))
    waves = 2.0
    if not math.isinf(load.duration_s):
        # The means of turns and pauses are 1.2 and 1.65 times their medians; answers take time beside the pauses.
        waves += min(load.duration_s / max(1.0, data.turns * data.think_s * 2), MAX_AGENT_WAVES)
    return math.ceil((load.concurrency or DEFAULT_CONCURRENCY) * waves)


def check_lengths(prompts: list[Prompt], served: ServedModel) -> None:
    """Raise UsageError for prompts that the server would reject one by one, and DataError for none at all."""
    if not prompts:
        raise DataError("the data set gave no prompt", "Check --dataset-path")
    longest = max(prompts, key=lambda prompt: prompt.prompt_tokens + prompt.output_tokens)
    need = longest.prompt_tokens + longest.output_tokens
    if served.max_model_len and need > served.max_model_len:
        raise UsageError(
            f"{need} tokens of prompt and answer do not fit the model's {served.max_model_len}",
            "Lower --input-len or --output-len (agents: --agents-scale), or give the server a larger --max-model-len",
        )


def warmup_job(plan: LoadPlan) -> WorkerJob | None:
    """A short run of other prompts, so that the measured ones are not in the prefix cache; None without warm-up."""
    if not plan.load.warmup:
        return None
    seed = int(np.random.default_rng([plan.data.seed, 2]).integers(2**31))
    data = replace(plan.data, seed=seed, num_prompts=plan.load.warmup)
    prompts = sample(data, plan.tokenizer, plan.load.warmup)
    load = LoadSchedule(max_inflight=plan.load.concurrency or DEFAULT_CONCURRENCY)
    return replace(plan.job, prompts=prompts, load=load, request_id_prefix=plan.job.request_id_prefix + "warmup-")
