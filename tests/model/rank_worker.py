"""One rank of two, in a process of its own: `python rank_worker.py RENDEZVOUS OUT` is the second one."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from tokenizers import Tokenizer

from models.training import checkpoint
from models.training.batches import training_chunk
from models.training.dist_rank import DistRank
from models.training.encoding import Encoder, Renderer
from models.training.optimizers import Muon

MATRICES = ((8, 8), (8, 8), (8, 8), (12, 4))
WAIT = timedelta(seconds=100)


def muon_step(rank: DistRank) -> list[torch.Tensor]:
    """Two Muon steps on the same matrices and gradients as every other rank has."""
    generator = torch.Generator().manual_seed(3)
    weights = [torch.nn.Parameter(torch.randn(*size, generator=generator)) for size in MATRICES]
    optimizer = Muon([{"params": weights}], 0.1, rank)
    for _ in range(2):
        for weight in weights:
            weight.grad = torch.randn(*weight.shape, generator=generator)
        optimizer.step()
    return [weight.detach() for weight in weights]


def chunk_requests(rank: DistRank) -> list[list[str]]:
    tokenizer = Tokenizer.from_file(str(checkpoint.HOME / "tokenizer.json"))
    encoder = Encoder(tokenizer, Renderer(checkpoint.CHAT_TEMPLATE))
    chunk = training_chunk(0, encoder, 4_096, rank, size=60)
    return [[repr(sample.task) for sample in batch.samples] for batch in chunk]


def work(rank: DistRank, rendezvous: str) -> dict[str, object]:
    """Every collective operation once, in the order that both ranks share."""
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank.rank, world_size=rank.world_size, timeout=WAIT
    )
    try:
        tensors = [torch.full((2, 2), float(rank.rank + 1)), torch.tensor([10.0 * rank.rank])]
        rank.all_reduce_sum(tensors)
        smallest = rank.all_reduce_min(5 - rank.rank)
        return {
            "sums": [t.tolist() for t in tensors],
            "smallest": smallest,
            "muon": muon_step(rank),
            "requests": chunk_requests(rank),
        }
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    torch.save(work(DistRank(1, 2), sys.argv[1]), Path(sys.argv[2]))
