"""Closes the gaps of vLLM's CPU backend that keep Step-3.7-Flash from running there.

It does nothing on other platforms, nor in a front end of GPU engines, to which vLLM's CPU platform is a way to ask for
no device (`vllm_device.py`), and nothing in a vLLM version that is not known to have the gaps.
"""

from __future__ import annotations

import logging
import time
from types import ModuleType
from typing import Any, Final

import numpy as np

from serve_app.config import vllm_device
from serve_app.vllm_patches.cpu_attention import FORWARD, attend_long_contexts
from serve_app.vllm_patches.cpu_endings import BACKEND, CHECK_STOP, bound_json_schemas, end_repetition
from serve_app.vllm_patches.cpu_scheduler import CHUNK, SCHEDULE, bound_chunks, share_steps
from serve_app.vllm_patches.patching import Function, PatchTarget, UnexpectedVllmError, minor_version, replace

VERSIONS_WITH_THE_GAPS: Final = frozenset({(0, 32), (0, 33)})
"""Seen in the source of both. A new version is added here once its source has been read."""

ROUTING: Final = PatchTarget(
    "vllm.model_executor.layers.fused_moe.router.cpu_router",
    "CPURouter",
    "_compute_routing",
    ("hidden_states", "router_logits", "indices_type", "input_ids"),
)
EXPERTS: Final = PatchTarget(
    "vllm.model_executor.layers.fused_moe.experts.cpu_moe",
    "CPUUnquantizedExperts",
    "apply",
    ("topk_weights", "topk_ids", "expert_map", "apply_router_weight_on_input"),
)
IMAGE_FEATURES: Final = PatchTarget(
    "vllm.model_executor.models.step3p7",
    "Step3p7ForConditionalGeneration",
    "_process_image_features",
    ("image_features",),
)
EXPANSION: Final = PatchTarget(
    "vllm.v1.sample.rejection_sampler",
    "",
    "expand_batch_to_tokens",
    ("x", "cu_num_tokens", "num_tokens", "replace_from", "replace_to"),
)
SAMPLE: Final = PatchTarget(
    "vllm.v1.worker.gpu_model_runner",
    "GPUModelRunner",
    "_sample",
    ("logits", "spec_decode_metadata"),
)
BOOKKEEPING: Final = PatchTarget(
    "vllm.v1.worker.gpu_model_runner",
    "GPUModelRunner",
    "_bookkeeping_sync",
    ("scheduler_output", "sampler_output", "logits", "hidden_states", "num_scheduled_tokens"),
)
WAIT: Final = PatchTarget(
    "vllm.distributed.device_communicators.shm_broadcast", "SpinCondition", "wait", ("timeout_ms",)
)
TARGETS: Final = (
    *(ROUTING, EXPERTS, IMAGE_FEATURES, EXPANSION, FORWARD, BACKEND, CHECK_STOP),
    *(SAMPLE, BOOKKEEPING, SCHEDULE, CHUNK, WAIT),
)

logger = logging.getLogger(__name__)


def close_gaps() -> None:
    """Called in each of vLLM's processes, at times more than once."""
    from vllm import __version__
    from vllm.platforms import current_platform

    if not current_platform.is_cpu() or vllm_device.is_front_end_of_gpus():
        return
    if minor_version(__version__) not in VERSIONS_WITH_THE_GAPS:
        logger.warning("cpu_gaps_left_open vllm=%s: not a version they are known in", __version__)
        return
    replace(ROUTING, route_by_sigmoid)
    replace(EXPERTS, honour_expert_map)
    replace(IMAGE_FEATURES, make_features_contiguous)
    replace(EXPANSION, expand_in_torch)
    replace(FORWARD, attend_long_contexts)
    replace(BACKEND, bound_json_schemas)
    replace(CHECK_STOP, end_repetition)
    replace(SCHEDULE, share_steps)
    replace(CHUNK, bound_chunks)
    replace(SAMPLE, rewind_generators)
    replace(BOOKKEEPING, skip_rewinding)
    replace(WAIT, sleep_between_reads)


def route_by_sigmoid(original: Function, cpu_router: ModuleType) -> Function:
    """Plain top-k over sigmoid scores, which `CPURouter` asserts away (it knows softmax only).

    Step's router is the grouped top-k that the module already has, with one group of which one is taken.
    """
    grouped_topk = getattr(cpu_router, "_grouped_topk", None)
    if grouped_topk is None:
        raise UnexpectedVllmError(f"{cpu_router.__name__} has no _grouped_topk to route with")

    def _compute_routing(
        self: Any, hidden_states: Any, router_logits: Any, indices_type: Any, *, input_ids: Any = None
    ) -> Any:
        plain = not self.use_grouped_topk and self.custom_routing_function is None
        if not (plain and self.scoring_func == "sigmoid"):
            return original(self, hidden_states, router_logits, indices_type, input_ids=input_ids)
        return grouped_topk(
            gating_output=router_logits,
            topk=self.top_k,
            renormalize=self.renormalize,
            num_expert_group=1,
            topk_group=1,
            scoring_func=self.scoring_func,
            routed_scaling_factor=self.routed_scaling_factor,
            e_score_correction_bias=self.e_score_correction_bias,
        )

    return _compute_routing


def honour_expert_map(original: Function, _: ModuleType) -> Function:
    """Expert parallelism: the CPU kernel takes global expert ids for local ones and reads past its weights (SIGSEGV).

    Ids become local ones. A token's foreign experts go to local expert 0 with weight 0: another rank adds their share.
    """
    import torch

    def apply(
        self: Any,
        *,
        topk_weights: Any,
        topk_ids: Any,
        expert_map: Any,
        apply_router_weight_on_input: bool,
        **others: Any,
    ) -> Any:
        if expert_map is not None:
            if apply_router_weight_on_input:
                raise NotImplementedError("router weights on the input leave none to mask others' experts with")
            local_ids = expert_map[topk_ids.long()]
            topk_weights = torch.where(local_ids >= 0, topk_weights, 0.0)
            topk_ids = local_ids.clamp(min=0).to(torch.int32)
        return original(
            self,
            topk_weights=topk_weights,
            topk_ids=topk_ids,
            expert_map=expert_map,
            apply_router_weight_on_input=apply_router_weight_on_input,
            **others,
        )

    return apply


def make_features_contiguous(original: Function, _: ModuleType) -> Function:
    """The vision tower's output is a permuted view; the CPU matrix product of the projector refuses one."""

    def _process_image_features(self: Any, image_features: Any) -> Any:
        return original(self, image_features.contiguous())

    return _process_image_features


def expand_in_torch(_original: Function, _module: ModuleType) -> Function:
    """Speculative decoding spreads each request's temperature, top-k and top-p over its draft tokens.

    The CPU's stand-in for that kernel converts all but 64-bit integers first, the output too, so the result goes into
    a copy and the caller gets memory as it was found: sampling at random temperatures, and with `top_k` an index out of
    bounds that ends the engine.
    """
    import torch

    def expand_batch_to_tokens(
        x: Any, cu_num_tokens: Any, num_tokens: int, replace_from: int = 0, replace_to: int = 0
    ) -> Any:
        counts = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1))
        values = torch.where(x == replace_from, torch.full_like(x, replace_to), x)
        return torch.repeat_interleave(values, counts.long(), output_size=num_tokens)

    return expand_batch_to_tokens


PAUSE_S: Final = 0.0005
"""Twice in a step of 30 ms or more. vLLM's own notifications are no substitute: its writer drops one that follows
another closely, and the reader then waits for its timeout of 5 s (seen with `busy_loop_s=0`)."""


def sleep_between_reads(original: Function, _: ModuleType) -> Function:
    """Processes of an engine sleep while they wait for each other.

    For a second after the last message vLLM's processes spin on the queue between them, with `sched_yield`, so that a
    message is read within a microsecond. On a GPU machine a spare core pays for that. On a CPU the spinning takes one
    of the cores that compute the step. And Linux 6.18 counts a yield as time used: on few cores, a process that does
    not yield may then wait for seconds, which stopped every stream for up to ten
    (docs/decisions/0017-waiting-without-spinning.md).
    """

    def wait(self: Any, timeout_ms: int | None = None) -> None:
        if time.monotonic() <= self.last_read + self.busy_loop_s:
            time.sleep(PAUSE_S)
        else:
            original(self, timeout_ms)

    return wait


def rewind_generators(original: Function, _: ModuleType) -> Function:
    """Sampled tokens that are thrown away leave their requests' generators as they were.

    vLLM samples a token for every prompt in progress, and throws away those whose prompt is not read to its end. So
    that a seed gives the same tokens however the prompt was cut, it then rewinds the request's generator. Only a GPU's
    can be rewound: on a CPU the step fails with "CPU Generator does not use offset", and the engine ends. Here the
    generator's state is saved before such a token is sampled, and restored after it.
    """

    def _sample(self: Any, *args: Any, **named: Any) -> Any:
        rewound = {generator: generator.get_state() for generator in discarded_generators(self).values()}
        sampled = original(self, *args, **named)
        for generator, state in rewound.items():
            generator.set_state(state)
        return sampled

    return _sample


def skip_rewinding(original: Function, _: ModuleType) -> Function:
    """vLLM's own rewinding finds no generator (see `rewind_generators`)."""

    def _bookkeeping_sync(self: Any, *args: Any, **named: Any) -> Any:
        discarded = discarded_generators(self)
        if not discarded:
            return original(self, *args, **named)
        every = self.input_batch.generators
        self.input_batch.generators = {row: one for row, one in every.items() if row not in discarded}
        try:
            return original(self, *args, **named)
        finally:
            self.input_batch.generators = every

    return _bookkeeping_sync


def discarded_generators(runner: Any) -> dict[int, Any]:
    """By row of the batch: the generators of seeded requests whose next token is thrown away."""
    generators = runner.input_batch.generators
    if not generators:
        return {}
    discarded = np.nonzero(runner.discard_request_mask.np[: runner.input_batch.num_reqs])[0]
    return {int(row): generators[int(row)] for row in discarded if int(row) in generators}
