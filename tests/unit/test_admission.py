"""Start, wait, or come back later."""

from __future__ import annotations

from serve_app.admission import Admission, Admit, Facts, Never, Refuse


def test_there_is_room_until_the_bound() -> None:
    admission = Admission(max_waiting=6)
    assert admission.decide(Facts(in_flight=9, asked=1, slots=4)) == Admit()
    assert isinstance(admission.decide(Facts(in_flight=9, asked=2, slots=4)), Refuse)


def test_the_longer_the_line_the_later_one_is_asked_back() -> None:
    admission = Admission(max_waiting=2, typical_request_s=20.0)
    short = admission.decide(Facts(in_flight=10, asked=1, slots=8))
    long = admission.decide(Facts(in_flight=100, asked=1, slots=8))
    assert isinstance(short, Refuse)
    assert isinstance(long, Refuse)
    assert 1.0 <= short.retry_after_s < long.retry_after_s


def test_without_a_replica_a_refusal_still_says_when() -> None:
    verdict = Admission(max_waiting=0).decide(Facts(in_flight=0, asked=1, slots=0))
    assert isinstance(verdict, Refuse)
    assert verdict.retry_after_s >= 1.0


def test_what_would_not_fit_an_empty_house_is_not_asked_back() -> None:
    admission = Admission(max_waiting=6)
    assert admission.decide(Facts(in_flight=0, asked=10, slots=4)) == Admit()
    assert admission.decide(Facts(in_flight=0, asked=11, slots=4)) == Never(10)
    # How much a replica that starts will hold is not known yet.
    assert isinstance(admission.decide(Facts(in_flight=0, asked=11, slots=0)), Refuse)
