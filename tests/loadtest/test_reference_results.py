"""The published benchmark: its preset, the ratios, and the reasons why a run is not comparable."""

from __future__ import annotations

import pytest

from loadtest.metrics.extended_metrics import extended_metrics_of
from loadtest.metrics.reference_results import (
    PRESETS,
    REFERENCE_MACHINES,
    BenchmarkSettings,
    comparison_with_published,
    differences,
)
from loadtest.metrics.vllm_metrics import compute_vllm_metrics
from tests.loadtest.records import record

SETTINGS = BenchmarkSettings("random", "chat", 8192, 2048, 512, 32, 0, forced_length=True, interrupted=False)


def test_the_preset_is_the_published_command() -> None:
    preset = PRESETS["published-8k-2k"]
    assert (preset["input_len"], preset["output_len"], preset["num_prompts"]) == (8192, 2048, 512)
    assert (preset["concurrency"], preset["seed"], preset["ignore_eos"]) == (32, 0, True)
    assert [machine.output_rate for machine in REFERENCE_MACHINES] == [1597, 1245, 474]


def test_rows_carry_ratios() -> None:
    rows = comparison_with_published(compute_vllm_metrics([record(0, 2183, 18.8, 100)], 1.0, [99.0]))
    ttft = next(row for row in rows if row.name == "TTFT mean")
    assert ttft.ratios[0] == pytest.approx(1.0)


def test_every_difference_is_listed() -> None:
    records = [record(0, 50, 20, 10, per_chunk=1)]
    records[0].cached_tokens = 50
    records[0].planned_output_tokens = 20
    vllm_metrics, extended_metrics = (
        compute_vllm_metrics(records, 1.0, [99.0]),
        extended_metrics_of(records, [99.0]),
    )
    settings = BenchmarkSettings("natural", "chat", 1, 2, 3, 4, 5, forced_length=False, interrupted=True)
    text = " ".join(differences(settings, vllm_metrics, extended_metrics, extended_metrics.cached_ratio))
    for word in ("dataset", "input len", "output len", "num prompts", "concurrency", "seed", "ignore_eos",
                 "interrupted", "10 tokens on average", "cache", "tokens per chunk"):  # fmt: skip
        assert word in text


def test_a_faithful_run_compares() -> None:
    records = [record(0, 2000, 52.7, 731, per_chunk=1) for _ in range(2)]
    for one in records:
        one.output_tokens = one.vllm_output_tokens = one.planned_output_tokens = 2048
    vllm_metrics, extended_metrics = (
        compute_vllm_metrics(records, 1.0, [99.0]),
        extended_metrics_of(records, [99.0]),
    )
    assert differences(SETTINGS, vllm_metrics, extended_metrics, None) == []
