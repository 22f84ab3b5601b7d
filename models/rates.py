"""What moves which weights how far: optimizers, the rates' schedule, the router's balance."""

from typing import Any

import torch

from models.architecture import Step
from models.muon import Muon
from models.share import Share

WARM_UP = 40
COOL_DOWN = 0.85
"""Share of the steps over which the rates fall to nothing."""
MUON_RATE, ADAM_RATE = 0.02, 0.0015
NOT_FOR_MUON = ("moe.gate.weight", "g_proj.weight")
BALANCE_RATE = 0.005
"""Step of the router's bias towards experts that got too few tokens, as the real model was balanced."""


def optimizers(model: Step, share: Share) -> list[torch.optim.Optimizer]:
    """Each group keeps its own full rate as `peak`, which the schedule scales."""
    of_heads = {id(head.weight) for head in model.heads()}
    inner: list[Any] = []
    heads: list[Any] = []
    rest: list[Any] = []
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        is_head = id(p) in of_heads
        is_inner = p.dim() >= 2 and ".layers." in name and not is_head and not name.endswith(NOT_FOR_MUON)
        (inner if is_inner else heads if is_head else rest).append(p)
    groups = [
        # No decay: it would wear down the rows that are held (`objective.hold_spelling`).
        {"params": heads, "lr": ADAM_RATE, "peak": ADAM_RATE, "weight_decay": 0.0},
        {"params": rest, "lr": ADAM_RATE, "peak": ADAM_RATE},
    ]
    muon = Muon(inner, MUON_RATE, share)
    muon.param_groups[0]["peak"] = MUON_RATE
    return [muon, torch.optim.AdamW(groups, betas=(0.9, 0.97), weight_decay=0.01)]


def rate(step: int, steps: int) -> float:
    """Warm up, stay, and cool down in a straight line."""
    return min(1.0, (step + 1) / WARM_UP, max(0.01, (steps - step) / (steps * COOL_DOWN)))


def balance(model: Step) -> None:
    """Nudge each router's bias by the sign of its experts' shortage."""
    for layer in model.model.layers:
        if layer.is_sparse:
            load = layer.moe.load
            layer.moe.router_bias += BALANCE_RATE * torch.sign(load.mean() - load)
            load.zero_()
