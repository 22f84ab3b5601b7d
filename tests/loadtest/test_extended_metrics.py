"""What vLLM's metrics hide."""

from __future__ import annotations

import pytest

from loadtest.metrics.extended_metrics import extended_metrics_of
from tests.loadtest.records import MS, record


def test_a_gap_per_token_is_the_gap_over_the_tokens_it_brought() -> None:
    metrics = extended_metrics_of([record(0, 50, 30, 10, per_chunk=3)], [99.0])
    assert metrics.tokens_per_chunk == 3
    assert metrics.token_gap.mean == pytest.approx(10)
    assert metrics.output_drift is not None
    assert metrics.output_drift.off_ratio == 0


def test_events_of_one_read_are_a_burst() -> None:
    one = record(0, 50, 20, 4)
    one.chunk_ns = one.chunk_ns[[0, 0, 2, 2]]
    metrics = extended_metrics_of([one], [99.0])
    assert metrics.bursts_ratio == 0.5
    assert metrics.read_gap.mean == pytest.approx(40)


def test_the_intended_time_shows_what_the_send_time_hides() -> None:
    one = record(0, 50, 20, 4)
    one.intended_ns = one.start_ns - 500 * MS
    metrics = extended_metrics_of([one], [99.0])
    assert metrics.first_token.mean == pytest.approx(50)
    assert metrics.first_token_intended.mean == pytest.approx(550)
    assert metrics.queue.mean == pytest.approx(500)
