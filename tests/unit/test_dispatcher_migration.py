"""The dispatcher migrates requests: from dead and silent replicas, from broken connections, and from draining ones."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from serve_app.protocol.errors import CutOff, EngineDead, ReplicaDied, ReplicaLost
from serve_app.protocol.messages import TokenDelta
from serve_app.router.attempts import DispatcherLimits, End
from tests.unit.local_replicas import STOP, LocalReplica, local_fleet, request, until


async def test_a_request_continues_on_another_replica_when_its_own_is_killed() -> None:
    async with local_fleet("ab") as fleet:
        migrating = request()
        fleet.dispatcher.submit(migrating)
        attempt, replica, other = await fleet.first_attempt()
        replica.emit(attempt, 0, 3)
        await fleet.results.until_tokens("r", 3)
        fleet.lose(replica)
        resumed = await other.started.get()
        assert resumed.emitted_token_ids == [100, 101, 102]
        assert resumed.spec.max_tokens == attempt.spec.max_tokens
        other.finish(resumed, 3, 2)
        await fleet.results.until_over("r")
        await fleet.until_idle()
    assert fleet.results.tokens["r"] == [100, 101, 102, 103, 104]
    assert migrating.trace.migrations == 1
    assert migrating.trace.replicas == [replica.name, other.name]


@pytest.mark.parametrize("error", [EngineDead("out of memory"), ReplicaLost("connection reset")])
async def test_a_single_failed_attempt_is_repeated_with_the_tokens_so_far(error: Exception) -> None:
    async with local_fleet("a") as fleet:
        (replica,) = fleet.replicas
        fleet.dispatcher.submit(request())
        attempt = await replica.started.get()
        replica.emit(attempt, 0, 2)
        await fleet.results.until_tokens("r", 2)
        replica.end(attempt, error)
        replica.finish(await replica.started.get(), 2)
        await fleet.results.until_over("r")
    assert fleet.results.tokens["r"] == [100, 101, 102]


async def test_a_replica_that_dies_after_the_last_token_causes_no_migration() -> None:
    async with local_fleet("ab") as fleet:
        finished = request()
        fleet.dispatcher.submit(finished)
        attempt, replica, other = await fleet.first_attempt()
        replica.emit(attempt, 0, 3, last=True)
        replica.die()
        await fleet.results.until_over("r")
        await fleet.until_idle()
        assert other.started.empty()
    assert fleet.results.tokens["r"] == [100, 101, 102]
    assert finished.trace.migrations == 0


# ---- lost connections ------------------------------------------------------------------------------------------------


async def test_lost_connections_end_a_request_only_if_it_gets_no_further() -> None:
    async with local_fleet("a", DispatcherLimits(request_deadline_s=10, max_cut_attempts=3)) as fleet:
        (replica,) = fleet.replicas
        fleet.dispatcher.submit(request())
        for _ in range(2):
            replica.end(await replica.started.get(), ReplicaLost("no route"))
        attempt = await replica.started.get()
        replica.emit(attempt, 0)
        await fleet.results.until_tokens("r", 1)  # progress: earlier losses do not count any more
        replica.end(attempt, ReplicaLost("no route"))
        for _ in range(2):
            replica.end(await replica.started.get(), ReplicaLost("no route"))
        await fleet.results.until_over("r")
    assert isinstance(fleet.results.errors["r"], CutOff)
    assert fleet.results.errors["r"].retry_after_s is not None


async def test_a_request_ends_after_a_limit_of_replicas_that_stay_lost() -> None:
    async with local_fleet("abc", DispatcherLimits(request_deadline_s=10, max_gone_replicas=2)) as fleet:
        fleet.dispatcher.submit(request())
        for _ in range(2):
            await until(lambda: any(replica.running for replica in fleet.transport.live.values()))
            lost = next(replica for replica in fleet.replicas if replica.running)
            fleet.lose(lost, ReplicaLost("no route"))
            await until(lambda lost=lost: not lost.running)  # type: ignore[misc]
        await fleet.results.until_over("r")
    assert isinstance(fleet.results.errors["r"], CutOff)


async def test_a_replica_that_serves_again_after_a_broken_connection_has_not_died() -> None:
    async with local_fleet("ab") as fleet:
        fleet.dispatcher.submit(request())
        attempt, replica, other = await fleet.first_attempt()
        replica.end(attempt, ReplicaDied("unavailable"))
        await other.started.get()
        await until(lambda: replica.name in fleet.names_up())
        fleet.lose(other)
        replica.finish(await replica.started.get(), 0)
        await fleet.results.until_over("r")
    assert fleet.results.tokens["r"] == [100]


async def test_requests_leave_a_silent_replica() -> None:
    async with local_fleet("ab", DispatcherLimits(request_deadline_s=10, connection_silence_s=1.5)) as fleet:
        fleet.dispatcher.submit(request())
        attempt, silent, other = await fleet.first_attempt()
        silent.emit(attempt, 0, 2)
        await fleet.results.until_tokens("r", 2)
        heartbeats = asyncio.create_task(send_heartbeats(other))
        resumed = await other.started.get()
        assert resumed.emitted_token_ids == [100, 101]
        assert await silent.aborted.get() == attempt.attempt_id
        other.finish(resumed, 2)
        await fleet.results.until_over("r")
        heartbeats.cancel()
    assert fleet.results.tokens["r"] == [100, 101, 102]


async def send_heartbeats(replica: LocalReplica) -> None:
    while True:
        replica.send()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await asyncio.Event().wait()


# ---- draining --------------------------------------------------------------------------------------------------------


async def test_a_draining_replica_finishes_its_requests_and_gets_no_new_ones() -> None:
    async with local_fleet("ab") as fleet:
        fleet.dispatcher.submit(request())
        attempt, draining, other = await fleet.first_attempt()
        fleet.transport.listed = {other.name}
        await until(lambda: draining.name not in fleet.names_up())
        fleet.dispatcher.submit(request("new", first=200))
        other.finish(await other.started.get(), 0)
        draining.finish(attempt, 0, 2)
        await fleet.results.until_over("r")
        await fleet.results.until_over("new")
    assert fleet.results.tokens == {"r": [100, 101], "new": [200]}
    assert draining.started.empty()


async def test_tokens_that_arrive_after_an_attempt_was_ended_are_generated_again() -> None:
    """Even its last ones: the end that was decided first stands, and the next attempt continues before them."""
    async with local_fleet("ab") as fleet:
        fleet.dispatcher.submit(request())
        attempt, replica, other = await fleet.first_attempt()
        replica.emit(attempt, 0)
        await fleet.results.until_tokens("r", 1)
        fleet.transport.listed = {other.name}
        # In one turn of the loop, as a drain's end and a last frame may come: the request's task has not run yet.
        fleet.dispatcher._attempts[attempt.attempt_id].end(End.MOVED)
        fleet.dispatcher._on_deltas([TokenDelta(attempt.attempt_id, 1, [101], STOP)])
        await until(lambda: not other.started.empty() or not replica.started.empty())
        starting = other if not other.started.empty() else replica
        resumed = starting.started.get_nowait()
        assert resumed.emitted_token_ids == [100]
        starting.finish(resumed, 1)
        await fleet.results.until_over("r")
    assert fleet.results.tokens["r"] == [100, 101]


async def test_requests_that_a_drain_does_not_finish_migrate() -> None:
    async with local_fleet("ab", DispatcherLimits(request_deadline_s=10, drain_timeout_s=0)) as fleet:
        migrating = request()
        fleet.dispatcher.submit(migrating)
        attempt, draining, other = await fleet.first_attempt()
        draining.emit(attempt, 0, 2)
        await fleet.results.until_tokens("r", 2)
        fleet.transport.listed = {other.name}
        resumed = await other.started.get()
        assert await draining.aborted.get() == attempt.attempt_id
        assert resumed.emitted_token_ids == [100, 101]
        other.finish(resumed, 2)
        await fleet.results.until_over("r")
    assert fleet.results.tokens["r"] == [100, 101, 102]
    assert migrating.trace.replicas == [draining.name, other.name]


async def test_without_another_replica_a_drain_migrates_nothing() -> None:
    async with local_fleet("a", DispatcherLimits(request_deadline_s=10, drain_timeout_s=0)) as fleet:
        (replica,) = fleet.replicas
        fleet.dispatcher.submit(request())
        attempt = await replica.started.get()
        fleet.transport.listed = set()
        await until(lambda: not fleet.dispatcher.replicas_up())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(replica.aborted.get(), 1.5)
        replica.finish(attempt, 0)
        await fleet.results.until_over("r")
    assert fleet.results.tokens["r"] == [100]


async def test_a_deregistered_replica_that_ends_has_not_died_of_a_request() -> None:
    async with local_fleet("ab") as fleet:
        fleet.dispatcher.submit(request())
        _, deregistered, other = await fleet.first_attempt()
        fleet.transport.listed = {other.name}
        await until(lambda: deregistered.name not in fleet.names_up())
        deregistered.die()
        other.finish(await other.started.get(), 0)
        await fleet.results.until_over("r")
    assert fleet.results.tokens["r"] == [100]
