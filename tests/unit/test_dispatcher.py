"""The dispatcher: one attempt after another, until a request has all its tokens or fails."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from msgspec import structs

from serve_app.protocol.errors import AttemptRefused, NoReplica, RequestRefused, WrongReplica
from serve_app.router.attempts import DispatcherLimits
from tests.unit.local_replicas import LocalReplica, local_fleet, request


async def test_tokens_come_once_and_in_order() -> None:
    async with local_fleet("a") as fleet:
        (replica,) = fleet.replicas
        fleet.dispatcher.submit(request())
        attempt = await replica.started.get()
        replica.emit(attempt, 0, 3)
        replica.finish(attempt, 3, 2)
        await fleet.results.until_over("r")
        await fleet.until_idle()
    assert fleet.results.tokens["r"] == [100, 101, 102, 103, 104]


async def test_a_resumed_request_starts_with_its_partial_output() -> None:
    async with local_fleet("a") as fleet:
        (replica,) = fleet.replicas
        fleet.transport.partial_outputs["theirs"] = [100, 101, 102]
        resumed = request()
        resumed = replace(resumed, spec=structs.replace(resumed.spec, resume_key="mine"), resumes_key="theirs")
        fleet.dispatcher.submit(resumed)
        attempt = await replica.started.get()
        assert (attempt.emitted_token_ids, attempt.spec.resume_key) == ([100, 101, 102], "mine")
        replica.finish(attempt, 3, 2)
        await fleet.results.until_over("r")
    assert fleet.results.tokens["r"] == [100, 101, 102, 103, 104]
    assert (resumed.trace.resumed_tokens, resumed.trace.migrations) == (3, 0)


async def test_repeated_tokens_start_another_attempt_and_are_not_delivered() -> None:
    async with local_fleet("a") as fleet:
        (replica,) = fleet.replicas
        fleet.dispatcher.submit(request())
        attempt = await replica.started.get()
        replica.emit(attempt, 0, 2)
        replica.emit(attempt, 1, 2)
        resumed = await replica.started.get()
        assert resumed.emitted_token_ids == [100, 101]
        replica.emit(attempt, 2, 5)  # tokens of the abandoned attempt are ignored
        replica.finish(resumed, 2)
        await fleet.results.until_over("r")
    assert fleet.results.tokens["r"] == [100, 101, 102]


async def test_a_replica_that_rejects_an_attempt_is_not_counted_as_dead() -> None:
    async with local_fleet("ab") as fleet:
        fleet.dispatcher.submit(request())
        attempt, replica, other = await fleet.first_attempt()
        replica.end(attempt, WrongReplica("draining"))
        other.finish(await other.started.get(), 0)
        await fleet.results.until_over("r")
    assert fleet.results.tokens["r"] == [100]


async def test_a_request_that_every_replica_rejects_is_retried_slowly_until_its_deadline() -> None:
    rejected = 0

    async def reject_all(replica: LocalReplica) -> None:
        nonlocal rejected
        while True:
            replica.end(await replica.started.get(), WrongReplica("not now"))
            rejected += 1

    async with local_fleet("a", DispatcherLimits(request_deadline_s=1.2)) as fleet:
        rejecting = asyncio.create_task(reject_all(fleet.replicas[0]))
        fleet.dispatcher.submit(request())
        await fleet.results.until_over("r")
        rejecting.cancel()
    assert isinstance(fleet.results.errors["r"], NoReplica)
    assert 1 <= rejected <= 3


async def test_an_unexpected_error_fails_the_request() -> None:
    async with local_fleet("a") as fleet:
        (replica,) = fleet.replicas
        fleet.dispatcher.submit(request())
        replica.end(await replica.started.get(), ValueError("a bug"))
        await fleet.results.until_over("r")
    assert "failed" in str(fleet.results.errors["r"])


async def test_a_request_that_the_engine_refuses_is_not_retried() -> None:
    async with local_fleet("a") as fleet:
        (replica,) = fleet.replicas
        fleet.dispatcher.submit(request())
        replica.end(await replica.started.get(), AttemptRefused("prompt too long"))
        await fleet.results.until_over("r")
        assert replica.started.empty()
    assert isinstance(fleet.results.errors["r"], RequestRefused)
    assert "prompt too long" in str(fleet.results.errors["r"])


async def test_cancelling_aborts_the_attempt_on_its_replica() -> None:
    async with local_fleet("a") as fleet:
        (replica,) = fleet.replicas
        fleet.dispatcher.submit(request())
        attempt = await replica.started.get()
        fleet.dispatcher.cancel("r")
        assert await replica.aborted.get() == attempt.attempt_id
        await fleet.until_idle()
        assert not replica.running


async def test_without_a_replica_a_request_fails_at_its_deadline() -> None:
    async with local_fleet("", DispatcherLimits(request_deadline_s=0.05)) as fleet:
        fleet.dispatcher.submit(request())
        await fleet.results.until_over("r")
    error = fleet.results.errors["r"]
    assert isinstance(error, NoReplica)
    assert error.retry_after_s is not None


async def test_a_waiting_request_runs_on_a_replica_that_comes_later() -> None:
    async with local_fleet("") as fleet:
        fleet.dispatcher.submit(request())
        replica = fleet.transport.live["late"] = LocalReplica("late")
        replica.finish(await replica.started.get(), 0)
        await fleet.results.until_over("r")
    assert fleet.results.tokens["r"] == [100]
