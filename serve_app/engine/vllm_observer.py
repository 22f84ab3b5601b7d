"""`AsyncLLM` with a tap between it and its engine core.

The tap sees each step's raw outputs first: they are what goes to the ingress. `AsyncLLM` then handles them as ever, but
for the sake of its figures alone (time to first token, inter-token latency, queue time, KV use, accepted draft tokens):
here its requests have no tokenizer, no stop strings and no output before their end, because the ingress does all that.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.v1.engine import EngineCoreOutputs, EngineCoreRequest
    from vllm.v1.engine.async_llm import AsyncLLM


class TappedCore:
    """vLLM's client of an engine core, which tells `on_step` what it gets and `on_failure` why it gets no more."""

    def __init__(
        self, core: Any, on_step: Callable[[EngineCoreOutputs], None], on_failure: Callable[[Exception], None]
    ) -> None:
        self._core = core
        self._on_step = on_step
        self._on_failure = on_failure

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    async def get_output_async(self) -> EngineCoreOutputs:
        """The next step's outputs, once the tap has seen them."""
        try:
            outputs: EngineCoreOutputs = await self._core.get_output_async()
            self._on_step(outputs)
        except Exception as error:  # whatever it is, no token comes through here any more
            self._on_failure(error)
            raise
        for output in outputs.outputs:
            # Large, and of no use to the figures; who wants them has read them.
            output.new_logprobs = output.new_prompt_logprobs_tensors = None
            output.new_sampling_mask = output.routed_experts = output.prompt_token_id_logprobs = None
        return outputs


def tap(llm: AsyncLLM, on_step: Callable[[EngineCoreOutputs], None], on_failure: Callable[[Exception], None]) -> None:
    """Put the tap in and let `llm` run on the calling event loop."""
    llm.engine_core = TappedCore(llm.engine_core, on_step, on_failure)
    llm._run_output_handler()  # noqa: SLF001  # would start with `generate`, which is not called here


async def add(llm: AsyncLLM, request: EngineCoreRequest) -> None:
    """Send a request to the engine core, and have `llm` keep its figures. `request` is not changed."""
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.output_processor import RequestOutputCollector

    params = copy.copy(request.sampling_params)
    params.detokenize = False
    params.output_kind = RequestOutputKind.FINAL_ONLY
    params.logprobs = params.prompt_logprobs = None
    followed = copy.copy(request)
    followed.sampling_params = params
    collector = RequestOutputCollector(RequestOutputKind.FINAL_ONLY, request.request_id)
    llm.output_processor.add_request(followed, None, None, 0, collector)
    await llm.engine_core.add_request_async(request)
