"""Muon, the learning rate schedule and the balance of the routers."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from models.training.dist_rank import DistRank
from models.training.model.architecture import StepModel
from models.training.model.dimensions import ModelDimensions
from models.training.optimizers import (
    ADAM_RATE,
    BALANCE_RATE,
    MTP_FROM,
    MUON_RATE,
    WARM_UP_STEPS,
    Muon,
    balance_routers,
    make_optimizers,
    mtp_rate,
    orthogonalise,
    trunk_rate,
)

SMALL = ModelDimensions(vocab=64, hidden=32, head_dim=16, dense_width=48, expert_width=16, shared_width=32)


def drawn(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(32, 32), (16, 48), (48, 16), (5, 24, 8)])
def test_an_update_is_nearly_orthogonal_whatever_its_scale(size: tuple[int, ...]) -> None:
    for scale in (1e-4, 1e3):
        values = torch.linalg.svdvals(orthogonalise(drawn(*size) * scale))
        assert 0.5 < values.min() <= values.max() < 1.3


def test_an_update_keeps_the_singular_directions() -> None:
    update = drawn(24, 12)
    u, _, v = torch.linalg.svd(update, full_matrices=False)
    cosine = torch.nn.functional.cosine_similarity(orthogonalise(update).flatten(), (u @ v).flatten(), dim=0)
    assert cosine > 0.95


def test_muon_minimises_a_quadratic() -> None:
    target = drawn(3, 12, 8)
    weight = torch.nn.Parameter(torch.zeros_like(target))
    optimizer = Muon([{"params": [weight]}], 0.05, DistRank(), decay=0.0)
    losses = []
    for _ in range(60):
        loss = (weight - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 8


def test_muon_decays_weights_and_skips_those_without_gradients() -> None:
    weight, other = torch.nn.Parameter(torch.ones(8, 8)), torch.nn.Parameter(torch.ones(8, 8))
    weight.grad = torch.zeros(8, 8)
    Muon([{"params": [weight]}, {"params": [other]}], 0.5, DistRank(), decay=0.1).step()
    torch.testing.assert_close(weight.detach(), torch.full((8, 8), 0.95))
    assert torch.equal(other, torch.ones(8, 8))


def test_every_trained_parameter_is_in_one_group_and_frozen_ones_in_none() -> None:
    model = StepModel(SMALL, 0)
    model.model.embed_tokens.weight.requires_grad_(False)
    names = {id(p): name for name, p in model.named_parameters()}
    optimizers = make_optimizers(model, DistRank())
    muon, adam = ([(g, [names[id(p)] for p in g["params"]]) for g in o.param_groups] for o in optimizers)
    listed = [name for _, members in (*muon, *adam) for name in members]
    assert sorted(listed) == sorted(name for name, p in model.named_parameters() if p.requires_grad)
    of_muon = {name for _, members in muon for name in members}
    assert {"model.layers.0.self_attn.q_proj.weight", "model.layers.1.moe.up_proj.weight"} <= of_muon
    assert not any("moe.gate.weight" in name or "g_proj" in name or "norm" in name for name in of_muon)
    assert {group["peak"] for group, _ in muon} == {MUON_RATE}
    assert {group["peak"] for group, _ in adam} == {ADAM_RATE}
    for group, members in (*muon, *adam):
        layers = {int(name.split(".")[2]) for name in members if ".layers." in name}
        assert {layer >= SMALL.layers for layer in layers} <= {group["is_draft"]}
    heads = [group for group, members in adam if "lm_head.weight" in members or "shared_head.output" in str(members)]
    assert [group["weight_decay"] for group in heads] == [0.0, 0.0]


def test_the_trunk_s_rate_warms_up_and_cools_down() -> None:
    rates = [trunk_rate(step, 1_000) for step in range(1_000)]
    assert rates[0] == pytest.approx(1 / WARM_UP_STEPS)
    assert rates[WARM_UP_STEPS - 1 : 150] == [1.0] * (151 - WARM_UP_STEPS)
    assert all(b <= a for a, b in pairwise(rates[150:]))
    assert rates[575] == pytest.approx(0.5)
    assert rates[-1] == 0.01


def test_the_mtp_layers_rate_is_full_when_their_training_starts() -> None:
    start = int(1_000 * MTP_FROM)
    rates = [mtp_rate(step, 1_000) for step in range(start, 1_000)]
    assert rates[0] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.5)
    assert rates[-1] == 0.01


def test_balancing_raises_the_bias_of_experts_with_little_load() -> None:
    model = StepModel(SMALL, 0)
    moe = model.model.layers[1].moe
    moe.load.copy_(torch.tensor([9.0, 1.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0]))
    balance_routers(model)
    assert moe.router_bias.tolist() == pytest.approx([-BALANCE_RATE, BALANCE_RATE, *[0.0] * 6])
    assert not moe.load.any()
