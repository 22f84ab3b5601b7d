"""Hours with more engines."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.scaling import (
    Bounds,
    Cause,
    FleetFacts,
    Objective,
    ReplicaFacts,
    ScalingState,
    Settings,
    decide,
    schedule_rule,
)
from serve_app.scaling.schedule import parse_days

BERLIN = "Europe/Berlin"
WORK = schedule_rule(2, "08:00", "18:00", "mon-fri", BERLIN)
NIGHT = schedule_rule(3, "22:00", "06:00", "fri", BERLIN)
FACTS = FleetFacts(0.0, (ReplicaFacts(slots=8),), 1, 0, 60.0, 0.0, 0.0)


def unix_s(when: str, zone: str = BERLIN) -> float:
    return datetime.fromisoformat(when).replace(tzinfo=ZoneInfo(zone)).timestamp()


@pytest.mark.parametrize(
    ("when", "applies"),
    [
        ("2026-11-27 07:59", False),  # a Friday
        ("2026-11-27 08:00", True),
        ("2026-11-27 17:59:59", True),
        ("2026-11-27 18:00", False),
        ("2026-11-28 12:00", False),
        ("2026-07-03 08:30", True),  # summer time
    ],
)
def test_it_applies_by_the_clock_of_its_zone(when: str, applies: bool) -> None:
    assert WORK.applies(unix_s(when)) is applies


@pytest.mark.parametrize(
    ("when", "applies"),
    [("2026-11-27 23:00", True), ("2026-11-28 05:59", True), ("2026-11-28 06:00", False), ("2026-11-28 23:00", False)],
)
def test_it_goes_on_after_midnight(when: str, applies: bool) -> None:
    assert NIGHT.applies(unix_s(when)) is applies


def test_days_may_go_round() -> None:
    assert parse_days("fri-mon, wed") == {4, 5, 6, 0, 2}
    with pytest.raises(ValueError, match="'moon' is not a day"):
        parse_days("moon")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("8 am", "18:00", "mon", "UTC"), "'8 am' is not a time of day"),
        (("08:00", "25:00", "mon", "UTC"), "'25:00' is not a time of day"),
        (("08:00", "18:00", "mon", "Berlin"), "'Berlin' is not a time zone"),
    ],
)
def test_words_that_mean_nothing_are_refused(words: tuple[str, str, str, str], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        schedule_rule(1, *words)


@given(now_s=st.floats(1.7e9, 1.9e9), target=st.integers(0, 9), budget=st.none() | st.integers(0, 9))
def test_the_schedule_holds_within_the_budget(now_s: float, target: int, budget: int | None) -> None:
    bounds = Bounds(1, 6, gpus_per_replica=1, gpu_budget=budget, schedule=(WORK, NIGHT))
    facts = replace(FACTS, now_s=now_s, target=target)
    decision, _ = decide(facts, ScalingState(), Settings(Objective(1.0), bounds))
    asked = max([1, *(rule.minimum for rule in (WORK, NIGHT) if rule.applies(now_s))])
    assert decision.target >= min(asked, bounds.most)
    assert decision.target <= bounds.most


def test_the_reason_has_the_configurations_words() -> None:
    bounds = Bounds(1, 6, schedule=(WORK,))
    facts = replace(FACTS, now_s=unix_s("2026-11-27 08:00"))
    decision, _ = decide(facts, ScalingState(), Settings(Objective(1.0), bounds))
    expected = "scaled 1 -> 2: the schedule asks for at least 2 from 08:00 to 18:00 on mon-fri (Europe/Berlin)"
    assert (decision.reason, decision.cause) == (expected, Cause.SCHEDULE)
