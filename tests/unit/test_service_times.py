"""How long a sequence runs, against engines of which it is known."""

from __future__ import annotations

import heapq
import random

import pytest

from serve_app.engine.service_times import ServiceTimes


def run(times: ServiceTimes, arrivals: list[float], services: list[float], slots: int) -> float:
    """A queue with so many slots. Returns when the last has ended."""
    free = [0.0] * slots
    events = []
    for arrival_s, service_s in zip(arrivals, services, strict=True):
        start_s = max(arrival_s, heapq.heappop(free))
        heapq.heappush(free, start_s + service_s)
        events += [(arrival_s, 1), (start_s + service_s, -1)]
    for now_s, change in sorted(events):
        if change > 0:
            times.enter(now_s)
        else:
            times.leave(now_s, served=True)
    return max(free)


def test_nothing_is_claimed_before_anything_has_ended() -> None:
    times = ServiceTimes(4, 0.0)
    times.enter(1.0)
    assert times.mean_s(100.0) is None
    times.leave(101.0, served=False)
    assert times.mean_s(200.0) is None


@pytest.mark.parametrize("per_second", [0.5, 1.5, 20.0])
def test_it_finds_the_mean_at_any_load(per_second: float) -> None:
    draw = random.Random(1)
    count, slots = 4000, 16
    arrivals = [number / per_second for number in range(count)]
    services = [draw.expovariate(1 / 8) for _ in range(count)]
    times = ServiceTimes(slots, 0.0)
    end_s = run(times, arrivals, services, slots)
    mean_s = times.mean_s(end_s)
    assert mean_s == pytest.approx(8, rel=0.4)


def test_it_follows_when_requests_get_longer() -> None:
    times = ServiceTimes(2, 0.0)
    end_s = run(times, [0.0] * 40, [1.0] * 40, 2)
    assert times.mean_s(end_s) == pytest.approx(1.0, rel=0.1)  # they end in pairs
    end_s = run(times, [end_s] * 40, [10.0] * 40, 2)
    assert times.mean_s(end_s) == pytest.approx(10.0, rel=0.1)


def test_what_runs_long_counts_before_it_ends() -> None:
    times = ServiceTimes(4, 0.0)
    times.enter(0.0)
    times.leave(1.0, served=True)
    assert times.mean_s(1.0) == pytest.approx(1.0)
    for _ in range(8):
        times.enter(1.0)
    assert times.mean_s(11.0) == pytest.approx(41.0)  # four of them run


def test_a_quiet_night_changes_nothing() -> None:
    times = ServiceTimes(2, 0.0)
    times.enter(0.0)
    times.leave(3.0, served=True)
    assert times.mean_s(100_000.0) == times.mean_s(3.0)


def test_a_full_engine_is_not_as_fast_as_one_with_little_to_do() -> None:
    times, now_s = ServiceTimes(4, 0.0), 0.0
    for _ in range(50):  # one at a time, a second each
        times.enter(now_s)
        now_s += 1.0
        times.leave(now_s, served=True)
    for _ in range(4):
        times.enter(now_s)
    assert times.mean_s(now_s) == pytest.approx(1.0)
    for _ in range(8):  # four at a time take three seconds each
        now_s += 3.0
        for _ in range(4):
            times.leave(now_s, served=True)
            times.enter(now_s)
    assert times.mean_s(now_s) == pytest.approx(3.0, rel=0.25)
