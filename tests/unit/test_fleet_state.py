"""What an ingress says of a fleet without an engine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.protocol.messages import ReplicaLoad
from serve_app.router.fleet_state import LATE_EXTRA_S, LATE_FACTOR, SERVES, FleetFacts, FleetState, queue_sentence


@pytest.mark.parametrize(
    ("facts", "state"),
    [
        (FleetFacts(is_up=True, may_sleep=True), FleetState.UP),
        (FleetFacts(is_up=False, may_sleep=False), FleetState.DOWN),
        (FleetFacts(is_up=False, may_sleep=True), FleetState.ASLEEP),
        (FleetFacts(is_up=False, may_sleep=True, elapsed_s=3.0), FleetState.STARTING),
        (FleetFacts(is_up=False, may_sleep=True, start_s=10.0, elapsed_s=79.0, waiting=1), FleetState.STARTING),
        (FleetFacts(is_up=False, may_sleep=True, start_s=10.0, elapsed_s=81.0, waiting=1), FleetState.LATE),
        (FleetFacts(is_up=False, may_sleep=True, failure="no GPU"), FleetState.FAILED),
    ],
)
def test_a_fleet_has_one_state(facts: FleetFacts, state: FleetState) -> None:
    assert facts.state is state
    assert facts.sentence().startswith(state.value)


def test_a_load_balancer_goes_on_where_a_request_would_be_answered() -> None:
    assert set(SERVES) == {FleetState.UP, FleetState.ASLEEP, FleetState.STARTING}


def test_a_late_start_that_nobody_waits_for_does_not_keep_requests_away_for_ever() -> None:
    late_s = LATE_FACTOR * 10 + LATE_EXTRA_S + 1
    assert FleetFacts(is_up=False, may_sleep=True, start_s=10.0, elapsed_s=late_s).state is FleetState.ASLEEP


@given(st.floats(0.1, 1000), st.floats(0, 2000))
def test_the_wait_is_what_is_left_of_the_last_start_and_unknown_after_that(start_s: float, elapsed_s: float) -> None:
    left_s = FleetFacts(is_up=False, may_sleep=True, start_s=start_s, elapsed_s=elapsed_s).left_s
    if elapsed_s < start_s:
        assert left_s == pytest.approx(start_s - elapsed_s)
    else:
        assert left_s is None


def test_nothing_is_promised_that_was_not_measured() -> None:
    unknown = FleetFacts(is_up=False, may_sleep=True)
    assert unknown.left_s is None
    assert "not known" in unknown.sentence()
    assert FleetFacts(is_up=True, may_sleep=True).left_s == 0


@pytest.mark.parametrize(
    ("queued", "tokens", "rate", "words"),
    [
        (0, 9000, 3000.0, ""),
        (1, 9000, None, "1 request waits at this engine"),
        (12, 24_000, 3000.0, "12 requests wait at this engine, and the prompts there take about 8 s"),
    ],
)
def test_a_queue_in_words(queued: int, tokens: int, rate: float | None, words: str) -> None:
    load = ReplicaLoad(
        20, 8, 0.0, draining=False, queued_prefill_tokens=tokens, prefill_tokens_per_s=rate, queued=queued
    )
    assert queue_sentence(load) == words
