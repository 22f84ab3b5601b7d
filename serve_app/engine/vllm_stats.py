"""vLLM's own statistics of an engine, kept where the engine is.

Time to first token, inter-token latency, queue time and the rest come from vLLM's `OutputProcessor` as it follows each
request; counts of the scheduler, KV cache and speculative decoding come with each step. Both go to vLLM's stat loggers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # importing vLLM takes seconds; `python -m serve_app.compat.names` reads these
    from vllm.config import VllmConfig
    from vllm.v1.engine import EngineCoreOutputs, EngineCoreRequest


class VllmStatistics:
    """Follows requests for the sake of their figures: without a tokenizer it decodes nothing, and stops nothing."""

    def __init__(self, vllm_config: VllmConfig, engine_indexes: list[int], factories: Sequence[Any]) -> None:
        from vllm.v1.engine.output_processor import OutputProcessor
        from vllm.v1.metrics.loggers import StatLoggerManager
        from vllm.v1.metrics.stats import IterationStats

        self._new_iteration = IterationStats
        self._processor = OutputProcessor(None, log_stats=True)
        self._loggers = StatLoggerManager(
            vllm_config=vllm_config,
            engine_idxs=engine_indexes,
            custom_stat_loggers=list(factories),
            enable_default_loggers=True,
        )
        self._loggers.log_engine_initialized()

    def add(self, request: EngineCoreRequest) -> None:
        """Follow a request that goes to the engine. It is not changed."""
        from vllm.sampling_params import RequestOutputKind

        params = copy.copy(request.sampling_params)
        params.detokenize = False
        params.output_kind = RequestOutputKind.FINAL_ONLY  # builds no output before the end
        params.logprobs = params.prompt_logprobs = None
        followed = copy.copy(request)
        followed.sampling_params = params
        self._processor.add_request(followed, None)

    def abort(self, request_id: str) -> None:
        """Stop following a request that has been aborted."""
        self._processor.abort_requests([request_id], internal=True)

    def record(self, outputs: EngineCoreOutputs) -> None:
        """Count one step's outputs. Their log probabilities are dropped: whoever wants them has read them before."""
        iteration = self._new_iteration() if outputs.outputs else None
        for output in outputs.outputs:
            output.new_logprobs = output.new_prompt_logprobs_tensors = None
            output.new_sampling_mask = output.routed_experts = output.prompt_token_id_logprobs = None
        self._processor.process_outputs(outputs.outputs, outputs.timestamp, iteration)
        self._processor.update_scheduler_stats(outputs.scheduler_stats)
        self._loggers.record(
            scheduler_stats=outputs.scheduler_stats, iteration_stats=iteration, engine_idx=outputs.engine_index
        )

    def log(self) -> None:
        """Have vLLM's console logger print its line about the time since the last call."""
        self._loggers.log()
