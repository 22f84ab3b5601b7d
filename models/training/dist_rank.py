"""This process's rank in a training run, and the collective operations between ranks."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class DistRank:
    """Rank and world size. Each rank processes its part of every batch; one rank alone needs no process group."""

    rank: int = 0
    world_size: int = 1

    def all_reduce_sum(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its sum over the ranks, in one collective operation."""
        if self.world_size == 1:
            return
        flat = torch.cat([t.flatten() for t in tensors])
        dist.all_reduce(flat)
        for t, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            t.copy_(part.view_as(t))

    def all_reduce_min(self, count: int) -> int:
        """The smallest `count` of all ranks."""
        if self.world_size == 1:
            return count
        smallest = torch.tensor(count)
        dist.all_reduce(smallest, dist.ReduceOp.MIN)
        return int(smallest)
