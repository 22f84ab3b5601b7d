"""Which request a replica died of: what the evidence says, and for how long it is held against somebody."""

from __future__ import annotations

import pytest

from serve_app.protocol.poison import MAX_REMEMBERED, Blame, Quarantine, blame, is_poison


@pytest.mark.parametrize(
    ("is_newcomer", "newcomers", "failed_by_itself", "verdict"),
    [
        (True, 1, True, Blame.NAMED),
        (True, 1, False, Blame.SUSPECT),  # killed: an operator does not look at what runs
        (True, 2, True, Blame.SUSPECT),
        (False, 1, True, Blame.BESIDE),
        (False, 3, False, Blame.BESIDE),
        (False, 0, True, Blame.SUSPECT),
    ],
)
def test_the_only_newcomer_is_to_blame_and_nobody_else_while_there_is_one(
    is_newcomer: bool, newcomers: int, failed_by_itself: bool, verdict: Blame
) -> None:
    assert blame(is_newcomer=is_newcomer, newcomers=newcomers, failed_by_itself=failed_by_itself) is verdict


def test_one_death_that_names_a_request_is_enough_and_others_add_up() -> None:
    assert is_poison([Blame.NAMED])
    assert is_poison([Blame.SUSPECT] * 2)
    assert is_poison([Blame.SUSPECT, Blame.BESIDE, Blame.BESIDE])
    assert is_poison([Blame.BESIDE] * 4)
    assert not is_poison([Blame.SUSPECT, Blame.BESIDE])
    assert not is_poison([Blame.BESIDE] * 3)
    assert not is_poison([])


def test_a_quarantine_ends_and_is_twice_as_long_the_next_time() -> None:
    quarantine = Quarantine(60.0, longest_s=100.0)
    assert quarantine.is_empty
    quarantine.add(["client a"], 0.0)
    assert quarantine.remaining_s(["prompt", "client a"], 10.0) == 50.0
    assert quarantine.remaining_s(["client b"], 10.0) == 0.0
    assert quarantine.remaining_s(["client a"], 61.0) == 0.0
    quarantine.add(["client a"], 1000.0)
    assert quarantine.remaining_s(["client a"], 1000.0) == 100.0


def test_two_ingresses_hold_the_same_against_the_same() -> None:
    one, other = Quarantine(60.0), Quarantine(60.0)
    one.add(["client a"], 0.0)
    other.learn(one.remaining(10.0), 1000.0)  # its clock is another
    assert other.remaining_s(["client a"], 1000.0) == 50.0
    other.learn(one.remaining(11.0), 1002.0)
    assert other.remaining_s(["client a"], 1002.0) == 48.0, "a late message makes it no longer"
    one.learn(other.remaining(1010.0), 20.0)
    assert one.remaining_s(["client a"], 20.0) == 40.0
    assert one.remaining(61.0) == {}
    other.add(["client a"], 2000.0)
    assert other.remaining_s(["client a"], 2000.0) == 120.0, "the next time is twice as long, whoever saw the first"


def test_a_quarantine_remembers_so_many_and_no_more() -> None:
    quarantine = Quarantine(60.0)
    quarantine.add([str(number) for number in range(MAX_REMEMBERED + 1)], 0.0)
    assert quarantine.remaining_s(["0"], 0.0) == 0.0
    assert quarantine.remaining_s([str(MAX_REMEMBERED)], 0.0) == 60.0
