"""How ingresses share the limits of keys."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.ingress.auth import KeyLimits
from serve_app.ingress.rate_limits import sharing
from serve_app.ingress.rate_limits.leases import (
    GONE_AFTER_S,
    LEASE_S,
    Ingresses,
    Lease,
    Report,
    SharedLimit,
    apportion,
    divide,
)
from serve_app.ingress.rate_limits.limiter import Leases, RateLimiter, Reports
from serve_app.ingress.rate_limits.sharing import LeaseHolder, LeaseOffice, OfficeAway
from serve_app.ingress.rate_limits.window import UsageWindow
from serve_app.protocol.errors import RateLimited
from serve_app.router.request_context import RequestContext, RequestTrace

COUNTS = st.integers(0, 500)
NAMES = ("a", "b", "c", "d")
MEMORY_S = 61.0


@given(COUNTS, st.dictionaries(st.sampled_from(NAMES), COUNTS, min_size=1))
def test_apportioning_gives_all_units_and_each_its_share_rounded(units: int, weights: Mapping[str, int]) -> None:
    parts = apportion(units, weights)
    total = sum(weights.values())
    assert sum(parts.values()) == (units if total else 0)
    assert all(abs(parts[name] - units * weight / total) < 1 for name, weight in weights.items() if total)


REPORTS = st.dictionaries(st.sampled_from(NAMES), st.builds(Report, st.just(0), st.just(0), COUNTS, COUNTS), min_size=1)


@given(st.integers(0, 1500), REPORTS)
def test_ceilings_add_up_to_the_limit_at_most(limit: int, reports: Mapping[str, Report]) -> None:
    ceilings = divide(limit, reports)
    assert min(ceilings.values()) >= 0
    wanted = sum(one.used + one.demand for one in reports.values())
    assert sum(ceilings.values()) <= limit
    assert sum(ceilings.values()) == limit or wanted == 0 or sum(ceilings.values()) >= min(limit, wanted)


def test_who_asks_for_more_gets_more_and_who_is_idle_a_little() -> None:
    reports = {"a": Report(100, 0, 0, 9), "b": Report(100, 0, 0, 0)}
    ceilings = divide(100, reports)
    assert ceilings["a"] > 5 * ceilings["b"] > 0
    crowded = {"a": Report(100, 0, 80, 60), "b": Report(100, 0, 20, 20), "c": Report(100, 0, 0, 0)}
    assert divide(100, crowded) == {"a": 76, "b": 24, "c": 0}


class Shared(SharedLimit):
    """Hears each report, as the office does."""

    def __init__(self, memory_s: float, settled_s: float, expected: int) -> None:
        super().__init__(memory_s, settled_s, expected, Ingresses())

    def exchange(self, ingress: str, report: Report, now_s: float) -> Lease:
        self._ingresses.hear(ingress, now_s)
        return super().exchange(ingress, report, now_s)


@dataclass
class Ingress:
    """One limit at one ingress, as `RateLimiter` has it."""

    name: str
    limit: int
    lease: Lease = field(default_factory=lambda: Lease(0))
    window: UsageWindow = field(default_factory=UsageWindow)
    demand: int = 0

    def ask(self, now_s: float) -> bool:
        self.demand += 1
        admitted = self.window.used(now_s) < self.lease.ceiling
        if admitted:
            self.window.add(1, now_s)
        return admitted

    def renew(self, shared: SharedLimit, now_s: float) -> None:
        for _ in range(2):  # at once again after a lower ceiling
            before, report = self.lease, self.report(now_s)
            self.lease = shared.exchange(self.name, report, now_s)
            if self.lease.ceiling >= before.ceiling:
                break
        self.demand = 0

    def report(self, now_s: float) -> Report:
        frees_in_s = self.window.frees_in_s(1, now_s)
        return Report(self.limit, self.lease.ceiling, self.window.used(now_s), self.demand, frees_in_s)


BURSTS = st.lists(st.tuples(st.floats(0, 3), st.sampled_from(NAMES), st.integers(0, 40)), max_size=100)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 60), BURSTS, st.sets(st.integers(0, 99)))
def test_no_minute_has_more_than_the_limit_however_demand_moves_and_whoever_hears_nothing(
    limit: int, bursts: list[tuple[float, str, int]], unheard: set[int]
) -> None:
    shared = Shared(MEMORY_S, settled_s=0.0, expected=4)
    ingresses = {name: Ingress(name, limit) for name in NAMES}
    admitted: list[float] = []
    now_s = 0.0
    for number, (wait_s, name, asked) in enumerate(bursts):
        now_s += wait_s
        if number not in unheard:  # the ingresses go on with their last leases
            for one in ingresses.values():
                one.renew(shared, now_s)
        admitted += [now_s for _ in range(asked) if ingresses[name].ask(now_s)]
        assert shared.held <= limit
    assert all(sum(begin <= at_s < begin + 60 for at_s in admitted) <= limit for begin in admitted)


@pytest.mark.parametrize("phase_s", [0.1, 0.5, 0.9])
def test_an_unused_share_moves_to_who_needs_it_within_two_leases(phase_s: float) -> None:
    shared = Shared(MEMORY_S, settled_s=0.0, expected=2)
    idle, busy = Ingress("a", 100), Ingress("b", 100)
    for number in range(5):
        idle.renew(shared, number * LEASE_S)
        busy.renew(shared, number * LEASE_S + phase_s)
    assert idle.lease.ceiling + busy.lease.ceiling == 100
    now_s = 5 * LEASE_S  # a burst comes to one of them
    admitted = sum(busy.ask(now_s) for _ in range(200))
    assert 0 < admitted < 100
    for _ in range(2):
        idle.renew(shared, now_s)
        busy.renew(shared, now_s + phase_s)
        admitted += sum(busy.ask(now_s + phase_s) for _ in range(200))
        now_s += LEASE_S
    assert admitted >= 95  # an idle one keeps a little, until it is asked for


def test_a_share_in_use_stays_until_it_leaves_the_window_and_then_goes_by_demand() -> None:
    shared = Shared(MEMORY_S, settled_s=0.0, expected=2)
    first, second = Ingress("a", 60), Ingress("b", 60)
    for number in range(400):
        now_s = number * LEASE_S
        first.renew(shared, now_s)
        if number >= 100:
            second.renew(shared, now_s)
        for _ in range(5):
            first.ask(now_s)
            if number >= 100:
                second.ask(now_s)
    assert first.lease.ceiling + second.lease.ceiling == 60
    assert abs(first.lease.ceiling - second.lease.ceiling) <= 4
    assert abs(first.window.used(now_s) - second.window.used(now_s)) <= 6


def test_an_ingress_that_has_gone_leaves_its_ceiling_at_once_and_its_use_a_minute_later() -> None:
    shared = Shared(MEMORY_S, settled_s=0.0, expected=2)
    gone, left = Ingress("a", 100), Ingress("b", 100)
    gone.renew(shared, 0.0)
    for _ in range(30):
        assert gone.ask(0.0)
    for number in range(1, 4):
        gone.renew(shared, float(number))
    for number in range(4, 120):
        now_s = float(number)
        left.renew(shared, now_s)
        left.demand = 100
        if now_s > 3 + GONE_AFTER_S + 2 * LEASE_S:
            assert left.lease.ceiling == (70 if now_s <= 3 + MEMORY_S else 100), now_s


def test_after_a_restart_nothing_is_raised_beyond_an_equal_share_until_all_have_reported() -> None:
    shared = Shared(MEMORY_S, settled_s=2.0, expected=4)
    assert shared.exchange("a", Report(100, 70, 50, 90), 0.0).ceiling == 70
    assert shared.exchange("b", Report(100, 0, 0, 90), 0.5).ceiling == 25
    assert shared.exchange("c", Report(100, 30, 30, 0), 1.0).ceiling <= 30
    raised = shared.exchange("a", Report(100, 70, 50, 0), 3.0)
    assert raised.used_elsewhere == 30


def test_what_an_ingress_need_not_repeat_comes_nearer_all_the_same() -> None:
    shared = Shared(MEMORY_S, settled_s=0.0, expected=2)
    shared.exchange("a", Report(10, 10, 10, 0, frees_in_s=50.0), 0.0)
    for now_s in range(1, 31):
        shared._ingresses.hear("a", now_s)
        shared.renew("a", now_s)
    assert shared.exchange("b", Report(10, 0, 0, 1), 30.5).frees_elsewhere_in_s == 19.5


def test_the_lower_of_two_limits_holds_while_a_file_changes() -> None:
    shared = Shared(MEMORY_S, settled_s=0.0, expected=2)
    assert shared.exchange("a", Report(100, 0, 0, 0), 0.0).ceiling == 100
    assert shared.exchange("b", Report(10, 0, 0, 5), 0.0).ceiling == 0
    after = shared.exchange("a", Report(100, 100, 0, 0), 1.0)
    assert after.ceiling <= 10
    shared.exchange("a", replace(Report(10, 0, 0, 0), ceiling=after.ceiling), 1.0)
    assert shared.exchange("b", Report(10, 0, 0, 5), 1.1).ceiling + after.ceiling <= 10


@dataclass
class Clock:
    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Table:
    known: Mapping[str, KeyLimits]

    def limits(self) -> Mapping[str, KeyLimits]:
        return self.known


@dataclass
class Fleet:
    """Several ingresses and their office, in virtual time."""

    count: int
    known: Mapping[str, KeyLimits]
    clock: Clock = field(default_factory=Clock)
    away: bool = False

    def __post_init__(self) -> None:
        self.office = LeaseOffice(self.count, self.clock)
        self.limiters = [
            RateLimiter(Table(self.known), shared_by=self.count, clock_s=self.clock) for _ in range(self.count)
        ]
        self.holders = [
            LeaseHolder(one, self.ask, f"ingress-{number}", self.clock) for number, one in enumerate(self.limiters)
        ]

    async def ask(self, ingress: str, reports: Reports) -> Leases | None:
        if self.away:
            raise OfficeAway("killed")
        return self.office.exchange(ingress, reports)

    async def lease(self, leases: int) -> None:
        for _ in range(leases):
            self.clock.now_s += LEASE_S
            for holder in self.holders:
                await holder.renew()

    def admitted(self, number: int, asked: int) -> int:
        """How many of so many requests, each of which ends at once, an ingress admits."""
        return sum(self._admits(number, ExitStack()) for _ in range(asked))

    def holds(self, number: int, asked: int, running: ExitStack) -> int:
        """The same of requests that go on until `running` is closed."""
        return sum(self._admits(number, running, ends=False) for _ in range(asked))

    def _admits(self, number: int, running: ExitStack, *, ends: bool = True) -> bool:
        try:
            running.enter_context(self.limiters[number].admitted("ann", RequestContext("one")))
        except RateLimited:
            return False
        if ends:
            running.close()
        return True


async def test_a_fleet_of_ingresses_keeps_one_limit() -> None:
    fleet = Fleet(4, {"ann": KeyLimits(requests_per_minute=100)})
    await fleet.lease(5)
    got = [fleet.admitted(number, 100) for number in range(4)]
    assert sum(got) == 100
    assert min(got) > 10
    standing = fleet.limiters[0].standings("ann")[0]
    await fleet.lease(2)  # the second tells what the others have reported
    assert fleet.limiters[0].standings("ann")[0].remaining == 0 < standing.remaining


async def test_one_ingress_can_get_all_of_it_within_two_leases() -> None:
    fleet = Fleet(4, {"ann": KeyLimits(requests_per_minute=100, max_concurrent=20)})
    await fleet.lease(5)
    with ExitStack() as running:
        held = fleet.holds(2, 200, running)
        for _ in range(2):
            await fleet.lease(1)
            held += fleet.holds(2, 200, running)
        assert held == 20
    assert [fleet.holds(number, 200, ExitStack()) for number in (0, 1, 3)] == [0, 0, 0]


async def test_places_at_a_time_are_one_limit_too() -> None:
    fleet = Fleet(3, {"ann": KeyLimits(max_concurrent=30)})
    await fleet.lease(5)
    with ExitStack() as running:
        for _ in range(10):
            total = sum(fleet.holds(number, 5, running) for number in range(3))
            await fleet.lease(1)
        total = sum(len(one._keys["ann"].running) for one in fleet.limiters)
        assert 30 <= total < 30 + fleet.count  # each may have borrowed one, before it knew of the others
        assert sum(fleet.holds(number, 5, running) for number in range(3)) == 0


async def test_a_client_of_one_request_after_the_other_is_served_by_any_ingress() -> None:
    fleet = Fleet(8, {"ann": KeyLimits(max_concurrent=2)})
    await fleet.lease(5)
    for number in (7, 0, 6, 1, 5, 2, 4, 3) * 3:
        assert fleet.admitted(number, 1) == 1
        await fleet.lease(1)
    with ExitStack() as running:
        assert fleet.holds(3, 9, running) in (1, 2)
        await fleet.lease(2)
        fleet.holds(3, 9, running)
        await fleet.lease(2)
        assert [fleet.holds(number, 1, running) for number in range(8)] == [0] * 8


async def test_a_shortage_that_a_lease_can_end_is_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "LEASE_S", 1000.0)
    monkeypatch.setattr(sharing, "EARLY_S", 0.0)
    fleet = Fleet(2, {"ann": KeyLimits(requests_per_minute=100)})
    asked = asyncio.Event()

    async def ask(ingress: str, reports: Reports) -> Leases | None:
        asked.set()
        return fleet.office.exchange(ingress, reports)

    fleet.limiters[1].apply(fleet.office.exchange("other", fleet.limiters[1].reports()))
    async with LeaseHolder(fleet.limiters[0], ask, "one"):
        asked.clear()
        assert fleet.admitted(0, 200) < 100
        await asyncio.wait_for(asked.wait(), 10)


async def test_without_the_office_each_goes_on_with_its_last_lease(caplog: pytest.LogCaptureFixture) -> None:
    fleet = Fleet(2, {"ann": KeyLimits(requests_per_minute=100)})
    await fleet.lease(5)
    fleet.away = True
    for _ in range(3):
        await fleet.lease(30)
        got = [fleet.admitted(number, 200) for number in range(2)]
        assert sum(got) in (0, 100)
    assert caplog.text.count("no rate limit leases") == 2  # once for each ingress
    fleet.office, fleet.away = LeaseOffice(2, fleet.clock), False  # restarted, without a memory
    await fleet.lease(70)
    for _ in range(3):
        assert fleet.admitted(0, 500) + fleet.admitted(1, 500) in (0, 100)
        await fleet.lease(20)


async def test_an_ingress_that_finds_no_office_begins_with_an_equal_share() -> None:
    fleet = Fleet(4, {"ann": KeyLimits(requests_per_minute=100)})
    fleet.away = True
    assert fleet.admitted(0, 10) == 0
    async with fleet.holders[0]:
        assert fleet.admitted(0, 100) == 25


async def test_a_new_ingress_begins_with_what_is_free() -> None:
    fleet = Fleet(3, {"ann": KeyLimits(requests_per_minute=90)})
    late = fleet.holders.pop()
    await fleet.lease(5)
    assert fleet.admitted(0, 200) + fleet.admitted(1, 200) == 90
    async with late:
        assert fleet.admitted(2, 10) == 0
        fleet.holders.append(late)
        await fleet.lease(64)
        assert fleet.admitted(2, 10) == 10


async def test_debts_of_tokens_are_shared_too() -> None:
    fleet = Fleet(2, {"ann": KeyLimits(tokens_per_minute=1000)})
    await fleet.lease(5)
    context = RequestContext("one")
    with fleet.limiters[0].admitted("ann", context):
        context.sequences.append(RequestTrace(prompt_tokens=5000))
        await fleet.lease(2)
        assert fleet.admitted(1, 5) == 0
        assert fleet.limiters[1].standings("ann")[0].remaining == 0
    await fleet.lease(65)
    assert fleet.admitted(1, 5) == 5


async def test_limits_of_keys_that_are_gone_are_forgotten() -> None:
    fleet = Fleet(2, {"ann": KeyLimits(tokens_per_minute=1000)})
    await fleet.lease(2)
    for limiter in fleet.limiters:
        limiter._limits = Table({"bob": KeyLimits(tokens_per_minute=10)})
    await fleet.lease(500)
    assert {name for name, _ in fleet.office._limits} == {"bob"}


@settings(max_examples=60, deadline=None)
@given(
    st.integers(4, 60),
    st.lists(
        st.tuples(st.sampled_from(["burst", "wait", "away", "back", "restart"]), st.integers(0, 3), st.integers(0, 40)),
        max_size=60,
    ),
)
def test_no_minute_has_more_than_the_limit_whatever_becomes_of_the_office(
    limit: int, events: list[tuple[str, int, int]]
) -> None:
    asyncio.run(_keeps_the_limit(limit, events))


async def _keeps_the_limit(limit: int, events: list[tuple[str, int, int]]) -> None:
    fleet = Fleet(4, {"ann": KeyLimits(requests_per_minute=limit)})
    await fleet.lease(3)
    admitted: list[float] = []
    for event, number, count in events:
        if event == "burst":
            admitted += [fleet.clock.now_s] * fleet.admitted(number, count)
        elif event == "restart":
            fleet.office = LeaseOffice(4, fleet.clock)
        elif event != "wait":
            fleet.away = event == "away"
        await fleet.lease(1 + count // 10 if event == "wait" else 1)
    assert all(sum(begin <= at_s < begin + 60 for at_s in admitted) <= limit for begin in admitted)


async def test_only_keys_in_use_are_reported_and_everything_to_a_new_office() -> None:
    known = {f"key {number}": KeyLimits(requests_per_minute=100, max_concurrent=20) for number in range(50)}
    fleet = Fleet(4, known | {"ann": KeyLimits(requests_per_minute=100)})
    sent: list[Reports] = []
    ask = fleet.ask

    async def counted(ingress: str, reports: Reports) -> Leases | None:
        sent.append(reports)
        return await ask(ingress, reports)

    for number, limiter in enumerate(fleet.limiters):
        fleet.holders[number] = LeaseHolder(limiter, counted, f"ingress-{number}", fleet.clock)
    await fleet.lease(12)
    sent.clear()
    await fleet.lease(1)
    assert [(len(one.of), one.is_complete) for one in sent] == [(0, False)] * 4
    assert fleet.admitted(0, 3) == 3
    sent.clear()
    await fleet.lease(1)
    assert {name for one in sent for name, _ in one.of} == {"ann"}
    fleet.office = LeaseOffice(4, fleet.clock)
    sent.clear()
    await fleet.lease(1)
    assert sum(one.is_complete and len(one.of) == 101 for one in sent) == 4


async def test_a_limit_below_the_number_of_ingresses_is_no_refusal_for_all_while_the_office_is_away() -> None:
    fleet = Fleet(4, {"ann": KeyLimits(requests_per_minute=2), "bob": KeyLimits(requests_per_minute=100)})
    fleet.away = True
    async with fleet.holders[0]:
        assert fleet.admitted(0, 5) == 1
    fleet = Fleet(4, {"ann": KeyLimits(requests_per_minute=2)})
    await fleet.lease(5)
    fleet.away = True
    await fleet.lease(10)
    assert [fleet.admitted(number, 5) for number in range(4)] == [1] * 4
    fleet.away = False
    await fleet.lease(70)
    assert sum(fleet.admitted(number, 5) for number in range(4)) == 2
