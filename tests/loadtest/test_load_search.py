"""The search: its path, its knee, its early stop, and what an interrupt leaves."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.cli.main import main
from loadtest.commands.search import pause
from loadtest.errors import UsageError
from loadtest.metrics.load_search import (
    EarlyStopRule,
    SearchInterrupted,
    SearchRange,
    SearchResult,
    SearchStep,
    find_highest_load,
    find_knee,
    next_load,
    require_objectives,
    ttft_grew_throughout,
)
from loadtest.metrics.slo import evaluate_bounds, parse_bounds
from loadtest.metrics.vllm_metrics import compute_vllm_metrics
from loadtest.report.text import search_text
from tests.loadtest.conftest import mock_process
from tests.loadtest.records import record, run_of


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1100), st.integers(1, 64))
async def test_the_highest_passing_load_is_found(truth: int, low: int) -> None:
    async def run_step(load: float) -> SearchStep:
        records = [record(0, 10 if load <= truth else 1000, 1, 3)]
        bounds = parse_bounds("ttft_p99<100ms")
        run = run_of(records)
        return SearchStep(
            load, compute_vllm_metrics(records, 1.0, [50.0, 99.0]), tuple(evaluate_bounds(bounds, run)), False, run
        )

    found = await find_highest_load(SearchRange(low, 1024, integral=True, precision=0.0), run_step)
    if truth >= 1:
        assert found.best is not None
        assert found.best.load == min(truth, 1024)
    else:
        assert found.best is None
    assert found.exhausted == (truth >= 1024)


async def test_steps_before_an_interrupt_are_reported() -> None:
    async def run_step(load: float) -> SearchStep:
        if load > 4:
            raise SearchInterrupted
        records = [record(0, 10, 1, 3)]
        return SearchStep(load, compute_vllm_metrics(records, 1.0, [50.0, 99.0]), (), False, run_of(records))

    found = await find_highest_load(SearchRange(1, 1024, integral=True), run_step)
    assert [step.load for step in found.steps] == [1, 2, 4]
    assert found.interrupted
    assert not found.exhausted
    assert "4 requests at a time among those tried: the search was interrupted" in search_text(found, "concurrency")


def test_the_path_doubles_then_halves() -> None:
    span = SearchRange(1, 100, integral=True)
    assert next_load(span, 1, None) == 2
    assert next_load(span, 64, None) == 100
    assert next_load(span, 16, 32) == 24
    assert next_load(span, 16, 17) is None
    assert next_load(span, None, 1) is None
    assert next_load(span, None, 8) == 4
    assert next_load(span, 100, None) is None


def test_a_step_that_cannot_pass_is_known_early() -> None:
    rule = EarlyStopRule(parse_bounds("ttft_p99<100ms"), total=100)
    results = [rule.add(ok=True, ttft_ms=500, tpot_ms=1) for _ in range(3)]
    assert results == [False, False, True]


def test_the_knee_is_where_more_brings_less() -> None:
    def step(load: float, rate: float) -> SearchStep:
        records = [record(0, 10, 1, max(1, round(rate)))]
        return SearchStep(load, compute_vllm_metrics(records, 1.0, [99.0]), (), False, run_of(records))

    steps = [step(1, 100), step(2, 200), step(4, 390), step(8, 420), step(16, 425)]
    knee = find_knee(steps)
    assert knee is not None
    assert knee.load == 4


def test_a_growing_queue_is_overload_and_a_noisy_server_is_not() -> None:
    rng = np.random.default_rng(0)
    growing = [record(i * 10, 50 + i * 5 + rng.uniform(0, 60), 1, 3, index=i) for i in range(100)]
    noisy = [record(i * 10, rng.uniform(20, 600), 1, 3, index=i) for i in range(100)]
    assert ttft_grew_throughout(run_of(growing))
    assert not ttft_grew_throughout(run_of(noisy))


def test_the_lowest_load_may_be_too_high() -> None:
    assert next_load(SearchRange(4, 64, integral=False), None, 4) == 2
    assert next_load(SearchRange(4, 64, integral=False), None, 0.05) is None
    assert next_load(SearchRange(1, 64, integral=False), 10, 10.4) is None, "closer than five per cent"
    assert next_load(SearchRange(1, 64, integral=False), 10, 12) == 11


@pytest.mark.parametrize("bounds", ["failed<2%", "tpot_p99<20ms"])
def test_failures_and_slow_tokens_stop_a_step_early(bounds: str) -> None:
    rule = EarlyStopRule(parse_bounds(bounds), total=100)
    decisions = [rule.add(ok=False, ttft_ms=0, tpot_ms=0) for _ in range(4)]
    assert decisions[0] is False
    assert decisions[-1] is True
    calm = EarlyStopRule(parse_bounds(bounds), total=100)
    assert not any(calm.add(ok=True, ttft_ms=10, tpot_ms=10) for _ in range(100))


def test_a_mean_never_stops_a_step_early() -> None:
    rule = EarlyStopRule(parse_bounds("ttft_mean<10ms,failed>=0"), total=10)
    assert not any(rule.add(ok=False, ttft_ms=0, tpot_ms=0) for _ in range(10))


@pytest.mark.parametrize("bounds", ["", "output_rate>10"])
def test_a_search_without_objectives_is_refused(bounds: str) -> None:
    with pytest.raises(UsageError, match="--slo"):
        require_objectives(parse_bounds(bounds))


async def test_a_reversed_range_is_refused() -> None:
    async def run_step(load: float) -> SearchStep:
        raise AssertionError(load)

    with pytest.raises(UsageError, match="--from"):
        await find_highest_load(SearchRange(8, 4, integral=True), run_step)


def test_a_step_without_an_answer_does_not_pass() -> None:
    failed = [record(0, 10, 1, 3, ok=False)]
    step = SearchStep(1, compute_vllm_metrics(failed, 1.0, [99.0]), (), False, run_of(failed))
    assert not step.passed
    assert "no load meets the objectives, not even 1 request at a time" in search_text(
        SearchResult((step,), None, None, False), "concurrency"
    )
    assert find_knee([step]) is None


def mock_search(url: str, *flags: str) -> int:
    return main(["search", "--url", url, "--dataset-name", "natural", "--input-len", "20", "--output-len", "3",
                 "--pause", "0", "--step-requests", "6", *flags])  # fmt: skip


@pytest.mark.slow
def test_a_search_finds_the_limit_of_a_server(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "search.json"
    flags = ("--slo", "ttft_p99<350ms", "--to", "8", "--step-requests", "10", "--json", str(file))
    with mock_process("--first-ms", "100", "--gap-ms", "1", "--max-inflight", "2") as url:
        assert mock_search(url, *flags) == 0
    found = json.loads(file.read_text())
    assert found["steps"][0]["holds"], "one request at a time takes 100 ms"
    assert not found["steps"][-1]["holds"], "the last of eight waits for three pairs"
    assert 1 <= found["best"] < 8
    text = capsys.readouterr().out
    assert f"highest load that meets the objectives: {found['best']:g} requests at a time" in text
    assert "output over load (requests at a time)" in text


def test_a_search_by_rate_reports_where_it_ended(mock_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--what", "rate", "--from", "50", "--to", "100", "--slo", "ttft_p90<5s")
    assert mock_search(mock_url, *flags) == 0
    assert "100 requests per second, the upper limit of the search: raise --to" in capsys.readouterr().out
    assert mock_search(mock_url, "--slo", "ttft_p50<1ms", "--to", "2") == 1
    text = capsys.readouterr().out
    assert "overloaded (ttft_p50<1ms is" in text, "stopped early"
    assert "no load meets the objectives, not even 1 request at a time" in text


def test_a_search_chooses_the_load_itself(mock_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert mock_search(mock_url, "--slo", "ttft_p99<1s", "--max-concurrency", "4") == 2
    assert "Leave out --max-concurrency" in capsys.readouterr().err


async def test_an_interrupt_ends_the_pause_between_steps() -> None:
    waiting = asyncio.create_task(pause(3600))
    await asyncio.sleep(0)
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(SearchInterrupted):
        await asyncio.wait_for(waiting, 10)
