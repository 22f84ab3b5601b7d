"""Start, wait, or come back later: and when."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from serve_app.router.admission import (
    ASSUMED_SERVICE_S,
    LEAST_RETRY_S,
    MOST_RETRY_S,
    Admission,
    AdmissionFacts,
    Admit,
    RejectNoReplica,
    RejectPermanently,
    RejectRetryable,
    refuse,
    start_wait,
)

counts = st.integers(0, 2000)
facts_of_a_fleet = st.builds(
    AdmissionFacts,
    asked=st.integers(1, 64),
    held=counts,
    room=counts,
    slots=st.integers(1, 1000),
    waiting=counts,
    service_s=st.none() | st.floats(0, 1e6, allow_nan=False),
    promised=counts,
    ingresses=st.integers(0, 16),
    one_room=counts,
)
BUSY = AdmissionFacts(asked=1, held=80, room=80, slots=40, service_s=60.0, one_room=80)


def refused(facts: AdmissionFacts) -> RejectRetryable:
    verdict = Admission().decide(facts)
    assert isinstance(verdict, RejectRetryable)
    return verdict


@given(facts_of_a_fleet)
def test_it_lets_in_exactly_what_there_is_room_for(facts: AdmissionFacts) -> None:
    fits = facts.held + facts.waiting + facts.asked <= facts.room
    assert isinstance(Admission().decide(facts), Admit) == fits


@given(facts_of_a_fleet, st.integers(1, 100))
def test_more_room_never_turns_anybody_away(facts: AdmissionFacts, more: int) -> None:
    admission = Admission()
    if isinstance(admission.decide(facts), Admit):
        assert isinstance(admission.decide(replace(facts, room=facts.room + more)), Admit)


@given(facts_of_a_fleet)
def test_a_time_to_come_back_is_whole_seconds_that_an_sdk_waits_for(facts: AdmissionFacts) -> None:
    told = refuse(facts).retry_after_s
    assert isinstance(told, int)
    assert LEAST_RETRY_S <= told <= MOST_RETRY_S


@given(facts_of_a_fleet, st.integers(1, 50))
def test_who_is_refused_later_is_asked_back_no_sooner_until_a_minute(facts: AdmissionFacts, more: int) -> None:
    later = replace(facts, promised=facts.promised + more)
    if refuse(later).retry_after_s < refuse(facts).retry_after_s:
        assert refuse(replace(facts, promised=0)).retry_after_s <= MOST_RETRY_S
        assert refuse(later).retry_after_s >= MOST_RETRY_S // 2


def test_22_the_time_to_come_back_comes_from_what_was_measured_and_says_so() -> None:
    told = refused(BUSY)
    assert told.retry_after_s == 2  # 40 slots, 60 s each: one is free every 1.5 s
    assert told.measured
    assert (
        told.why
        == "it holds 80 requests, of which 40 a minute finish (measured), so there should be room in about 2 seconds"
    )
    assert refused(replace(BUSY, service_s=600.0)).retry_after_s == 15
    assert refused(replace(BUSY, service_s=600.0, slots=400)).retry_after_s == 2


def test_before_anything_was_measured_a_refusal_says_what_it_assumes() -> None:
    told = refused(replace(BUSY, service_s=None, slots=1))
    assert told.retry_after_s == ASSUMED_SERVICE_S
    assert not told.measured
    assert "(assumed, at 20 seconds each)" in told.why


def test_each_of_those_refused_is_told_when_there_is_room_for_it() -> None:
    told = [refused(replace(BUSY, promised=number)).retry_after_s for number in range(30)]
    assert told == [-(-(number + 1) * 3 // 2) for number in range(30)]


def test_the_other_ingresses_refused_come_back_as_well() -> None:
    assert refused(replace(BUSY, promised=4, ingresses=4)).retry_after_s == 26  # one and four times four


def test_a_crowd_that_must_wait_longer_than_can_be_told_does_not_come_back_at_once() -> None:
    told = [refused(replace(BUSY, promised=number)).retry_after_s for number in range(100, 1100)]
    by_second = [told.count(second) for second in range(MOST_RETRY_S // 2 + 1, MOST_RETRY_S + 1)]
    assert sum(by_second) == 1000
    assert max(by_second) - min(by_second) <= 3


def test_what_would_not_fit_an_empty_fleet_is_not_asked_back() -> None:
    admission = Admission(engines=2)
    one_of_two_up = AdmissionFacts(asked=80, held=0, room=40, slots=8, one_room=40)
    assert isinstance(admission.decide(one_of_two_up), RejectRetryable)  # the other comes back
    assert admission.decide(replace(one_of_two_up, asked=81)) == RejectPermanently(80)
    more_than_that_up = replace(one_of_two_up, asked=121, room=120)
    assert admission.decide(more_than_that_up) == RejectPermanently(120)


@given(st.integers(0, 600), st.integers(0, 600), st.integers(1, 8), st.integers(1, 16))
def test_what_waits_for_the_first_replica_has_room_in_it(waiting: int, slots: int, ingresses: int, asked: int) -> None:
    admission = Admission(max_queued_requests=64, slots=slots, ingresses=ingresses)
    verdict = admission.decide(AdmissionFacts(asked=asked, waiting=waiting))
    if isinstance(verdict, Admit):
        assert waiting + asked == 1 or (waiting + asked) * ingresses <= slots + 64
    else:
        assert verdict == RejectNoReplica(waiting)


def test_without_a_replica_one_is_asked_back_when_the_next_has_started() -> None:
    assert start_wait(start_s=40.0, down_s=10.5) == (30, True)
    assert start_wait(start_s=600.0, down_s=0.0) == (MOST_RETRY_S, True)
    assert start_wait(start_s=None, down_s=10.0) == (5, False)
    assert start_wait(start_s=40.0, down_s=41.0) == (5, False)  # it takes longer than the last one
