"""The estimate from a short run, compared with the long run itself, made of the same waves."""

from __future__ import annotations

import numpy as np
import pytest

from loadtest.api.record import Record, RunRecords
from loadtest.errors import RequestOutcome
from loadtest.metrics.projection import Projection, project
from loadtest.metrics.steady_state import find_steady_state

SLOTS = 8
BEGIN = 10**12
S = 10**9


def waves(count: int, seed: int = 0) -> RunRecords:
    """Slots that answer one request after the other: 1 s to the first token in the first wave, 0.2 s later."""
    rng = np.random.default_rng(seed)
    free = [BEGIN] * SLOTS
    records = []
    for index in range(count * SLOTS):
        slot = int(np.argmin(free))
        first_s = 1.0 if index < SLOTS else 0.2 + rng.normal(0, 0.01)
        times = free[slot] + int(first_s * S) + np.cumsum(rng.normal(0.02, 0.002, 100) * S).astype(np.int64)
        records.append(
            Record(
                index=index, start_ns=free[slot], intended_ns=free[slot], end_ns=int(times[-1]), chunk_ns=times,
                chunk_has_token=np.ones(100, dtype=np.bool_), status=200, outcome=RequestOutcome.OK, output_tokens=200,
                vllm_output_tokens=200, vllm_prompt_tokens=800,
            )
        )  # fmt: skip
        free[slot] = int(times[-1])
    return RunRecords(records, BEGIN, max(free), 0.0)


def projected(run: RunRecords, prompts: int) -> Projection | None:
    return project(run, find_steady_state(run, slots=SLOTS), prompts, SLOTS)


@pytest.mark.parametrize("seed", range(5))
def test_three_waves_estimate_sixteen(seed: int) -> None:
    long = waves(16, seed=100 + seed)
    estimate = projected(waves(3, seed=seed), 16 * SLOTS)
    assert estimate is not None
    true_rate = 16 * SLOTS * 200 / long.duration_s
    assert estimate.output_rate.mean == pytest.approx(true_rate, rel=0.1)
    assert estimate.output_rate.low <= true_rate <= estimate.output_rate.high
    assert estimate.total_rate.mean == pytest.approx(estimate.output_rate.mean * 5)
    assert estimate.ttft_mean.mean == pytest.approx(1000 / 16 + 200 * 15 / 16, rel=0.2)
    assert estimate.tpot_mean.low <= 10 <= estimate.tpot_mean.high * 1.05


def test_nothing_is_estimated_where_the_run_is_long_enough_or_has_failures() -> None:
    run = waves(3)
    assert projected(run, 3 * SLOTS) is None
    run.records[0].outcome = RequestOutcome.CUT
    assert projected(run, 16 * SLOTS) is None
    assert project(waves(3), None, 16 * SLOTS, SLOTS) is None
