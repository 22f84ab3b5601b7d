"""Two real processes: sums and minima agree, samples are shared without overlap, and both get the same weights."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from models.training import checkpoint
from models.training.dist_rank import DistRank

pytestmark = pytest.mark.slow

WORKER = Path(__file__).with_name("rank_worker.py")
spec = importlib.util.spec_from_file_location("rank_worker", WORKER)
assert spec is not None and spec.loader is not None
rank_worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(rank_worker)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What rank 0, in this process, and rank 1 computed."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "PYTHONPATH": str(checkpoint.HOME.parents[1])}
    command = [sys.executable, str(WORKER), str(folder / "rendezvous"), str(folder / "out.pt")]
    with subprocess.Popen(command, env=environment) as process:
        try:
            first = rank_worker.work(DistRank(0, 2), str(folder / "rendezvous"))
            assert process.wait(100) == 0
        finally:
            process.kill()
    return [first, torch.load(folder / "out.pt")]


def test_sums_and_minima_are_those_over_both_ranks(results: list[dict[str, Any]]) -> None:
    for result in results:
        assert result["sums"] == [[[3.0, 3.0], [3.0, 3.0]], [10.0]]
        assert result["smallest"] == 4


def test_one_rank_alone_needs_no_process_group() -> None:
    tensor = torch.ones(2)
    DistRank().all_reduce_sum([tensor])
    assert tensor.tolist() == [1.0, 1.0]
    assert DistRank().all_reduce_min(7) == 7


def test_both_ranks_apply_the_updates_that_one_alone_computes(results: list[dict[str, Any]]) -> None:
    alone = rank_worker.muon_step(DistRank())
    for result in results:
        for shared, own in zip(result["muon"], alone, strict=True):
            torch.testing.assert_close(shared, own)


def test_ranks_have_equally_many_batches_of_different_samples(results: list[dict[str, Any]]) -> None:
    first, second = (result["requests"] for result in results)
    assert len(first) == len(second) > 0
    flat = [[task for batch in batches for task in batch] for batches in (first, second)]
    alone = [task for batch in rank_worker.chunk_requests(DistRank()) for task in batch]
    assert not set(flat[0]) & set(flat[1])
    assert set(flat[0]) | set(flat[1]) <= set(alone)
    assert len(flat[0]) + len(flat[1]) >= 0.8 * len(alone)  # surplus batches of one rank are left out
