"""Optimizers, learning rate schedule and router balancing.

Muon updates the matrices inside the layers: momentum, then the nearest orthogonal matrix as the update. It needs about
half the tokens that AdamW needs on these tasks. AdamW updates embeddings, heads, norms, gates and routers.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from models.training.dist_rank import DistRank
from models.training.model.architecture import StepModel

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of Keller Jordan's quintic iteration (github.com/KellerJordan/Muon). Five rounds bring every singular
value near one."""

WARM_UP_STEPS = 40
COOL_DOWN_SHARE = 0.85
"""Share of the steps over which the learning rates fall to almost zero."""
MTP_FROM = 0.8
"""Share of the steps after which the MTP layers are trained. Before, the trunk predicts too little to draft from."""
MUON_RATE, ADAM_RATE = 0.02, 0.002
ADAM_MATRICES = ("moe.gate.weight", "g_proj.weight")
"""Matrices inside layers that AdamW updates all the same: routers and head gates."""
BALANCE_RATE = 0.005
"""Step of the router bias towards experts with too few tokens: balancing without an auxiliary loss, like the real
model's (arXiv:2408.15664)."""


def orthogonalise(update: Tensor, rounds: int = 5) -> Tensor:
    """The nearest orthogonal matrix of each matrix in `update` [..., rows, columns], approximately.

    bfloat16 is precise enough for that and takes less than half the time.
    """
    a, b, c = NEWTON_SCHULZ
    is_tall = update.shape[-2] > update.shape[-1]
    x = (update.mT if is_tall else update).bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(rounds):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return (x.mT if is_tall else x).float()


class Muon(torch.optim.Optimizer):
    """Nesterov momentum with orthogonalised updates. Each rank computes its part of them, and all apply all of them."""

    def __init__(
        self, groups: Iterable[dict[str, Any]], lr: float, rank: DistRank, momentum: float = 0.95, decay: float = 0.02
    ) -> None:
        super().__init__(list(groups), {"lr": lr, "momentum": momentum, "decay": decay})
        self._rank = rank

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # nothing here re-evaluates the loss
        """Update all parameters. Matrices of one size are stacked: a product of small matrices is mostly overhead."""
        for group in self.param_groups:
            by_size: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_size.setdefault(tuple(p.shape[-2:]), []).append((p, p.grad))
            if not by_size:  # MTP layers, before they are trained
                continue
            updates = {size: self._updates(group, members) for size, members in by_size.items()}
            self._rank.all_reduce_sum(list(updates.values()))
            for (rows, columns), members in by_size.items():
                scale = max(1.0, rows / columns) ** 0.5
                parts = updates[rows, columns].split([p.numel() // (rows * columns) for p, _ in members])
                for (p, _), update in zip(members, parts, strict=True):
                    p.mul_(1 - group["lr"] * group["decay"])
                    p.add_(update.view_as(p), alpha=-group["lr"] * scale)

    def _updates(self, group: dict[str, float], members: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Updates [matrices, rows, columns]; zero for the matrices of other ranks."""
        momenta: list[Tensor] = []
        for p, gradient in members:
            state = self.state[p]
            if "velocity" not in state:
                state["velocity"] = torch.zeros_like(p)
            state["velocity"].mul_(group["momentum"]).add_(gradient)
            nesterov = gradient + group["momentum"] * state["velocity"]
            momenta.append(nesterov.reshape(-1, *p.shape[-2:]))
        stacked = torch.cat(momenta)
        own = slice(self._rank.rank, None, self._rank.world_size)
        updates = torch.zeros_like(stacked)
        if len(stacked[own]):
            updates[own] = orthogonalise(stacked[own])
        return updates


def make_optimizers(model: StepModel, rank: DistRank) -> list[torch.optim.Optimizer]:
    """Muon and AdamW over all parameters that need gradients.

    Each group has its full learning rate as `peak`, which the schedule scales, and `is_draft` for MTP layers.
    """
    of_heads = {id(head.weight) for head in model.output_heads()}
    of_mtp = {id(p) for layer in model.mtp_layers() for p in layer.parameters()}
    muon: list[Any] = []
    adam: list[Any] = []
    for is_draft in (False, True):
        matrices: list[Tensor] = []
        heads: list[Tensor] = []
        rest: list[Tensor] = []
        for name, p in model.named_parameters():
            if not p.requires_grad or (id(p) in of_mtp) != is_draft:
                continue
            is_head = id(p) in of_heads
            is_matrix = p.dim() >= 2 and ".layers." in name and not is_head and not name.endswith(ADAM_MATRICES)
            (matrices if is_matrix else heads if is_head else rest).append(p)
        muon.append({"params": matrices, "lr": MUON_RATE, "peak": MUON_RATE, "is_draft": is_draft})
        rates = {"lr": ADAM_RATE, "peak": ADAM_RATE, "is_draft": is_draft}
        # No decay: it would shrink the rows that `objective.freeze_embeddings` holds.
        adam += [{"params": heads, "weight_decay": 0.0, **rates}, {"params": rest, **rates}]
    return [Muon(muon, MUON_RATE, rank), torch.optim.AdamW(adam, betas=(0.9, 0.97), weight_decay=0.01)]


def trunk_rate(step: int, steps: int) -> float:
    """Factor of the learning rates at `step`: linear warm-up, constant, linear cool-down to 0.01."""
    return min(1.0, (step + 1) / WARM_UP_STEPS, max(0.01, (steps - step) / (steps * COOL_DOWN_SHARE)))


def mtp_rate(step: int, steps: int) -> float:
    """Factor of the MTP layers' learning rates. It starts at one, because they are trained late and without warm-up."""
    return min(1.0, max(0.01, (steps - step) / (steps * (1 - MTP_FROM))))


def balance_routers(model: StepModel) -> None:
    """Move each router's bias towards the experts with less than average load, and reset the loads."""
    for layer in model.model.layers:
        if layer.is_sparse:
            load = layer.moe.load
            layer.moe.router_bias += BALANCE_RATE * torch.sign(load.mean() - load)
            load.zero_()
