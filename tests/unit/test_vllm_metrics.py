"""Gauges and counters reach Ray a little late, and whole."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from serve_app.engine import vllm_metrics
from serve_app.engine.vllm_metrics import BufferedCounter, BufferedGauge


class Recorder:
    """Stands where a metric writes to Ray's core."""

    def __init__(self) -> None:
        self.values: asyncio.Queue[float] = asyncio.Queue()

    def record(self, value: float, tags: dict[str, str]) -> None:
        assert tags["engine"] == "0"
        self.values.put_nowait(value)


def recorded(metric: Any) -> tuple[Any, Recorder]:
    recorder = Recorder()
    metric.metric._metric = recorder
    return metric.labels("0"), recorder


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_metrics, "FLUSH_S", 0.01)


async def test_increments_are_added_up_and_none_is_lost() -> None:
    counter, recorder = recorded(BufferedCounter("late_counter_test", "", ["engine"]))
    for value in (1, 2, 0, 4):
        counter.inc(value)
    assert recorder.values.empty()
    assert await recorder.values.get() == 7
    counter.inc()
    assert await recorder.values.get() == 1
    assert recorder.values.empty()


async def test_a_counter_asked_for_again_by_its_labels_goes_on_adding() -> None:
    counter = BufferedCounter("late_counter_test_2", "", ["engine"])
    first, recorder = recorded(counter)
    first.inc(1)
    counter.labels("0").inc(2)
    counter.labels(engine="0").inc(0)
    assert await recorder.values.get() == 3


async def test_the_latest_value_of_a_gauge_counts_zero_too() -> None:
    gauge, recorder = recorded(BufferedGauge("late_gauge_test", "", ["engine"]))
    gauge.set(5)
    gauge.set(0)
    assert await recorder.values.get() == 0
    assert recorder.values.empty()


def test_without_a_loop_nothing_waits() -> None:
    gauge, recorder = recorded(BufferedGauge("late_gauge_test_2", "", ["engine"]))
    gauge.set(3)
    assert recorder.values.get_nowait() == 3
