"""Whatever goes wrong with requests, there is a sentence that says what to do."""

from __future__ import annotations

import pytest

from loadtest.api.record import Record
from loadtest.outcome import Outcome, of_status
from loadtest.report.hints import BY_STATUS, advice


@pytest.mark.parametrize("outcome", [o for o in Outcome if o not in (Outcome.OK, Outcome.INTERRUPTED)])
def test_every_kind_of_failure_has_advice(outcome: Outcome) -> None:
    status = {Outcome.FULL: 429, Outcome.UNAVAILABLE: 503, Outcome.REFUSED: 418}.get(outcome, 0)
    assert advice(Record(0, outcome=outcome, status=status))


@pytest.mark.parametrize("status", [*BY_STATUS, 405, 500, 599])
def test_every_status_has_advice(status: int) -> None:
    assert advice(Record(0, outcome=of_status(status), status=status))


def test_the_servers_own_wish_is_passed_on() -> None:
    assert "come back in 7 s" in advice(Record(0, outcome=Outcome.FULL, status=429, retry_after_s=7.0))
