"""Who goes to a canary, and where an answer that it has begun may go on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.protocol.errors import WeightsGone
from serve_app.protocol.messages import ReplicaCapacity, ReplicaInfo, ReplicaLabel
from serve_app.router.attempts import ReplicaConnection
from serve_app.router.canary_arm import Arm, CanaryArm, goes_on_at, is_in_share
from serve_app.router.request_context import SubmittedRequest
from tests.unit.local_replicas import IDLE, LocalFleet, LocalReplica, LocalTransport, local_fleet, request, until

OLD, NEW = ReplicaLabel("", False, "old"), ReplicaLabel("canary", True, "new")
FLAGS_ONLY = ReplicaLabel("canary", True, "old")


def connection(name: str, label: ReplicaLabel) -> ReplicaConnection:
    info = ReplicaInfo(5, name, IDLE, label=label)
    return ReplicaConnection(name, IDLE, ReplicaCapacity(), info, up=True)


def arm(share: float) -> CanaryArm:
    found = CanaryArm()
    found.follow(share, "t")
    return found


def session_in(share: float, *, inside: bool) -> str:
    return next(name for number in range(1000) if is_in_share(name := f"s{number}", share, "t") is inside)


@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_has_all_that_the_smaller_one_had(who: str, a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert is_in_share(who, high, "t") or not is_in_share(who, low, "t")


def test_the_share_is_what_it_says_and_other_sessions_with_another_trial() -> None:
    names = [f"session {number}" for number in range(20_000)]
    first = {name for name in names if is_in_share(name, 0.05, "a")}
    second = {name for name in names if is_in_share(name, 0.05, "b")}
    assert len(first) / len(names) == pytest.approx(0.05, abs=0.005)
    assert len(first & second) < 0.2 * len(first)


def test_an_answer_goes_on_where_its_weights_are() -> None:
    assert goes_on_at(OLD, FLAGS_ONLY)
    assert not goes_on_at(NEW, OLD)
    assert not goes_on_at(OLD, NEW)
    assert goes_on_at(ReplicaLabel("fp8", False, "a"), ReplicaLabel("bf16", False, "b"))
    assert goes_on_at(ReplicaLabel(), OLD), "an older replica does not say"


def test_nobody_of_the_rest_goes_to_the_canary() -> None:
    up = [connection("a", OLD), connection("c", NEW)]
    inside, outside = session_in(0.3, inside=True), session_in(0.3, inside=False)

    def names(found: Sequence[ReplicaConnection]) -> list[str]:
        return [one.replica_id for one in found]

    assert names(arm(0.3).eligible(up, outside, None, set())) == ["a"]
    assert names(arm(0.3).eligible(up, inside, None, set())) == ["c"]
    assert names(arm(0.3).eligible(up, inside, None, {"c"})) == ["a"]
    assert names(arm(0.3).eligible(up[:1], inside, None, set())) == ["a"]
    assert names(arm(0.0).eligible(up, inside, None, set())) == ["a"]
    assert names(arm(0.3).eligible(up[1:], outside, None, set())) == []


def test_fallbacks_are_counted() -> None:
    found = arm(0.3)
    inside = session_in(0.3, inside=True)
    arms = [found.of(inside, NEW), found.of(inside, OLD)]
    assert arms == [Arm.CANARY, Arm.FALLBACK]
    for arm_ in arms:
        found.count(arm_)
    assert found.chosen[Arm.FALLBACK] == 1


def test_an_answer_of_a_withdrawn_canary_ends() -> None:
    withdrawn = arm(0.0)
    with pytest.raises(WeightsGone):
        withdrawn.check(NEW, [connection("a", OLD)])
    withdrawn.check(NEW, [connection("a", OLD), connection("c", NEW)])
    withdrawn.check(NEW, [connection("b", ReplicaLabel("", False, "new"))])
    arm(0.1).check(NEW, [connection("a", OLD)])


# ---- the same at the dispatcher --------------------------------------------------------------------------------------


class LabelledTransport(LocalTransport):
    """Replicas of several labels, by name."""

    def __init__(self, *replicas: LocalReplica, other: ReplicaLabel = NEW) -> None:
        super().__init__(*replicas)
        self.labels = {"a": OLD, "c": other}

    async def replicas(self) -> tuple[Sequence[ReplicaInfo], bool]:
        infos, complete = await super().replicas()
        return [msgspec.structs.replace(one, label=self.labels[one.replica_id]) for one in infos], complete


@asynccontextmanager
async def fleet_with_canary() -> AsyncIterator[tuple[LocalFleet, LocalReplica, LocalReplica]]:
    replicas = [LocalReplica("a"), LocalReplica("c")]
    async with local_fleet("", transport=LabelledTransport(*replicas)) as fleet:
        fleet.dispatcher.canary.follow(0.3, "t")
        await until(lambda: fleet.names_up() == {"a", "c"})
        yield fleet, *replicas


def of_session(session: str) -> SubmittedRequest:
    found = request()
    return replace(found, spec=msgspec.structs.replace(found.spec, session=session))


async def test_a_session_of_the_share_is_answered_by_the_canary() -> None:
    async with fleet_with_canary() as (fleet, _, canary):
        asked = of_session(session_in(0.3, inside=True))
        fleet.dispatcher.submit(asked)
        canary.finish(await canary.started.get(), 0)
        await fleet.results.until_over("r")
        assert (asked.trace.arm, asked.trace.attempts[0].on_canary) == ("canary", True)


async def test_before_its_first_token_a_request_of_a_dead_canary_goes_to_the_rest() -> None:
    async with fleet_with_canary() as (fleet, stable, canary):
        fleet.dispatcher.submit(of_session(session_in(0.3, inside=True)))
        await canary.started.get()
        fleet.lose(canary)
        stable.finish(await stable.started.get(), 0)
        await fleet.results.until_over("r")
        assert not fleet.results.errors


async def test_half_an_answer_of_new_weights_is_never_finished_by_old_ones() -> None:
    async with fleet_with_canary() as (fleet, stable, canary):
        fleet.dispatcher.submit(of_session(session_in(0.3, inside=True)))
        canary.emit(await canary.started.get(), 0, 2)
        await fleet.results.until_tokens("r", 2)
        fleet.lose(canary)
        await until(lambda: fleet.names_up() == {"a"})
        fleet.dispatcher.canary.follow(0.0, "t")
        await fleet.results.until_over("r")
        assert isinstance(fleet.results.errors["r"], WeightsGone)
        assert stable.started.empty()


async def test_it_goes_on_when_the_canary_is_back() -> None:
    async with fleet_with_canary() as (fleet, stable, canary):
        fleet.dispatcher.submit(of_session(session_in(0.3, inside=True)))
        canary.emit(await canary.started.get(), 0, 2)
        await fleet.results.until_tokens("r", 2)
        fleet.lose(canary)
        back = LocalReplica("c")
        fleet.transport.live["c"] = back
        again = await back.started.get()
        assert again.emitted_token_ids == [100, 101]
        back.finish(again, 2)
        await fleet.results.until_over("r")
        assert fleet.results.tokens["r"] == [100, 101, 102]
        assert stable.started.empty()


async def test_an_answer_that_moves_to_other_weights_between_pools_is_marked() -> None:
    replicas = [LocalReplica("a"), LocalReplica("c")]
    other = ReplicaLabel("fp8", False, "new")
    async with local_fleet("", transport=LabelledTransport(*replicas, other=other)) as fleet:
        await until(lambda: fleet.names_up() == {"a", "c"})
        asked = request()
        fleet.dispatcher.submit(asked)
        both = LocalFleet(fleet.dispatcher, fleet.results, fleet.transport, replicas)
        attempt, lost, left = await both.first_attempt()
        lost.emit(attempt, 0, 2)
        await fleet.results.until_tokens("r", 2)
        fleet.lose(lost)
        left.finish(await left.started.get(), 2)
        await fleet.results.until_over("r")
        assert asked.trace.inexact == ("weights",)
