"""The gaps of vLLM's CPU backend: what stands in for vLLM's functions. That it works is shown on a whole engine."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from serve_app.vllm_patches.cpu import expand_in_torch, honour_expert_map, make_features_contiguous, route_by_sigmoid
from serve_app.vllm_patches.patching import UnexpectedVllmError

ROUTER = {"top_k": 2, "renormalize": True, "routed_scaling_factor": 3.0, "e_score_correction_bias": None}


def router(**fields: Any) -> Any:
    return SimpleNamespace(**(ROUTER | {"use_grouped_topk": False, "custom_routing_function": None} | fields))


def cpu_router(calls: list[dict[str, Any]]) -> ModuleType:
    module = ModuleType("cpu_router")
    module._grouped_topk = lambda **arguments: calls.append(arguments)
    return module


def test_sigmoid_scores_are_routed_as_one_group_of_experts() -> None:
    calls: list[dict[str, Any]] = []
    route = route_by_sigmoid(lambda *_, **__: "vllm's own", cpu_router(calls))
    route(router(scoring_func="sigmoid"), "hidden", "logits", None)
    (call,) = calls
    assert (call["num_expert_group"], call["topk_group"], call["topk"]) == (1, 1, 2)
    assert (call["scoring_func"], call["gating_output"], call["routed_scaling_factor"]) == ("sigmoid", "logits", 3.0)


@pytest.mark.parametrize(
    "other",
    [
        {"scoring_func": "softmax"},
        {"scoring_func": "sigmoid", "use_grouped_topk": True},
        {"scoring_func": "sigmoid", "custom_routing_function": print},
    ],
)
def test_every_other_routing_is_vllms_own(other: dict[str, Any]) -> None:
    calls: list[dict[str, Any]] = []
    route = route_by_sigmoid(lambda *_, **__: "vllm's own", cpu_router(calls))
    assert route(router(**other), "hidden", "logits", None) == "vllm's own"
    assert calls == []


def test_a_router_without_grouped_top_k_is_refused() -> None:
    with pytest.raises(UnexpectedVllmError):
        route_by_sigmoid(lambda *_, **__: None, ModuleType("cpu_router"))


def test_foreign_experts_get_no_weight_and_ids_become_local() -> None:
    torch = pytest.importorskip("torch")
    seen: dict[str, Any] = {}
    apply = honour_expert_map(lambda _, **arguments: seen.update(arguments), sys)
    here = torch.tensor([-1, -1, 0, 1])  # this rank has experts 2 and 3
    apply(
        object(),
        topk_weights=torch.tensor([[0.5, 0.25], [0.75, 0.125]]),
        topk_ids=torch.tensor([[2, 0], [1, 3]], dtype=torch.int32),
        expert_map=here,
        apply_router_weight_on_input=False,
        output="out",
    )
    assert seen["topk_ids"].tolist() == [[0, 0], [0, 1]]
    assert seen["topk_ids"].dtype == torch.int32
    assert seen["topk_weights"].tolist() == [[0.5, 0.0], [0.0, 0.125]]
    assert seen["output"] == "out"


def test_without_expert_parallelism_nothing_changes() -> None:
    seen: dict[str, Any] = {}
    apply = honour_expert_map(lambda _, **arguments: seen.update(arguments), sys)
    apply(object(), topk_weights="w", topk_ids="i", expert_map=None, apply_router_weight_on_input=True)
    assert (seen["topk_weights"], seen["topk_ids"]) == ("w", "i")


def test_the_projector_gets_contiguous_features() -> None:
    features = SimpleNamespace(contiguous=lambda: "contiguous")
    assert make_features_contiguous(lambda _, features: features, sys)(object(), features) == "contiguous"


def test_sampling_parameters_reach_every_draft_token_as_they_are() -> None:
    torch = pytest.importorskip("torch")
    expand = expand_in_torch(lambda *_: None, sys)
    cumulative = torch.tensor([2, 5, 6], dtype=torch.int32)
    assert expand(torch.tensor([0.5, 0.0, 1.5]), cumulative, 6, replace_to=1).tolist() == [0.5, 0.5, 1.0, 1.0, 1.0, 1.5]
    top_k = expand(torch.tensor([4, 1, 7], dtype=torch.int32), cumulative, 6)
    assert (top_k.tolist(), top_k.dtype) == ([4, 4, 1, 1, 1, 7], torch.int32)
