"""Between our messages and vLLM's engine: an attempt becomes an engine core request, a step's output a delta.

`ObservedCore` sees the raw outputs of each step before `AsyncLLM` does; they go to the ingress. `AsyncLLM` handles them
afterwards only for its metrics (time to first token, inter-token latency, queue time, KV use, accepted draft tokens):
its requests here have no tokenizer, no stop strings and no output before their end, because the ingress does that.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from serve_app.engine.vllm_tracing import trace_sampled_only
from serve_app.protocol.errors import AttemptRefused
from serve_app.protocol.messages import AttemptRequest, EngineTiming, TokenDelta, count_tokens
from serve_app.protocol.pages import PromptImage, prompt_pages
from serve_app.vllm_patches import resume

if TYPE_CHECKING:  # importing vLLM takes seconds; `python -m serve_app.vllm_patches.vllm_api_check` reads these
    from vllm.v1.engine import EngineCoreEvent, EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

QUEUED, SCHEDULED, PREEMPTED = 1, 2, 3
"""The values of vLLM's `EngineCoreEventType`."""

BEYOND_TOKENS = (
    "new_logprobs",
    "new_prompt_logprobs_tensors",
    "kv_transfer_params",
    "ec_transfer_params",
    "routed_experts",
    "new_sampling_mask",
    "spec_decode_metrics",
    "prompt_token_id_logprobs",
)
"""Fields of an `EngineCoreOutput` without a field in `TokenDelta`. If one is set, the whole output is sent along."""


def image_name(feature: Any) -> str:
    """What a processed image (`MultiModalFeatureSpec`) is called between ingress and replica: vLLM's hash of it."""
    name: str = feature.mm_hash or feature.identifier
    return name


def pages_of(request: EngineCoreRequest) -> list[int]:
    """The pages of its prompt, with what vLLM hashes into a block beside the tokens: images, and a cache salt."""
    images = [
        PromptImage(one.identifier, one.mm_position.offset, one.mm_position.offset + one.mm_position.length)
        for one in request.mm_features or ()
    ]
    return prompt_pages(request.prompt_token_ids or [], images, request.cache_salt)


def engine_request(
    attempt: AttemptRequest, max_model_len: int, decoder: MsgpackDecoder, image_decoder: MsgpackDecoder
) -> EngineCoreRequest:
    """The `EngineCoreRequest` of an attempt, by decoders of that type and of `MultiModalKwargsItem`.

    Raises `AttemptRefused` for one that the engine could never run.
    """
    if (tokens := attempt.spec.prompt_tokens) >= max_model_len:
        raise AttemptRefused(f"the prompt has {tokens} tokens; the engine holds {max_model_len} with the answer")
    # Tensors are views on their buffer, which torch wants to be writable.
    buffers = [bytearray(buffer) for buffer in attempt.spec.payload]
    try:
        request: EngineCoreRequest = decoder.decode(buffers)
        for feature in request.mm_features or ():
            if feature.data is None:
                feature.data = image_decoder.decode(attempt.images[image_name(feature)])
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
        raise AttemptRefused(f"not a request of this vLLM: {error}") from error
    return as_attempt(request, attempt)


def as_attempt(request: EngineCoreRequest, attempt: AttemptRequest) -> EngineCoreRequest:
    """vLLM's request, made the request of this attempt. Its token ids are encoded where they go on as they came."""
    emitted = attempt.emitted_token_ids
    request.request_id = attempt.attempt_id
    request.external_req_id = attempt.spec.request_id
    request.prompt_token_ids = attempt.spec.prompt_token_ids + emitted if emitted else attempt.spec.prompt
    request.priority = attempt.spec.priority
    request.trace_headers = attempt.trace_headers or None
    # The engine's metrics count from here: another machine's clock would falsify them.
    request.arrival_time = time.time()
    params = request.sampling_params
    params.detokenize = False
    params.stop = []  # the ingress looks for them in the text
    params.max_tokens = attempt.spec.max_tokens - len(emitted)
    params.min_tokens = max(0, attempt.spec.min_tokens - len(emitted))
    resume.encode_resume(params, len(emitted), attempt.spec.min_tokens)
    if params.extra_args:
        # A client may ask that blocks are reported as stored once more: `cached_pages.py` counts them.
        params.extra_args.pop("kv_cache_report_mode", None)
    if emitted:
        params.prompt_logprobs = None  # the first attempt gave them
    return request


def engine_timing(events: Sequence[EngineCoreEvent], step_s: float) -> EngineTiming:
    """Where the time went, from vLLM's events of a request since its last output; `step_s` is the stamp of the step
    that gave this output, on the events' clock.

    A preemption before the first token counts as prefill.
    """
    queued_s = scheduled_s = preempted_s = None
    preemptions = 0
    for event in events:
        if event.type == QUEUED:
            queued_s = event.timestamp
        elif event.type == SCHEDULED:
            scheduled_s = event.timestamp if scheduled_s is None else scheduled_s
        elif event.type == PREEMPTED:
            preempted_s = event.timestamp if preempted_s is None else preempted_s
            preemptions += 1
    if queued_s is None or scheduled_s is None:
        # Lost until this output: what was computed before a preemption is computed again.
        lost_s = 0.0 if preempted_s is None else max(step_s - preempted_s, 0.0)
        return EngineTiming(preempted_s=lost_s, preemptions=preemptions)
    return EngineTiming(
        engine_queue_s=max(scheduled_s - queued_s, 0.0),
        prefill_s=max(step_s - scheduled_s, 0.0),
        preemptions=preemptions,
    )


def token_delta(
    output: EngineCoreOutput, attempt_id: str, position: int, encoder: MsgpackEncoder, step_s: float
) -> TokenDelta:
    """An output as a delta. `position` counts the request's tokens before it, `step_s` is the stamp of its step."""
    if position:
        # Without our plugin an engine takes the emitted tokens for prompt: the client would get a larger count of
        # cached tokens than its prompt has.
        output.prefill_stats = None
    extra = None
    for name in BEYOND_TOKENS:
        if getattr(output, name) is not None:
            extra = [bytes(buffer) for buffer in encoder.encode(output)]
            break
    prefill = output.prefill_stats
    return TokenDelta(
        attempt_id,
        position,
        output.new_token_ids,
        finish_reason=None if output.finish_reason is None else int(output.finish_reason),
        stop_reason=output.stop_reason,
        cached_tokens=None if prefill is None else prefill.num_cached_tokens,
        cache_creation_tokens=None if prefill is None else prefill.num_cache_creation_tokens,
        extra=extra,
        timing=engine_timing(output.events, step_s) if output.events else None,
    )


class ObservedCore:
    """vLLM's client of an engine core that also calls `on_step` with each output and `on_failure` with its error."""

    def __init__(
        self, core: Any, on_step: Callable[[EngineCoreOutputs], None], on_failure: Callable[[Exception], None]
    ) -> None:
        self._core = core
        self._on_step = on_step
        self._on_failure = on_failure

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    async def get_output_async(self) -> EngineCoreOutputs:
        """The next step's outputs, after `on_step` has seen them."""
        try:
            outputs: EngineCoreOutputs = await self._core.get_output_async()
            self._on_step(outputs)
        except Exception as error:  # whatever it is, no further token comes
            self._on_failure(error)
            raise
        for output in outputs.outputs:
            # Large, not needed for metrics, and read by `on_step` already.
            output.new_logprobs = output.new_prompt_logprobs_tensors = None
            output.new_sampling_mask = output.routed_experts = output.prompt_token_id_logprobs = None
        return outputs


def observe_core(
    llm: AsyncLLM, on_step: Callable[[EngineCoreOutputs], None], on_failure: Callable[[Exception], None]
) -> None:
    """Observe the engine core of `llm`, and start its output handler on the calling event loop."""
    trace_sampled_only(llm.output_processor)
    llm.engine_core = ObservedCore(llm.engine_core, on_step, on_failure)
    llm._run_output_handler()  # noqa: SLF001  # would start with `generate`, which is not called here


async def add_request(llm: AsyncLLM, request: EngineCoreRequest) -> None:
    """Send a request to the engine core, and let `llm` keep its metrics. `request` is not changed."""
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.output_processor import RequestOutputCollector

    params = copy.copy(request.sampling_params)
    params.detokenize = False
    params.output_kind = RequestOutputKind.FINAL_ONLY
    params.logprobs = params.prompt_logprobs = None
    followed = copy.copy(request)
    followed.sampling_params = params
    if isinstance(request.prompt_token_ids, msgspec.Raw):
        followed.prompt_token_ids = range(count_tokens(request.prompt_token_ids))  # for their number
    collector = RequestOutputCollector(RequestOutputKind.FINAL_ONLY, request.request_id)
    llm.output_processor.add_request(followed, None, None, 0, collector)
    leave_out_cached_images(llm.renderer.mm_processor_cache, request)
    await llm.engine_core.add_request_async(request)


def leave_out_cached_images(cache: Any, request: EngineCoreRequest) -> None:
    """Take those images out of the request that its engine core has cached. Call it directly before the request is
    sent: `cache` is vLLM's mirror of the core's cache, and has to see the same requests in the same order. It is no
    mirror where an engine has several cores (data parallelism); then nothing is left out."""
    from vllm.multimodal.cache.lru import LruKeyReplicatedSenderCache

    if not request.mm_features or not isinstance(cache, LruKeyReplicatedSenderCache):
        return
    for feature in request.mm_features:
        cache.touch_sender_cache_item(image_name(feature))
    for feature in request.mm_features:
        # The prompt's placeholders, which vLLM keeps beside the item, were filled by the ingress.
        feature.data, _ = cache.get_and_update_item((feature.data, ()), image_name(feature))
