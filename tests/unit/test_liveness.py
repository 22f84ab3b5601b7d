"""Silence is counted in the watcher's own time."""

from __future__ import annotations

from serve_app.protocol.liveness import SilenceClock


def silences(clock: SilenceClock, looks: list[tuple[float, int, bool]]) -> list[float]:
    return [clock.observe(now_s, sign, expected=expected) for now_s, sign, expected in looks]


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
