"""One worker's part of a training run that several share."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Share:
    """Which of so many workers this is; each takes its share of every batch's rows."""

    rank: int = 0
    workers: int = 1

    def add_up(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its sum over the workers."""
        if self.workers == 1:
            return
        flat = torch.cat([t.flatten() for t in tensors])
        dist.all_reduce(flat)
        for t, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            t.copy_(part.view_as(t))

    def least(self, count: int) -> int:
        """The smallest of the workers' counts."""
        if self.workers == 1:
            return count
        found = torch.tensor(count)
        dist.all_reduce(found, dist.ReduceOp.MIN)
        return int(found)
