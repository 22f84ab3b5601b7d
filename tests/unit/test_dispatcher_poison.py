"""The dispatcher stops requests that kill engines, and quarantines the clients that send them."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from serve_app.protocol.errors import (
    EngineDead,
    EngineDeadBeside,
    EngineDeadByRequest,
    InQuarantine,
    PoisonRequest,
    ReplicaDied,
)
from serve_app.router.request_context import SubmittedRequest
from tests.unit.local_replicas import LocalFleet, LocalReplica, LocalTransport, local_fleet, request, until

KILLED = EngineDeadByRequest("illegal memory access")


def request_of(client: str, request_id: str = "r", first: int = 100) -> SubmittedRequest:
    asked = request(request_id, first)
    return replace(asked, spec=msgspec.structs.replace(asked.spec, client=client))


async def poison(fleet: LocalFleet) -> LocalReplica:
    """Lose a replica to a request of mallory; returns the other one."""
    fleet.dispatcher.submit(request_of("mallory"))
    _, replica, other = await fleet.first_attempt()
    fleet.lose(replica, KILLED)
    await fleet.results.until_over("r")
    return other


async def check_quarantine(fleet: LocalFleet, replica: LocalReplica) -> None:
    """The same request of another client is poison, another request of mallory is in quarantine."""
    fleet.dispatcher.submit(request_of("alice", "again"))
    fleet.dispatcher.submit(request_of("mallory", "another", first=7))
    await fleet.results.until_over("again")
    await fleet.results.until_over("another")
    assert replica.started.empty()
    assert isinstance(fleet.results.errors["again"], PoisonRequest)
    assert isinstance(fleet.results.errors["another"], InQuarantine)


@pytest.mark.parametrize("error", [EngineDead("crash"), ReplicaDied("killed")])
async def test_a_request_that_loses_two_replicas_is_stopped(error: Exception) -> None:
    async with local_fleet("ab") as fleet:
        fleet.dispatcher.submit(request())
        _, replica, other = await fleet.first_attempt()
        fleet.lose(replica, error)
        await other.started.get()
        fleet.lose(other, error)
        await fleet.results.until_over("r")
    assert isinstance(fleet.results.errors["r"], PoisonRequest)


async def test_a_request_that_killed_an_engine_and_its_client_get_no_other_replica() -> None:
    async with local_fleet("ab") as fleet:
        other = await poison(fleet)
        assert isinstance(fleet.results.errors["r"], PoisonRequest)
        await until(lambda: fleet.names_up() == {other.name})
        await check_quarantine(fleet, other)
        fleet.dispatcher.submit(request_of("alice", "innocent", first=9))
        assert (await other.started.get()).spec.request_id == "innocent"


async def test_every_ingress_shares_the_quarantine() -> None:
    async with local_fleet("ab") as fleet:
        await poison(fleet)
        await until(lambda: bool(fleet.transport.quarantine))
    replica = LocalReplica("c")
    transport = LocalTransport(replica)
    transport.quarantine = fleet.transport.quarantine
    async with local_fleet("", transport=transport) as other_ingress:
        await until(lambda: bool(other_ingress.names_up()))
        await check_quarantine(other_ingress, replica)


async def test_a_stream_beside_a_poisonous_request_continues() -> None:
    async with local_fleet("abc") as fleet:
        fleet.dispatcher.submit(request())
        for position in range(3):
            await until(lambda: any(not replica.started.empty() for replica in fleet.replicas))
            replica = next(replica for replica in fleet.replicas if not replica.started.empty())
            attempt = replica.started.get_nowait()
            replica.emit(attempt, position, last=position == 2)
            if position < 2:
                await fleet.results.until_tokens("r", position + 1)
                fleet.lose(replica, EngineDeadBeside("illegal memory access"))
        await fleet.results.until_over("r")
    assert fleet.results.tokens["r"] == [100, 101, 102]
