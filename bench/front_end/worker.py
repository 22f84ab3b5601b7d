"""A worker of vLLM's engine core that computes nothing: each step ends at a set time and gives a few tokens.

Scheduler, KV cache blocks, processes and sockets are vLLM's own, so that the front ends have a real engine core behind
them: `--worker-cls bench.front_end.worker.PacedWorker`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.worker.worker_base import CompilationTimes, WorkerBase

from bench.front_end.pace import FIRST_WORD, REASONING_STEPS, STEPS_PER_S, THINK_END, TOKENS_OF_A_STEP, WORDS

MEMORY_BYTES: Final = 400_000 * 64
"""For 400,000 blocks of the cache, which has one layer with one head of size one."""


@dataclass
class _Sequence:
    unread: int
    """Tokens of the prompt that no step has had yet."""
    seed: int
    steps: int = 0


class PacedWorker(WorkerBase):  # type: ignore[misc]  # vLLM is not read by mypy
    """vLLM's `WorkerBase` without a model. Steps end at multiples of the period on the monotonic clock."""

    def __init__(self, *args: Any, **named: Any) -> None:
        named.pop("shared_worker_lock", None)
        super().__init__(*args, **named)
        settings: Mapping[str, Any] = self.vllm_config.additional_config
        self._period_s = 1.0 / float(settings[STEPS_PER_S])
        self._think_end = int(settings[THINK_END])
        self._sequences: dict[str, _Sequence] = {}

    def init_device(self) -> None:
        """See `WorkerBase`."""
        self.device = torch.device("cpu")

    def load_model(self, *, load_dummy_weights: bool = False) -> None:
        """See `WorkerBase`."""

    def get_kv_cache_spec(self) -> dict[str, KVCacheSpec]:
        """See `WorkerBase`."""
        block_size = self.cache_config.block_size
        return {"layer": FullAttentionSpec(block_size=block_size, num_kv_heads=1, head_size=1, dtype=torch.bfloat16)}

    def get_supported_kv_cache_layouts(self) -> list[str]:
        """See `WorkerBase`."""
        return ["LBNHC"]

    def determine_available_memory(self) -> int:
        """See `WorkerBase`."""
        return MEMORY_BYTES * int(self.cache_config.block_size) // 16

    def initialize_from_config(self, kv_cache_config: object) -> None:
        """See `WorkerBase`."""

    def compile_or_warm_up_model(self) -> CompilationTimes:
        """See `WorkerBase`."""
        return CompilationTimes(0.0, 0.0)

    def get_supported_tasks(self) -> tuple[str, ...]:
        """See `WorkerBase`."""
        return ("generate",)

    def update_max_model_len(self, max_model_len: int) -> None:
        """See `WorkerBase`."""

    def shutdown(self) -> None:
        """See `WorkerBase`."""

    def execute_model(self, scheduler_output: SchedulerOutput) -> ModelRunnerOutput:
        """One step: a few tokens for each sequence whose prompt has been read."""
        for request_id in scheduler_output.finished_req_ids:
            self._sequences.pop(request_id, None)
        for new in scheduler_output.scheduled_new_reqs:
            prompt = new.prompt_token_ids or []
            unread = len(prompt) - new.num_computed_tokens
            self._sequences[new.req_id] = _Sequence(unread, seed=sum(prompt[-8:]))
        if scheduler_output.total_num_scheduled_tokens:
            time.sleep(self._period_s - time.monotonic() % self._period_s)
        scheduled = scheduler_output.num_scheduled_tokens
        return ModelRunnerOutput(
            req_ids=list(scheduled),
            req_id_to_index={request_id: index for index, request_id in enumerate(scheduled)},
            sampled_token_ids=[self._sample(request_id, count) for request_id, count in scheduled.items()],
        )

    def _sample(self, request_id: str, scheduled: int) -> list[int]:
        sequence = self._sequences[request_id]
        sequence.unread -= scheduled
        if sequence.unread > 0:
            return []
        step, sequence.steps = sequence.steps, sequence.steps + 1
        count = TOKENS_OF_A_STEP[step % len(TOKENS_OF_A_STEP)]
        if step == REASONING_STEPS:
            return [self._think_end] * count
        start = sequence.seed + step * len(TOKENS_OF_A_STEP) * 7919
        return [FIRST_WORD + (start + place * 7919) % WORDS for place in range(count)]
