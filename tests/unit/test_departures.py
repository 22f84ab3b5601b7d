"""Nodes that are about to go: new requests avoid them, and running ones leave before they do."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
from ray._raylet import InnerGcsClient  # type: ignore[attr-defined]  # compiled
from ray.exceptions import GetTimeoutError

from serve_app.protocol.messages import ReplicaCapacity, ReplicaLoad
from serve_app.router.attempts import ReplicaConnection, ReplicaState
from serve_app.router.departures import MARGIN_S, MOVES_PER_CHECK, WORTH_IT_S, must_move, usable
from serve_app.router.node_drain import DrainingNodes
from tests.unit.local_replicas import LocalFleet, LocalReplica, local_fleet, request, until


def connection(name: str, leaves_at_s: float | None = None, unfinished: int = 0) -> ReplicaConnection:
    load = ReplicaLoad(unfinished, 8, 0.0, draining=False)
    return ReplicaConnection(name, load, ReplicaCapacity(), up=True, leaves_at_s=leaves_at_s)


def names(connections: list[ReplicaConnection]) -> list[str]:
    return [one.replica_id for one in connections]


# ---- decisions -------------------------------------------------------------------------------------------------------


def test_new_requests_go_to_replicas_that_stay() -> None:
    assert names(usable([connection("stays"), connection("leaves", 1000.0)], 0.0)) == ["stays"]


def test_one_that_leaves_late_helps_out_where_the_others_have_no_free_slot() -> None:
    full = connection("full", unfinished=8)
    assert names(usable([full, connection("leaves", math.inf)], 0.0)) == ["full", "leaves"]
    assert names(usable([full, connection("leaves", MARGIN_S + WORTH_IT_S - 1)], 0.0)) == ["full"]


def test_where_all_leave_those_that_stay_longer_are_used() -> None:
    soon, later = connection("soon", MARGIN_S), connection("later", 500.0)
    assert names(usable([soon, later], 0.0)) == ["later"]
    assert names(usable([soon], 0.0)) == ["soon"], "better than none"


def test_attempts_leave_in_time_for_the_last_of_them() -> None:
    leaves = connection("leaves", 100.0)
    assert not must_move(leaves, 99.0 - MARGIN_S)
    assert must_move(leaves, 100.0 - MARGIN_S)
    leaves.attempts = {str(number): Ended() for number in range(4 * MOVES_PER_CHECK)}
    assert must_move(leaves, 100.0 - MARGIN_S - 4)
    assert not must_move(leaves, 100.0 - MARGIN_S - 5)


def test_without_a_deadline_nothing_moves_before_serve_stops_the_replica() -> None:
    assert not must_move(connection("leaves", math.inf), 1e9)
    assert not must_move(connection("stays"), 1e9)


def test_a_replica_that_leaves_is_known_as_that() -> None:
    leaves = connection("leaves", 100.0)
    assert leaves.state is ReplicaState.LEAVING
    leaves.draining_since_s = 1.0
    assert leaves.state is ReplicaState.DRAINING


class Ended:
    """An attempt that is of no interest."""

    def end(self, how: object) -> None: ...


# ---- in the dispatcher -----------------------------------------------------------------------------------------------


async def leaving(fleet: LocalFleet, replica: LocalReplica, left_s: float) -> None:
    """The replica's node leaves, and the dispatcher knows."""
    fleet.transport.departures = {replica.name: left_s}
    await until(lambda: replica.name not in fleet.names_up())


async def test_a_running_request_ends_where_it_is_and_the_next_goes_elsewhere() -> None:
    async with local_fleet("ab") as fleet:
        fleet.dispatcher.submit(request())
        attempt, going, other = await fleet.first_attempt()
        await leaving(fleet, going, 300.0)
        fleet.dispatcher.submit(request("new", first=200))
        other.finish(await other.started.get(), 0)
        going.finish(attempt, 0, 2)
        await fleet.results.until_over("r")
        await fleet.results.until_over("new")
    assert fleet.results.tokens == {"r": [100, 101], "new": [200]}
    assert going.started.empty()


async def test_a_running_request_moves_before_its_node_goes() -> None:
    async with local_fleet("ab") as fleet:
        fleet.dispatcher.submit(moving := request())
        attempt, going, other = await fleet.first_attempt()
        going.emit(attempt, 0, 2)
        await fleet.results.until_tokens("r", 2)
        await leaving(fleet, going, MARGIN_S)
        resumed = await other.started.get()
        assert await going.aborted.get() == attempt.attempt_id
        assert resumed.emitted_token_ids == [100, 101]
        other.finish(resumed, 2)
        await fleet.results.until_over("r")
    assert fleet.results.tokens["r"] == [100, 101, 102]
    assert moving.trace.replicas == [going.name, other.name]


async def test_it_also_moves_in_time_when_serve_has_stopped_the_replica_long_before_its_drain_timeout() -> None:
    async with local_fleet("ab") as fleet:
        fleet.dispatcher.submit(request())
        attempt, going, other = await fleet.first_attempt()
        fleet.transport.listed = {other.name}
        await leaving(fleet, going, MARGIN_S)
        other.finish(await other.started.get(), 0)
        assert await going.aborted.get() == attempt.attempt_id
        await fleet.results.until_over("r")


async def test_the_only_replica_is_used_to_its_end() -> None:
    async with local_fleet("a") as fleet:
        (replica,) = fleet.replicas
        fleet.transport.departures = {replica.name: 1.0}
        fleet.dispatcher.submit(request())
        replica.finish(await replica.started.get(), 0)
        await fleet.results.until_over("r")
    assert fleet.results.tokens["r"] == [100]


async def test_a_replica_whose_node_stays_after_all_is_used_again() -> None:
    async with local_fleet("ab") as fleet:
        a, _ = fleet.replicas
        await until(lambda: fleet.names_up() == {"a", "b"})
        await leaving(fleet, a, 300.0)
        fleet.transport.departures = {}
        await until(lambda: fleet.names_up() == {"a", "b"})


async def test_a_replica_over_several_nodes_leaves_with_the_first_of_them() -> None:
    async with local_fleet("ab") as fleet:
        await until(lambda: fleet.names_up() == {"a", "b"})
        fleet.transport.departures = {"head": 300.0, "a": 100.0, "elsewhere": 1.0}
        await until(lambda: all(one.leaves_at_s is not None for one in fleet.dispatcher.connections()))
        leaves = {one.replica_id: one.leaves_at_s or 0.0 for one in fleet.dispatcher.connections()}
    assert leaves["b"] - leaves["a"] == pytest.approx(200.0)


# ---- what Ray says ---------------------------------------------------------------------------------------------------


async def test_deadlines_become_seconds_and_none_is_no_deadline() -> None:
    nodes = DrainingNodes(lambda: {"n1": 1_030_500, "n2": 0}, clock=lambda: 1000.0)
    assert await nodes() == {"n1": 30.5, "n2": math.inf}


async def test_while_ray_does_not_answer_its_last_answer_counts(caplog: pytest.LogCaptureFixture) -> None:
    answers: list[Mapping[str, int]] = [{"n1": 1_030_000}]
    now_s = 1000.0

    def read() -> Mapping[str, int]:
        if not answers:
            raise GetTimeoutError("no answer")
        return answers.pop()

    nodes = DrainingNodes(read, clock=lambda: now_s)
    assert await nodes() == {"n1": 30.0}
    now_s = 1010.0
    assert await nodes() == {"n1": 20.0}
    assert await nodes() == {"n1": 20.0}
    assert len([one for one in caplog.records if "about to go" in one.getMessage()]) == 1


def test_this_ray_can_be_asked_and_told() -> None:
    assert callable(InnerGcsClient.get_draining_nodes)
    assert callable(InnerGcsClient.drain_node)
