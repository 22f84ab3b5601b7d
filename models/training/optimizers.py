"""What moves which weights how far: optimizers, the rates' schedule, the router's balance."""

from typing import Any

import torch
from torch import Tensor

from models.training.dist_rank import Share
from models.training.model.architecture import Step
from models.training.muon import Muon

WARM_UP = 40
COOL_DOWN = 0.85
"""Share of the steps over which the rates fall to nothing."""
DRAFTS_FROM = 0.8
"""Share of the steps after which the drafting layers are trained as well: before that there is little to draft."""
MUON_RATE, ADAM_RATE = 0.02, 0.002
NOT_FOR_MUON = ("moe.gate.weight", "g_proj.weight")
BALANCE_RATE = 0.005
"""Step of the router's bias towards experts that got too few tokens, as the real model was balanced."""


def optimizers(model: Step, share: Share) -> list[torch.optim.Optimizer]:
    """Each group keeps its own full rate as `peak`, which the schedule scales, and whether it is the drafts'."""
    of_heads = {id(head.weight) for head in model.heads()}
    of_drafts = {id(p) for layer in model.drafts() for p in layer.parameters()}
    inner: list[Any] = []
    outer: list[Any] = []
    for is_draft in (False, True):
        matrices: list[Tensor] = []
        heads: list[Tensor] = []
        rest: list[Tensor] = []
        for name, p in model.named_parameters():
            if not p.requires_grad or (id(p) in of_drafts) != is_draft:
                continue
            is_head = id(p) in of_heads
            is_inner = p.dim() >= 2 and ".layers." in name and not is_head and not name.endswith(NOT_FOR_MUON)
            (matrices if is_inner else heads if is_head else rest).append(p)
        inner.append({"params": matrices, "lr": MUON_RATE, "peak": MUON_RATE, "is_draft": is_draft})
        adam = {"lr": ADAM_RATE, "peak": ADAM_RATE, "is_draft": is_draft}
        # No decay: it would wear down the rows that are held (`objective.hold_spelling`).
        outer += [{"params": heads, "weight_decay": 0.0, **adam}, {"params": rest, **adam}]
    return [Muon(inner, MUON_RATE, share), torch.optim.AdamW(outer, betas=(0.9, 0.97), weight_decay=0.01)]


def rate(step: int, steps: int) -> float:
    """Warm up, stay, and cool down in a straight line."""
    return min(1.0, (step + 1) / WARM_UP, max(0.01, (steps - step) / (steps * COOL_DOWN)))


def draft_rate(step: int, steps: int) -> float:
    """The drafting layers begin late, and at the full rate; until then they have no gradient."""
    return min(1.0, max(0.01, (steps - step) / (steps * (1 - DRAFTS_FROM))))


def balance(model: Step) -> None:
    """Nudge each router's bias by the sign of its experts' shortage."""
    for layer in model.model.layers:
        if layer.is_sparse:
            load = layer.moe.load
            layer.moe.router_bias += BALANCE_RATE * torch.sign(load.mean() - load)
            load.zero_()
