"""Silence is counted in the watcher's own time."""

from __future__ import annotations

import random

from serve_app.config import EngineConfig
from serve_app.liveness import SilenceClock


def silences(clock: SilenceClock, looks: list[tuple[float, int, bool]]) -> list[float]:
    return [clock.look(now_s, sign, owed=owed) for now_s, sign, owed in looks]


def test_silence_grows_until_the_sign_changes() -> None:
    looks = [(0.0, 7, True), (0.5, 7, True), (1.0, 7, True), (1.5, 8, True), (2.0, 8, True)]
    assert silences(SilenceClock(0.5), looks) == [0.0, 0.5, 1.0, 0.0, 0.5]


def test_nothing_is_owed_by_who_has_nothing_to_do() -> None:
    looks = [(0.0, 7, True), (0.5, 7, False), (60.0, 7, False), (60.5, 7, True), (61.0, 7, True)]
    assert silences(SilenceClock(0.5), looks) == [0.0, 0.0, 0.0, 0.5, 1.0]


def test_a_watcher_that_was_away_does_not_take_others_for_dead() -> None:
    looks = [(0.0, 7, True), (600.0, 7, True), (600.5, 7, True)]
    assert silences(SilenceClock(0.5), looks) == [0.0, 1.0, 1.5]


def test_a_watcher_that_is_late_still_counts() -> None:
    looks = [(float(second), 7, True) for second in range(31)]
    assert silences(SilenceClock(0.5), looks)[-1] == 30.0


def test_half_an_hour_of_slow_steps_is_no_hang_however_late_the_watcher() -> None:
    rng = random.Random(0)
    clock = SilenceClock(0.5)
    now_s, next_step_s, steps, worst_s = 0.0, 0.0, 0, 0.0
    while now_s < 1800:
        now_s += 0.5 if rng.random() < 0.98 else rng.uniform(0.5, 30.0)  # a loop that renders images is late
        while next_step_s <= now_s:
            steps += 1
            next_step_s += rng.uniform(0.02, 15.0)  # pieces of long prompts on a machine that is too small for them
        worst_s = max(worst_s, clock.look(now_s, steps))
    assert 10 < worst_s < EngineConfig().hang_after_s


def test_a_hang_is_seen_in_time_by_a_watcher_that_is_not_late() -> None:
    clock = SilenceClock(0.5)
    looks = [clock.look(0.5 * number, 7) for number in range(61)]
    assert next(0.5 * number for number, silence_s in enumerate(looks) if silence_s >= 20.0) <= 20.5
