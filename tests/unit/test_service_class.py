"""Classes of requests: what a request may ask for, and who may ask for room."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.ingress.requests import service_tier
from serve_app.ingress.requests.edits import Edits
from serve_app.protocol.service_class import Holder, ServiceClass, holds_little

BATCH, STANDARD, INTERACTIVE = ServiceClass


@pytest.mark.parametrize(
    ("allowed", "asked", "used", "answered"),
    [
        (STANDARD, "flex", BATCH, "flex"),
        (STANDARD, "auto", STANDARD, "default"),
        (STANDARD, "priority", STANDARD, "default"),
        (STANDARD, "default", STANDARD, "default"),
        (INTERACTIVE, "auto", INTERACTIVE, "priority"),
        (INTERACTIVE, "default", STANDARD, "default"),
        (INTERACTIVE, "standard_only", STANDARD, "default"),
        (BATCH, "priority", BATCH, "flex"),
        (INTERACTIVE, None, INTERACTIVE, None),
    ],
)
def test_a_tier_lowers_and_never_raises(
    allowed: ServiceClass, asked: str | None, used: ServiceClass, answered: str | None
) -> None:
    request: dict[str, Any] = {} if asked is None else {"service_tier": asked}
    edits = Edits()
    assert service_tier.take(request, edits, allowed) == (used, answered)
    assert request.get("service_tier") == answered
    assert edits.changed == (asked != answered)
    assert edits.ignored == []


@pytest.mark.parametrize("asked", ["standard", 5, ["flex"], {"a": "b"}])
def test_an_unknown_tier_is_left_out_and_named(asked: object) -> None:
    request, edits = {"service_tier": asked}, Edits()
    assert service_tier.take(request, edits, STANDARD) == (STANDARD, None)
    assert request == {}
    assert edits.ignored == [f"service_tier ({asked})"]


def test_vllms_priority_lowers_too() -> None:
    assert service_tier.take({"priority": 1}, Edits(), INTERACTIVE)[0] is BATCH
    assert service_tier.take({"priority": -5}, Edits(), STANDARD)[0] is STANDARD
    assert service_tier.take({"priority": 1, "service_tier": "auto"}, Edits(), STANDARD) == (BATCH, "flex")
    assert service_tier.take({"service_tier": "auto"}, Edits(), STANDARD, "2") == (BATCH, "flex")
    assert service_tier.take({}, Edits(), INTERACTIVE, "-2")[0] is INTERACTIVE
    assert service_tier.take({}, Edits(), INTERACTIVE, "high")[0] is INTERACTIVE


@given(st.sampled_from(list(ServiceClass)), st.sampled_from([*service_tier.AT_MOST, "x", None]), st.integers(-3, 3))
def test_no_request_gets_above_its_key(allowed: ServiceClass, asked: str | None, priority: int) -> None:
    used, _ = service_tier.take({"service_tier": asked, "priority": priority}, Edits(), allowed)
    assert used <= allowed


def test_who_has_less_than_its_share_may_ask_for_room() -> None:
    flood = [Holder("flood")] * 10
    assert holds_little(Holder("alice"), 1, flood)
    assert not holds_little(Holder("flood"), 1, flood)
    assert holds_little(Holder("flood", rank=1), 1, flood)
    held = [*flood, *[Holder("gold", weight=4.0)] * 10]
    assert holds_little(Holder("gold", weight=4.0), 1, held)
    assert not holds_little(Holder("flood"), 1, held)


@pytest.mark.parametrize("rank", ServiceClass)
def test_who_holds_nothing_here_may_ask_the_replicas(rank: ServiceClass) -> None:
    nobody, other = Holder("new", rank), Holder("other", rank)
    assert holds_little(nobody, 1, [])
    assert holds_little(nobody, 5, [Holder("above", rank + 1)])
    assert holds_little(nobody, 1, [other])
    assert not holds_little(nobody, 5, [other] * 4)
    assert not holds_little(nobody, 1, [other, nobody])  # one that is being tried
    assert not holds_little(nobody, 1, [nobody])
