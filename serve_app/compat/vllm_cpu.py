"""Closes three gaps of vLLM's CPU backend that keep Step-3.7-Flash from running there.

A general plugin of vLLM (entry point `vllm.general_plugins`), so it runs in each process of an engine. It does nothing
on other platforms, and nothing in a vLLM version that is not known to have the gaps. Where such a version looks other
than expected it raises: an engine that routes tokens to wrong experts is worse than one that does not start.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from types import ModuleType
from typing import Any

from serve_app.compat.after_import import after_import

VERSIONS_WITH_THE_GAPS = frozenset({(0, 32), (0, 33)})
"""Seen in the source of both. A new version is added here once its source has been read."""

_MARK = "_patched_by_step_serve"

logger = logging.getLogger(__name__)


class UnexpectedVllmError(RuntimeError):
    """vLLM has not the shape that a patch was written for."""


def register() -> None:
    """vLLM calls this in each of its processes, at times more than once."""
    from vllm import __version__
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    if minor_version(__version__) not in VERSIONS_WITH_THE_GAPS:
        logger.warning("cpu_gaps_left_open vllm=%s: not a version they are known in", __version__)
        return
    experts = "vllm.model_executor.layers.fused_moe"
    after_import(f"{experts}.router.cpu_router", route_by_sigmoid)
    after_import(f"{experts}.experts.cpu_moe", honour_expert_map)
    after_import("vllm.model_executor.models.step3p7", make_image_features_contiguous)


def minor_version(version: str) -> tuple[int, int]:
    """(0, 32) for "0.32.0" and for "0.32.1rc1+cpu"."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def route_by_sigmoid(cpu_router: ModuleType) -> None:
    """Plain top-k over sigmoid scores, which `CPURouter` asserts away (it knows softmax only).

    Step's router is the grouped top-k that the class already has, with one group of which one is taken.
    """
    grouped_topk = _function(cpu_router, "_grouped_topk", "num_expert_group", "topk_group", "e_score_correction_bias")

    def patch(original: Callable[..., Any]) -> Callable[..., Any]:
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

    _replace(cpu_router, "CPURouter", "_compute_routing", patch, "router_logits", "input_ids")


def honour_expert_map(cpu_moe: ModuleType) -> None:
    """Expert parallelism: the CPU kernel takes global expert ids for local ones and reads past its weights (SIGSEGV).

    Ids become local ones. A token's foreign experts go to local expert 0 with weight 0: another rank adds their share.
    """
    import torch

    def patch(original: Callable[..., Any]) -> Callable[..., Any]:
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

    _replace(cpu_moe, "CPUUnquantizedExperts", "apply", patch, "topk_weights", "topk_ids", "expert_map")


def make_image_features_contiguous(step3p7: ModuleType) -> None:
    """The vision tower's output is a permuted view; the CPU matrix product of the projector refuses one."""

    def patch(original: Callable[..., Any]) -> Callable[..., Any]:
        def _process_image_features(self: Any, image_features: Any) -> Any:
            return original(self, image_features.contiguous())

        return _process_image_features

    _replace(step3p7, "Step3p7ForConditionalGeneration", "_process_image_features", patch, "image_features")


def _replace(
    module: ModuleType,
    class_name: str,
    method: str,
    patch: Callable[[Callable[..., Any]], Callable[..., Any]],
    *parameters: str,
) -> None:
    owner = getattr(module, class_name, None)
    if owner is None:
        raise UnexpectedVllmError(f"{module.__name__} has no {class_name}: its CPU gap cannot be closed")
    original = _function(owner, method, *parameters)
    if hasattr(original, _MARK):
        return
    replacement = functools.wraps(original)(patch(original))
    setattr(replacement, _MARK, True)
    setattr(owner, method, replacement)
    logger.debug("cpu_gap_closed %s.%s.%s", module.__name__, class_name, method)


def _function(owner: Any, name: str, *parameters: str) -> Callable[..., Any]:
    function = getattr(owner, name, None)
    where = f"{getattr(owner, '__name__', owner)}.{name}"
    if not callable(function):
        raise UnexpectedVllmError(f"{where} is not there: its CPU gap cannot be closed")
    missing = set(parameters) - set(inspect.signature(function).parameters)
    if missing:
        raise UnexpectedVllmError(f"{where} lacks {', '.join(sorted(missing))}: its CPU gap cannot be closed")
    return function  # type: ignore[no-any-return]  # getattr is untyped
