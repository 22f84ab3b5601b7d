"""Requests that a new engine runs before it is ready, so that nothing compiles or allocates while a user waits.

vLLM warms up the model's forward pass, and only where CUDA graphs or torch.compile are on. Real requests of each kind
build what else is built at its first use: log probabilities, penalties, seeded sampling, the grammar back end, thinking
budgets, a second chunk of a prompt, batch sizes, images of several sizes. A kind that the engine refuses is skipped
with a log line: it would refuse a user's as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from serve_app.protocol.messages import WIRE_VERSION, AttemptRequest, RequestSpec, encode_tokens

if TYPE_CHECKING:  # importing vLLM takes seconds; `python -m serve_app.vllm_patches.vllm_api_check` reads these
    from vllm.config import VllmConfig
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.serial_utils import MsgpackEncoder

SHORT_PROMPT_TOKENS = 48
ANSWER_TOKENS = 6
DRAFTED_ANSWER_TOKENS = 32
"""Long enough for drafts to be accepted and rejected."""

SMALLEST_BATCH = 16
"""Smaller batches are run by the other kinds."""

LARGEST_BATCH = 64
"""Batches above this use the kernels of this one."""

LONGEST_CHUNK_TOKENS = 16_384
"""A prompt longer than one chunk is tried where a chunk is at most this long."""

IMAGE_SIZES = ((64, 48), (900, 700))
"""One that is a single tile for Step's processor, and one that is cut into patches."""

JSON_SCHEMA = '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}'


@dataclass(frozen=True)
class WarmUpKind:
    """Requests of one kind, that run together. `name` is shown in the start's timeline."""

    name: str
    requests: list[EngineCoreRequest]


def kinds(config: VllmConfig) -> Iterator[WarmUpKind]:
    """The kinds that this engine may be asked for, in the order in which they run.

    What is built for a request of its own runs in one batch. Separate are kinds that depend on the whole batch (its
    size, that all of it is sampled) or take memory by themselves (a whole chunk, images).
    """
    make = _Maker(config)
    yield WarmUpKind("a request", [make.request(max_tokens=ANSWER_TOKENS)])
    size = SMALLEST_BATCH
    while size <= min(config.scheduler_config.max_num_seqs, LARGEST_BATCH):
        yield WarmUpKind(f"{size} requests at a time", [make.request(max_tokens=ANSWER_TOKENS) for _ in range(size)])
        size *= 4
    yield WarmUpKind(
        "sampling",
        [
            make.request(max_tokens=DRAFTED_ANSWER_TOKENS, temperature=1.0),
            make.request(max_tokens=ANSWER_TOKENS, temperature=0.7, top_p=0.9, top_k=20, seed=7),
            make.request(max_tokens=ANSWER_TOKENS, temperature=1.3, top_k=3),
            make.request(max_tokens=ANSWER_TOKENS, temperature=1.0, top_p=0.5),
        ],
    )
    yield _together(config, make)
    chunk = config.scheduler_config.max_num_batched_tokens
    if chunk <= LONGEST_CHUNK_TOKENS and chunk + SHORT_PROMPT_TOKENS < config.model_config.max_model_len:
        long = chunk + SHORT_PROMPT_TOKENS // 2
        yield WarmUpKind(
            "a long prompt", [make.request(tokens=long, max_tokens=ANSWER_TOKENS, temperature=1.0, seed=7)]
        )
    if config.model_config.is_multimodal_model:
        yield _images(config)


def _together(config: VllmConfig, make: _Maker) -> WarmUpKind:
    """Everything that a request may ask for besides its text, in one batch."""
    of_kind = {
        "log probabilities": [
            *(make.request(max_tokens=ANSWER_TOKENS, logprobs=count) for count in (0, 5)),
            make.request(max_tokens=ANSWER_TOKENS, prompt_logprobs=5),
        ],
        "penalties": [
            make.request(max_tokens=ANSWER_TOKENS, repetition_penalty=1.2),
            make.request(max_tokens=ANSWER_TOKENS, presence_penalty=0.5, frequency_penalty=0.5, temperature=0.5),
            make.request(max_tokens=ANSWER_TOKENS, min_tokens=2),
        ],
        "grammars": _grammars(config, make),
    }
    if config.speculative_config is None:  # vLLM refuses both beside drafts
        biased = make.request(max_tokens=ANSWER_TOKENS, min_p=0.1, temperature=1.0, logit_bias={5: 1.0})
        of_kind["biases"] = [biased]
    else:
        of_kind["drafts"] = [make.request(repeats=True, max_tokens=DRAFTED_ANSWER_TOKENS)]
    if getattr(config, "reasoning_config", None) is not None:
        of_kind["a thinking budget"] = [make.request(max_tokens=DRAFTED_ANSWER_TOKENS, thinking_token_budget=4)]
    return WarmUpKind(", ".join(of_kind), [request for requests in of_kind.values() for request in requests])


def core_request(
    request_id: str,
    prompt_token_ids: list[int],
    params: SamplingParams,
    *,
    mm_features: Any = None,
    reasoning_ended: bool | None = None,
) -> EngineCoreRequest:
    """A request in the engine's own form, made without a front end."""
    from vllm.v1.engine import EngineCoreRequest

    return EngineCoreRequest(
        request_id=request_id,
        prompt_token_ids=prompt_token_ids,
        mm_features=mm_features,
        sampling_params=params,
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
        reasoning_ended=reasoning_ended,
    )


def attempt_of(request: EngineCoreRequest, encoder: MsgpackEncoder) -> AttemptRequest:
    """The request as an ingress would send it."""
    payload = copy(request)
    payload.prompt_token_ids = []
    params = request.sampling_params
    return AttemptRequest(
        wire_version=WIRE_VERSION,
        attempt_id=request.request_id,
        ingress_id="warm-up",
        spec=RequestSpec(
            request_id=request.request_id,
            prompt=encode_tokens(request.prompt_token_ids or ()),
            max_tokens=params.max_tokens,
            min_tokens=params.min_tokens,
            ignore_eos=params.ignore_eos,
            stop_token_ids=[],
            priority=0,
            payload=[bytes(buffer) for buffer in encoder.encode(payload)],
        ),
        emitted_token_ids=[],
    )


def _grammars(config: VllmConfig, make: _Maker) -> list[EngineCoreRequest]:
    from vllm.sampling_params import StructuredOutputsParams

    backend = config.structured_outputs_config.backend
    # `auto` is xgrammar for all of these; an engine keeps the back end that its first request asked for.
    backend = "xgrammar" if backend == "auto" else backend
    requests = []
    for grammar in (
        {"json": JSON_SCHEMA},
        {"regex": "[a-z]{1,8}"},
        {"grammar": 'root ::= "yes" | "no"'},
        {"json_object": True},
    ):
        params = StructuredOutputsParams(**grammar)
        params._backend = backend  # noqa: SLF001  # vLLM's front end sets it the same way
        requests.append(make.request(max_tokens=DRAFTED_ANSWER_TOKENS, structured_outputs=params))
    return requests


class _Maker:
    """Makes requests with prompts that differ, so that none finds another's prefix in the cache."""

    def __init__(self, config: VllmConfig) -> None:
        self._vocab_size = config.model_config.get_vocab_size()
        self._count = 0

    def request(
        self, tokens: int = SHORT_PROMPT_TOKENS, *, repeats: bool = False, **sampling: Any
    ) -> EngineCoreRequest:
        from vllm.sampling_params import SamplingParams

        self._count += 1
        # Below the special tokens, which vocabularies keep at their end: an image's placeholder would want an image.
        plain = max(self._vocab_size // 2, 1)
        seed = self._count * 7919
        prompt = [(seed + (place % 4 if repeats else place * (place + 31))) % plain for place in range(tokens)]
        params = SamplingParams(**{"temperature": 0.0, "ignore_eos": True, **sampling})
        # A grammar applies from the first token: reasoning of a warm-up has no end.
        ended = True if "structured_outputs" in sampling else None
        return core_request(f"warm-up-{self._count}", prompt, params, reasoning_ended=ended)


def _images(config: VllmConfig) -> WarmUpKind:
    """Requests with one image each, made as an ingress makes them: by vLLM's own renderer and processor."""
    from PIL import Image
    from vllm.model_executor.model_loader import get_model_cls
    from vllm.renderers import renderer_from_config
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine.input_processor import InputProcessor

    placeholder = get_model_cls(config.model_config).get_placeholder_str("image", 0)
    renderer = renderer_from_config(config)
    try:
        processor = InputProcessor(config, renderer)
        requests = []
        for width, height in IMAGE_SIZES:
            image = Image.new("RGB", (width, height), "white")
            prompt = {"prompt": f"{placeholder}What is it?", "multi_modal_data": {"image": image}}
            params = SamplingParams(temperature=0.0, max_tokens=ANSWER_TOKENS)
            name = f"warm-up-image-{width}x{height}"
            requests.append(processor.process_inputs(name, prompt, params, supported_tasks=("generate",)))
        return WarmUpKind("images of " + " and ".join(f"{width}x{height}" for width, height in IMAGE_SIZES), requests)
    finally:
        renderer.shutdown()
