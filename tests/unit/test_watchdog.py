"""A hung engine is told from a slow one by what its processes do."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from serve_app.engine.watchdog import EngineActivity, EngineState, Judgement, Watchdog, WatchdogLimits

PERIOD_S = 0.5
LIMITS = WatchdogLimits(hung_after_s=20.0, stuck_after_s=100.0, compile_limit_s=900.0)


@dataclass
class Engine:
    """What a watchdog sees of an engine: processes that use a share of a core each, for as long as a test says."""

    now_s: float = 0.0
    steps: int = 7
    busy: bool = True
    cpu_ratio: dict[int, float] = field(default_factory=lambda: {1: 0.0})
    compiler_ratio: dict[int, float] = field(default_factory=dict)
    gpu: float | None = None
    cpu_s: dict[int, float] = field(default_factory=dict)
    compiler_s: dict[int, float] = field(default_factory=dict)
    unseen: int = 0
    readings: int = 0
    tick_s: float = 0.0
    """What CPU times are counted in, as a process table does; 0 for exact ones."""

    def read(self) -> EngineActivity:
        self.readings += 1
        return EngineActivity(self.counted(self.cpu_s), self.counted(self.compiler_s), self.gpu, self.unseen)

    def counted(self, spent_s: dict[int, float]) -> dict[int, float]:
        tick_s = self.tick_s
        return {pid: time_s // tick_s * tick_s if tick_s else time_s for pid, time_s in spent_s.items()}

    def run(self, watchdog: Watchdog, duration_s: float) -> Iterator[Judgement]:
        for _ in range(int(duration_s / PERIOD_S)):
            yield watchdog.observe(self.now_s, self.steps, self.read, busy=self.busy)
            self.now_s += PERIOD_S
            for spent_s, ratios in ((self.cpu_s, self.cpu_ratio), (self.compiler_s, self.compiler_ratio)):
                for pid, ratio in ratios.items():
                    spent_s[pid] = spent_s.get(pid, 0.0) + ratio * PERIOD_S


def killed_after_s(judgements: Iterator[Judgement]) -> tuple[float, EngineState] | None:
    """After how long, and why; None for an engine that is let live."""
    for number, judgement in enumerate(judgements):
        if judgement.state in (EngineState.HUNG, EngineState.STUCK):
            return number * PERIOD_S, judgement.state
    return None


def test_an_engine_of_which_nothing_moves_is_hung_within_thirty_seconds() -> None:
    found = killed_after_s(Engine().run(Watchdog(LIMITS, PERIOD_S), 60))
    assert found is not None and found[1] is EngineState.HUNG
    assert found[0] <= 30


def test_timers_of_waiting_processes_are_no_movement() -> None:
    engine = Engine(cpu_ratio=dict.fromkeys(range(9), 0.005))
    found = killed_after_s(engine.run(Watchdog(LIMITS, PERIOD_S), 60))
    assert found is not None and found[1] is EngineState.HUNG


@pytest.mark.parametrize("share", [0.002, 0.005, 0.01])
def test_a_tick_that_a_waiting_process_takes_is_no_movement(share: float) -> None:
    engine = Engine(cpu_ratio={1: share, 2: share / 2}, tick_s=0.02)  # one of user time and one of system time
    found = killed_after_s(engine.run(Watchdog(LIMITS, PERIOD_S), 60))
    assert found is not None and found[1] is EngineState.HUNG
    assert found[0] <= 30


def test_what_stops_moving_long_after_its_last_step_is_hung_within_thirty_seconds_of_that() -> None:
    engine, watchdog = Engine(cpu_ratio={1: 1.0}), Watchdog(LIMITS, PERIOD_S)
    assert killed_after_s(engine.run(watchdog, 45)) is None
    engine.cpu_ratio = {1: 0.0}
    found = killed_after_s(engine.run(watchdog, 60))
    assert found is not None and found[1] is EngineState.HUNG
    assert found[0] <= 30


def test_a_loop_that_spins_is_stuck_within_two_minutes() -> None:
    found = killed_after_s(Engine(cpu_ratio={1: 1.0}).run(Watchdog(LIMITS, PERIOD_S), 200))
    assert found is not None and found[1] is EngineState.STUCK
    assert found[0] <= 120


def test_a_slow_step_is_busy_and_says_by_what_evidence() -> None:
    *_, last = Engine(cpu_ratio={1: 0.01, 2: 0.9}).run(Watchdog(LIMITS, PERIOD_S), 90)
    assert last.state is EngineState.BUSY
    assert "90% of a core" in last.evidence


def test_an_engine_that_gets_little_of_a_crowded_machine_is_not_hung() -> None:
    assert killed_after_s(Engine(cpu_ratio={1: 0.05}).run(Watchdog(LIMITS, PERIOD_S), 90)) is None


def test_a_gpu_at_work_is_movement_though_no_process_uses_a_core() -> None:
    *_, last = Engine(gpu=0.97).run(Watchdog(LIMITS, PERIOD_S), 60)
    assert last.state is EngineState.BUSY
    assert "GPU at 97%" in last.evidence


def test_an_engine_whose_workers_are_not_all_seen_is_never_called_hung_but_stuck() -> None:
    engine, watchdog = Engine(unseen=7), Watchdog(LIMITS, PERIOD_S)
    *_, last = engine.run(watchdog, 90)
    assert last.state is EngineState.BUSY
    assert "7 workers have not answered" in last.evidence
    found = killed_after_s(engine.run(watchdog, 60))
    assert found is not None and found[1] is EngineState.STUCK


def test_workers_that_are_seen_again_and_do_nothing_are_hung_within_thirty_seconds_of_that() -> None:
    engine, watchdog = Engine(unseen=1, cpu_s={1: 5.0}), Watchdog(LIMITS, PERIOD_S)
    assert killed_after_s(engine.run(watchdog, 60)) is None
    engine.unseen, engine.cpu_s[2] = 0, 9_000.0  # all that it has used since its start
    found = killed_after_s(engine.run(watchdog, 60))
    assert found is not None and found[1] is EngineState.HUNG
    assert 15 <= found[0] <= 30


def test_a_compiler_below_the_engine_has_a_limit_of_its_own() -> None:
    engine = Engine(cpu_ratio={1: 0.0}, compiler_ratio={5: 0.8})
    assert killed_after_s(engine.run(Watchdog(LIMITS, PERIOD_S), 600)) is None
    assert killed_after_s(engine.run(Watchdog(LIMITS, PERIOD_S), 1000)) is not None


def test_a_compilation_may_pause_its_compiler() -> None:
    engine, watchdog = Engine(cpu_ratio={1: 1.0}), Watchdog(LIMITS, PERIOD_S)
    for _ in range(20):
        engine.compiler_ratio = {5: 0.8}
        assert killed_after_s(engine.run(watchdog, 10)) is None
        engine.compiler_ratio = {}
        assert killed_after_s(engine.run(watchdog, 15)) is None


def test_a_step_may_take_three_times_as_long_as_the_slowest_before_it() -> None:
    engine, watchdog = Engine(cpu_ratio={1: 1.0}), Watchdog(LIMITS, PERIOD_S)
    assert killed_after_s(engine.run(watchdog, 90)) is None
    engine.steps += 1
    assert killed_after_s(engine.run(watchdog, 250)) is None
    found = killed_after_s(engine.run(watchdog, 100))
    assert found is not None and found[1] is EngineState.STUCK


def test_nothing_is_owed_by_an_engine_without_requests() -> None:
    engine = Engine(busy=False)
    assert killed_after_s(engine.run(Watchdog(LIMITS, PERIOD_S), 600)) is None
    assert engine.readings == 0


def test_activity_is_read_only_when_a_step_is_overdue() -> None:
    engine, watchdog = Engine(), Watchdog(LIMITS, PERIOD_S)
    for _ in range(100):
        engine.steps += 1
        list(engine.run(watchdog, 1.5))
    assert engine.readings == 0


def test_a_watcher_that_was_away_does_not_take_the_engine_for_hung() -> None:
    engine, watchdog = Engine(cpu_ratio={1: 0.0}), Watchdog(LIMITS, PERIOD_S)
    assert killed_after_s(engine.run(watchdog, 3)) is None
    engine.now_s += 600
    assert killed_after_s(engine.run(watchdog, 10)) is None


def test_half_an_hour_of_slow_steps_is_no_hang_however_late_the_watcher() -> None:
    rng, engine, watchdog = random.Random(0), Engine(cpu_ratio={1: 0.5}), Watchdog(LIMITS, PERIOD_S)
    while engine.now_s < 1800:
        assert killed_after_s(engine.run(watchdog, rng.uniform(0.5, 80.0))) is None
        engine.steps += 1
        engine.now_s += rng.choice((0.0, 0.0, 30.0))


@pytest.mark.parametrize("hung_after_s", [4.0, 6.0, 29.0])
def test_a_slow_step_is_let_go_on_whatever_the_limit_of_hanging(hung_after_s: float) -> None:
    limits = WatchdogLimits(hung_after_s=hung_after_s, stuck_after_s=600.0)
    assert killed_after_s(Engine(cpu_ratio={1: 0.9}, tick_s=0.01).run(Watchdog(limits, PERIOD_S), 120)) is None
    found = killed_after_s(Engine().run(Watchdog(limits, PERIOD_S), 120))
    assert found is not None and found[1] is EngineState.HUNG
