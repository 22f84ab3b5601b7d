"""An engine of several data-parallel ranks is one engine to everybody else: what each rank says is added up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from serve_app.config.hardware import NodeGpus
from serve_app.config.profile import load_config
from serve_app.config.schema import ConfigError
from serve_app.engine.vllm import VllmEngine
from serve_app.engine.vllm_process import engine_info


def vllm_config(ranks: int) -> Any:
    return SimpleNamespace(
        cache_config=SimpleNamespace(kv_cache_size_tokens=1000),
        scheduler_config=SimpleNamespace(max_num_seqs=64, max_num_batched_tokens=1024),
        model_config=SimpleNamespace(max_model_len=100, model="m"),
        parallel_config=SimpleNamespace(data_parallel_size=ranks),
    )


def step(rank: int, running: int, waiting: int, usage: float) -> Any:
    scheduler = SimpleNamespace(
        num_running_reqs=running,
        num_waiting_reqs=waiting,
        num_skipped_waiting_reqs=0,
        kv_cache_usage=usage,
        spec_decoding_stats=None,
    )
    return SimpleNamespace(engine_index=rank, scheduler_stats=scheduler, outputs=[])


def test_slots_and_cache_are_those_of_all_ranks() -> None:
    info = engine_info(vllm_config(4), 1.0)
    assert (info.max_num_seqs, info.kv_cache_tokens, info.max_model_len) == (256, 4000, 100)


def test_load_is_that_of_all_ranks_and_not_of_the_last_to_speak() -> None:
    engine = VllmEngine([], lambda _deltas: None)
    engine._ranks = 2
    live: Any = None
    engine._attempts = {str(number): SimpleNamespace() for number in range(7)}  # type: ignore[misc]
    engine._take_step(live, step(0, running=3, waiting=1, usage=0.5))
    engine._take_step(live, step(1, running=2, waiting=1, usage=0.1))
    stats = engine.stats()
    assert (stats.running, stats.kv_usage_ratio) == (5, pytest.approx(0.3))


def test_ranks_over_several_nodes_are_refused_with_the_reason() -> None:
    args = {
        "profile": "h100-x8",
        "engine": {"flags": {"tensor-parallel-size": 8, "data-parallel-size": 2}},
        "replicas": {"gpus_per_replica": 16, "nodes_per_replica": 2},
    }
    with pytest.raises(ConfigError, match=r"data-parallel-size is 2 .* not in a replica's placement group"):
        load_config(args, [NodeGpus("head", None, 0, 8)])
