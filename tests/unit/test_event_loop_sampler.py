"""How busy and how late an event loop is, on a clock that the tests turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from serve_app.ingress.autoscaling import BUSY_RATIO, LAG_S
from serve_app.ingress.event_loop import PERIOD_TICKS, TICK_S, EventLoopSampler, LoopUse

PERIOD_S = PERIOD_TICKS * TICK_S


@dataclass(eq=False)
class FakeTimer:
    """One timer of a `FakeLoop`."""

    due_s: float
    callback: Callable[[], None]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


@dataclass
class FakeLoop:
    """Timers, a clock and a thread's CPU time. Its time passes in `idle` and `block` only."""

    now_s: float = 1000.0
    cpu_s: float = 50.0
    timers: list[FakeTimer] = field(default_factory=list)
    wakeups: int = 0

    def call_later(self, delay: float, callback: Callable[[], None]) -> FakeTimer:
        self.timers.append(FakeTimer(self.now_s + delay, callback))
        return self.timers[-1]

    def idle(self, duration_s: float) -> None:
        """Timers run when they are due."""
        end_s = self.now_s + duration_s
        while due := [timer for timer in self.waiting() if timer.due_s <= end_s]:
            self._run(min(due, key=lambda timer: timer.due_s))
        self.now_s = end_s

    def block(self, duration_s: float, cpu_s: float) -> None:
        """One callback that takes so long and this CPU time; what becomes due meanwhile runs after it."""
        self.now_s += duration_s
        self.cpu_s += cpu_s
        self.idle(0.0)

    def waiting(self) -> list[FakeTimer]:
        return [timer for timer in self.timers if not timer.cancelled]

    def _run(self, timer: FakeTimer) -> None:
        self.wakeups += 1
        self.timers.remove(timer)
        self.now_s = max(self.now_s, timer.due_s)
        timer.callback()


@pytest.fixture
def loop() -> FakeLoop:
    return FakeLoop()


@pytest.fixture
def periods() -> list[LoopUse]:
    """What the sampler has reported: each period ten times, once a second."""
    return []


@pytest.fixture
def sampler(loop: FakeLoop, periods: list[LoopUse]) -> EventLoopSampler:
    return EventLoopSampler(loop, periods.append, lambda: loop.now_s, lambda: loop.cpu_s)


def test_an_idle_loop_is_neither_busy_nor_late(
    loop: FakeLoop, sampler: EventLoopSampler, periods: list[LoopUse]
) -> None:
    with sampler:
        loop.idle(2 * PERIOD_S)
    assert set(periods) == {LoopUse(0.0, 0.0)}


def test_a_period_is_reported_every_second_until_the_next_one(
    loop: FakeLoop, sampler: EventLoopSampler, periods: list[LoopUse]
) -> None:
    with sampler:
        loop.idle(2 * PERIOD_S - TICK_S)
        assert len(periods) == 10
        loop.block(1.0, cpu_s=1.0)
        loop.idle(PERIOD_S)
    assert periods[9] == LoopUse(0.0, 0.0)
    assert periods[10].lag_s > 0


def test_nothing_is_reported_before_the_first_period_is_over(loop: FakeLoop, sampler: EventLoopSampler) -> None:
    with sampler:
        loop.idle(PERIOD_S - TICK_S)
        assert sampler.stats() == {}
        loop.idle(TICK_S)
        assert sampler.stats() == {BUSY_RATIO: 0.0, LAG_S: 0.0}


def test_the_busy_ratio_is_cpu_time_and_not_time_that_was_waited(
    loop: FakeLoop, sampler: EventLoopSampler, periods: list[LoopUse]
) -> None:
    with sampler:
        for _ in range(150):
            loop.block(0.05, cpu_s=0.03)
            loop.idle(0.05)
    assert periods[0].busy_ratio == pytest.approx(0.3, abs=0.02)


def test_a_loop_that_is_always_busy_has_a_ratio_of_one(
    loop: FakeLoop, sampler: EventLoopSampler, periods: list[LoopUse]
) -> None:
    with sampler:
        for _ in range(PERIOD_TICKS):
            loop.block(0.3, cpu_s=0.3)
    assert periods[0].busy_ratio == pytest.approx(1.0)
    assert periods[0].lag_s == pytest.approx(0.05)


@pytest.mark.parametrize("begins_s", [0.0, 0.1, 0.24])
def test_a_call_that_blocks_for_half_a_second_is_seen_whenever_it_begins(
    loop: FakeLoop, sampler: EventLoopSampler, periods: list[LoopUse], begins_s: float
) -> None:
    with sampler:
        loop.idle(TICK_S + begins_s)
        loop.block(0.5, cpu_s=0.1)
        loop.idle(PERIOD_S)
    assert periods[0].lag_s >= 0.25 - 1e-9


def test_a_stall_counts_in_its_own_period_only(
    loop: FakeLoop, sampler: EventLoopSampler, periods: list[LoopUse]
) -> None:
    with sampler:
        loop.block(3.0, cpu_s=3.0)
        loop.idle(2 * PERIOD_S)
    assert (periods[0].lag_s, periods[-1].lag_s) == (pytest.approx(2.75), 0.0)
    assert periods[0].busy_ratio > periods[-1].busy_ratio == 0.0


def test_it_wakes_the_loop_four_times_a_second_and_leaves_no_timer(loop: FakeLoop, sampler: EventLoopSampler) -> None:
    with sampler:
        loop.idle(10.0)
        assert loop.wakeups == 40
        assert len(loop.waiting()) == 1
    assert loop.waiting() == []


def test_a_reader_that_fails_does_not_end_it(loop: FakeLoop) -> None:
    def fail(use: LoopUse) -> None:
        raise ValueError(use)

    with EventLoopSampler(loop, fail, lambda: loop.now_s, lambda: loop.cpu_s) as sampler:
        with pytest.raises(ValueError, match="busy_ratio"):
            loop.idle(PERIOD_S)
        loop.idle(TICK_S)
        assert sampler.stats() == {BUSY_RATIO: 0.0, LAG_S: 0.0}
        assert len(loop.waiting()) == 1
