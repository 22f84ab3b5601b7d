"""What slowed a replica's steps: compilers that are seen or announced, waits for a CPU, and others' prompts."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.engine.slow_causes import Compilations, CpuWaits, Intervals, SlowCauses
from serve_app.protocol.messages import EngineTiming, TokenDelta

PERIOD_S = 0.5


@dataclass
class Machine:
    """CPU times as a test sets them."""

    compilers: dict[int, float] = field(default_factory=dict)
    waited: dict[int, float] = field(default_factory=lambda: {1: 0.0})

    def causes(self) -> SlowCauses:
        return SlowCauses(lambda: dict(self.compilers), lambda: dict(self.waited))


def compiled(machine: Machine, causes: SlowCauses, *, begun_s: float, beats: int, pid: int = 7) -> float:
    """Heartbeats during a step in which a compiler runs. Returns the time of the last."""
    for number in range(beats):
        now_s = begun_s + number * PERIOD_S
        machine.compilers[pid] = number * 0.4
        causes.observe(now_s, 3, busy=True)
    return now_s


def test_a_compiler_during_a_long_step_takes_all_of_the_step() -> None:
    machine = Machine()
    causes = machine.causes()
    causes.observe(10.0, 2, busy=True)
    causes.step(10.2, 0, prefilling=False, decoding=True)
    last_s = compiled(machine, causes, begun_s=10.5, beats=6)
    assert causes.compiles, "now"
    causes.step(last_s + 0.2, 0, prefilling=True, decoding=True)
    timing = EngineTiming(engine_queue_s=1.0, prefill_s=last_s + 0.2 - 10.8)
    causes.first_token(timing, last_s + 0.2)
    assert timing.prefill_s == pytest.approx(0.0)
    assert timing.engine_queue_s == pytest.approx(1.0 - timing.compile_s + last_s + 0.2 - 10.8)
    assert timing.compile_s == pytest.approx(last_s + 0.2 - 10.5)  # from the first look at this step


def test_a_long_step_without_a_compiler_is_none() -> None:
    machine = Machine(compilers={7: 100.0})  # TorchInductor's workers stay, and wait
    causes = machine.causes()
    for number in range(8):
        causes.observe(number * PERIOD_S, 3, busy=True)
        assert not causes.compiles
    causes.step(4.0, 0, prefilling=True, decoding=True)
    timing = EngineTiming(prefill_s=4.0)
    causes.first_token(timing, 4.0)
    assert timing == EngineTiming(prefill_s=4.0)


def test_time_before_and_after_the_compiler_is_not_its() -> None:
    one, cpu_s = Compilations(), {7: 1.0}
    for now_s, used_s in ((0.0, 1.0), (0.5, 1.0), (1.0, 1.0), (1.5, 1.4), (2.0, 1.8), (2.5, 1.8), (3.0, 1.8)):
        cpu_s[7] = used_s
        one.observe(now_s, 1, busy=True, compilers=lambda: dict(cpu_s))
    assert one.step(3.2, 0, usual_s=0.02) == pytest.approx(1.0)
    assert one.within(0.0, 1.0) == 0.0
    assert one.within(1.5, 9.0) == pytest.approx(0.5)


def test_what_the_engine_announces_counts_however_short() -> None:
    one = Compilations()
    one.observe(0.0, 1, busy=True, compilers=dict)
    one.step(0.1, 0, usual_s=None)
    assert one.step(0.4, 1, usual_s=0.02) == pytest.approx(0.28)
    assert one.step(0.5, 1, usual_s=0.02) == 0.0


def test_a_compilation_is_no_neighbours_prefill_and_no_usual_step() -> None:
    causes = Machine().causes()
    for number in range(10):
        causes.step(number * 0.02, 0, prefilling=False, decoding=True)
    told = causes.first_token(EngineTiming(), 0.18)
    causes.step(2.18, 1, prefilling=False, decoding=True)
    causes.step(4.68, 1, prefilling=True, decoding=True)
    delta = TokenDelta("x", 1, [1])
    causes.tell(told, delta)
    assert delta.timing is not None
    assert delta.timing.compile_s == pytest.approx(1.98)
    assert delta.timing.neighbour_prefill_s == pytest.approx(2.48)
    again = TokenDelta("x", 2, [1], finish_reason=0)
    causes.tell(told, again)
    assert again.timing is None


def test_the_process_that_waited_most_for_a_cpu_counts() -> None:
    waits = CpuWaits()
    waits.observe(0.0, {1: 5.0, 2: 1.0})
    waits.observe(1.0, {1: 5.3, 2: 1.6, 3: 80.0})  # a process that is new has no time before
    waits.observe(2.0, {1: 5.35, 2: 1.65})  # every process waits at times
    assert waits.total_s == pytest.approx(0.6)
    assert waits.within(0.5, 2.0) == pytest.approx(0.3)


def test_a_slow_first_token_has_its_wait_for_a_cpu_up_to_now() -> None:
    machine = Machine()
    causes = machine.causes()
    causes.observe(0.0, 1, busy=True)
    machine.waited[1] = 0.9
    timing = EngineTiming(prefill_s=1.0)
    causes.first_token(timing, 1.0)
    assert timing.prefill_s == pytest.approx(0.1)
    assert timing.cpu_wait_s == pytest.approx(0.9)


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0.01, 5), st.floats(0, 1)), max_size=20), st.floats(0, 50))
def test_parts_of_a_stretch_add_up(found: list[tuple[float, float, float]], cut_s: float) -> None:
    intervals, now_s = Intervals(), 0.0
    for gap_s, lasts_s, share in found:
        intervals.add(now_s + gap_s, now_s + gap_s + lasts_s, share * lasts_s)
        now_s += gap_s + lasts_s
    whole = intervals.within(0.0, now_s + 50)
    assert whole == pytest.approx(intervals.total_s)
    assert intervals.within(0.0, cut_s) + intervals.within(cut_s, now_s + 50) == pytest.approx(whole)


@given(
    st.floats(0, 5),
    st.floats(0, 5),
    st.floats(0, 5),
    st.lists(st.tuples(st.floats(0.01, 3), st.floats(0, 3)), max_size=8),
)
def test_taking_out_keeps_the_sum(
    replica_s: float, queue_s: float, prefill_s: float, waits: list[tuple[float, float]]
) -> None:
    machine, now_s = Machine(), 0.0
    causes = machine.causes()
    for lasts_s, waited_s in waits:
        causes.observe(now_s, 1, busy=True)
        now_s += lasts_s
        machine.waited[1] += waited_s
    timing = EngineTiming(replica_queue_s=replica_s, engine_queue_s=queue_s, prefill_s=prefill_s)
    causes.first_token(timing, now_s)
    parts = (timing.replica_queue_s, timing.engine_queue_s, timing.prefill_s, timing.compile_s, timing.cpu_wait_s)
    assert min(parts) >= -1e-9
    assert sum(parts) == pytest.approx(replica_s + queue_s + prefill_s)
