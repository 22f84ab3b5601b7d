"""The limits of keys at one ingress: what is counted, what is refused, and when to come back."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.ingress.auth import KeyLimits
from serve_app.ingress.error_format import ApiStyle
from serve_app.ingress.rate_limits.headers import limit_headers
from serve_app.ingress.rate_limits.leases import Lease
from serve_app.ingress.rate_limits.limiter import RateLimiter, Standing
from serve_app.ingress.rate_limits.usage import KeyUsage, Meter
from serve_app.ingress.rate_limits.window import UsageWindow
from serve_app.protocol.errors import LimitKind, RateLimited
from serve_app.router.admission import MOST_RETRY_S
from serve_app.router.request_context import RequestContext, RequestTrace

STEPS = st.lists(st.tuples(st.floats(0, 20, allow_nan=False), st.integers(1, 5)), max_size=120)


@dataclass
class Clock:
    now_s: float = 1000.25

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Table:
    """The limits of a keys file, which a test can change."""

    known: Mapping[str, KeyLimits] = field(default_factory=dict)

    def limits(self) -> Mapping[str, KeyLimits]:
        return self.known


def limiter(clock: Clock, **limits: int) -> RateLimiter:
    return RateLimiter(Table({"ann": KeyLimits(**limits)}), clock_s=clock)


def ask(limiter: RateLimiter, prompt: int = 0, output: int = 0, name: str | None = "ann") -> None:
    """One request, from its beginning to its end."""
    context = RequestContext("one")
    with limiter.admitted(name, context):
        context.sequences.append(RequestTrace(prompt_tokens=prompt, output_tokens=output))


def refusal(limiter: RateLimiter) -> RateLimited:
    with pytest.raises(RateLimited) as caught:
        ask(limiter)
    return caught.value


@given(STEPS)
def test_a_window_holds_at_least_the_last_minute_and_at_most_a_second_more(steps: list[tuple[float, int]]) -> None:
    window, now_s = UsageWindow(), 0.0
    used: list[tuple[float, int]] = []
    for wait_s, units in steps:
        now_s += wait_s
        window.add(units, now_s)
        used.append((now_s, units))
        held = window.used(now_s)
        assert sum(one for at_s, one in used if at_s > now_s - 60) <= held
        assert held <= sum(one for at_s, one in used if at_s > now_s - 62)


@given(STEPS, st.integers(1, 30))
def test_a_window_says_when_units_will_have_left_it(steps: list[tuple[float, int]], units: int) -> None:
    window, now_s = UsageWindow(), 0.0
    for wait_s, one in steps:
        now_s += wait_s
        window.add(one, now_s)
    held = window.used(now_s)
    frees_in_s = window.frees_in_s(units, now_s)
    assert (frees_in_s is None) == (held < units)
    if frees_in_s is not None:
        assert window.used(now_s + frees_in_s + 1e-6) <= held - units
    assert window.used(now_s + window.empty_in_s(now_s) + 1e-6) == 0


@given(st.lists(st.floats(0, 8, allow_nan=False), max_size=150), st.integers(1, 12))
def test_no_minute_has_more_requests_than_the_limit_and_a_refusal_is_true(waits_s: list[float], limit: int) -> None:
    clock = Clock()
    limited = limiter(clock, requests_per_minute=limit)
    admitted: list[float] = []
    for wait_s in waits_s:
        clock.now_s += wait_s
        try:
            ask(limited)
        except RateLimited as error:
            told_s = error.retry_after_s or 0.0
            # The window is up to a second longer than the most that is told.
            clock.now_s += told_s if told_s < MOST_RETRY_S else told_s + 1.0
            ask(limited)
        admitted.append(clock.now_s)
    assert all(sum(begin <= at_s < begin + 60 for at_s in admitted) <= limit for begin in admitted)


def test_a_limit_may_be_used_at_once_and_the_rest_is_told_when_to_come_back() -> None:
    clock = Clock()
    limited = limiter(clock, requests_per_minute=3)
    for _ in range(3):
        ask(limited)
    error = refusal(limited)
    assert (error.kind, error.retry_after_s, error.measured) == (LimitKind.REQUESTS, MOST_RETRY_S, True)
    assert "3 requests per minute" in error.message
    clock.now_s += 40
    assert refusal(limited).retry_after_s == 21
    assert limited.standings("ann") == [Standing(LimitKind.REQUESTS, 3, 0, pytest.approx(20.75))]
    clock.now_s += 21
    ask(limited)


def test_tokens_count_when_they_are_known_and_a_debt_is_waited_out() -> None:
    clock = Clock()
    limited = limiter(clock, tokens_per_minute=1000)
    context = RequestContext("long")
    with limited.admitted("ann", context):
        ask(limited)  # nothing is known of the first one yet
        trace = RequestTrace(prompt_tokens=900, output_tokens=50, resumed_tokens=40)
        context.sequences.append(trace)
        clock.now_s += 10
        assert limited.standings("ann")[0].remaining == 90
        trace.output_tokens += 5000
        clock.now_s += 10
        error = refusal(limited)
    assert error.kind is LimitKind.TOKENS
    assert error.retry_after_s == MOST_RETRY_S  # of the second part: the first was no more than the limit
    clock.now_s += 61
    ask(limited)


def test_places_at_a_time_come_back_however_a_request_ends() -> None:
    clock = Clock()
    limited = limiter(clock, max_concurrent=2)
    with ExitStack() as running:
        for _ in range(2):
            running.enter_context(limited.admitted("ann", RequestContext("one")))
        first = refusal(limited)
        assert (first.kind, first.measured) == (LimitKind.CONCURRENT, False)
    with pytest.raises(ZeroDivisionError), limited.admitted("ann", RequestContext("one")):
        raise ZeroDivisionError
    for _ in range(20):
        context = RequestContext("measured")
        with limited.admitted("ann", context):
            context.sequences.append(RequestTrace())
            clock.now_s += 30
    with limited.admitted("ann", RequestContext("one")), limited.admitted("ann", RequestContext("two")):
        error = refusal(limited)
    assert (error.retry_after_s, error.measured) == (15, True)


def test_keys_without_limits_and_no_key_are_not_limited() -> None:
    limited = limiter(Clock(), requests_per_minute=1)
    for name in ("bob", None):
        for _ in range(5):
            ask(limited, name=name)
        assert limited.standings(name) == []
    ask(limited)
    refusal(limited)


def test_a_refused_request_uses_nothing() -> None:
    clock = Clock()
    limited = limiter(clock, requests_per_minute=5, max_concurrent=1)
    with limited.admitted("ann", RequestContext("one")):
        for _ in range(9):
            refusal(limited)
    assert limited.standings("ann")[0].remaining == 4


def test_new_limits_hold_for_what_was_used_before() -> None:
    clock, table = Clock(), Table({"ann": KeyLimits(requests_per_minute=10)})
    limited = RateLimiter(table, clock_s=clock)
    for _ in range(4):
        ask(limited)
    table.known = {"ann": KeyLimits(requests_per_minute=5)}
    ask(limited)
    refusal(limited)
    table.known = {}
    ask(limited)
    assert limited.standings("ann") == []


def test_the_headers_are_those_of_each_api() -> None:
    standings = [Standing(LimitKind.REQUESTS, 60, 12, 0.0), Standing(LimitKind.TOKENS, 1000, 0, 60.2)]
    now = datetime(2026, 1, 2, 3, 4, 5, 600_000, UTC)
    assert dict(limit_headers(ApiStyle.OPENAI, standings, now)) == {
        b"x-ratelimit-limit-requests": b"60",
        b"x-ratelimit-remaining-requests": b"12",
        b"x-ratelimit-reset-requests": b"0s",
        b"x-ratelimit-limit-tokens": b"1000",
        b"x-ratelimit-remaining-tokens": b"0",
        b"x-ratelimit-reset-tokens": b"1m1s",
    }
    told = dict(limit_headers(ApiStyle.ANTHROPIC, standings, now))
    assert told[b"anthropic-ratelimit-requests-limit"] == b"60"
    assert told[b"anthropic-ratelimit-tokens-remaining"] == b"0"
    assert told[b"anthropic-ratelimit-tokens-reset"] == b"2026-01-02T03:05:06Z"


def test_nobody_is_told_a_time_that_clients_ignore() -> None:
    lease = Lease(0, used_elsewhere=10, frees_elsewhere_in_s=MOST_RETRY_S)
    usage = KeyUsage({LimitKind.REQUESTS: Meter(10, lease), LimitKind.TOKENS: Meter(10, Lease(10))})
    assert usage.retry_s(LimitKind.REQUESTS, 0.0) == MOST_RETRY_S
    usage.windows[LimitKind.TOKENS].add(20, 0.9)
    assert usage.retry_s(LimitKind.TOKENS, 0.9) <= MOST_RETRY_S
