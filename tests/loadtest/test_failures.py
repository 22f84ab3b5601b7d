"""Every kind of failure has a hint on what to do."""

from __future__ import annotations

import pytest

from loadtest.api.record import Record
from loadtest.errors import RequestOutcome, outcome_of_status
from loadtest.report.failures import HINT_BY_STATUS, hint_for


@pytest.mark.parametrize(
    "outcome", [o for o in RequestOutcome if o not in (RequestOutcome.OK, RequestOutcome.INTERRUPTED)]
)
def test_every_kind_of_failure_has_a_hint(outcome: RequestOutcome) -> None:
    status = {RequestOutcome.FULL: 429, RequestOutcome.UNAVAILABLE: 503, RequestOutcome.REFUSED: 418}.get(outcome, 0)
    assert hint_for(Record(0, outcome=outcome, status=status))


@pytest.mark.parametrize("status", [*HINT_BY_STATUS, 405, 500, 599])
def test_every_status_has_a_hint(status: int) -> None:
    assert hint_for(Record(0, outcome=outcome_of_status(status), status=status))


def test_retry_after_is_shown() -> None:
    assert "retry after 7 s" in hint_for(Record(0, outcome=RequestOutcome.FULL, status=429, retry_after_s=7.0))
