"""Several engine deployments are one set of replicas to the dispatcher."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from serve_app.protocol.errors import ReplicaLost
from serve_app.protocol.messages import ReplicaInfo
from serve_app.router.attempts import DispatcherLimits
from serve_app.router.composite_transport import PATIENCE_LISTINGS, CompositeTransport
from serve_app.router.dispatcher import Dispatcher
from tests.unit.local_replicas import LocalFleet, LocalReplica, LocalTransport, Results, request, until


class SilentTransport(LocalTransport):
    """A part whose replicas do not answer while `silent`."""

    silent = False

    async def replicas(self) -> tuple[Sequence[ReplicaInfo], bool]:
        if self.silent:
            raise ReplicaLost("no replica answers")
        return await super().replicas()


def parts() -> tuple[SilentTransport, SilentTransport, CompositeTransport]:
    a, b = SilentTransport(LocalReplica("a")), SilentTransport(LocalReplica("b"))
    return a, b, CompositeTransport({"h100": a, "h200": b})


async def listed(transport: CompositeTransport) -> tuple[set[str], bool]:
    infos, complete = await transport.replicas()
    return {info.replica_id for info in infos}, complete


async def test_the_replicas_of_all_parts_are_listed() -> None:
    _, _, both = parts()
    assert await listed(both) == ({"a", "b"}, True)


async def test_a_part_that_never_answered_hides_nothing() -> None:
    _, b, both = parts()
    b.silent = True
    assert await listed(both) == ({"a"}, True)


async def test_a_part_that_falls_silent_makes_the_list_incomplete_for_a_while() -> None:
    _, b, both = parts()
    await both.replicas()
    b.silent = True
    found = [await listed(both) for _ in range(PATIENCE_LISTINGS)]
    assert found == [({"a"}, False)] * (PATIENCE_LISTINGS - 1) + [({"a"}, True)]


async def test_where_no_part_answers_nothing_is_known() -> None:
    a, b, both = parts()
    a.silent = b.silent = True
    with pytest.raises(ReplicaLost):
        await both.replicas()


async def test_a_request_whose_replica_dies_goes_on_in_another_part() -> None:
    a, b, both = parts()
    results = Results()
    replicas = [a.live["a"], b.live["b"]]
    async with Dispatcher(both, "ingress", DispatcherLimits(request_deadline_s=10), results) as dispatcher:
        fleet = LocalFleet(dispatcher, results, a, replicas)
        await until(lambda: fleet.names_up() == {"a", "b"})
        dispatcher.submit(request())
        attempt, lost, other = await fleet.first_attempt()
        lost.emit(attempt, 0, 2)
        await results.until_tokens("r", 2)
        (a if lost.name == "a" else b).live.pop(lost.name)
        lost.die()
        second = await other.started.get()
        assert second.emitted_token_ids == [100, 101]
        other.finish(second, 2)
        await results.until_over("r")
    assert results.tokens["r"] == [100, 101, 102]


async def test_partial_outputs_are_looked_for_in_every_part_and_quarantines_told_to_all() -> None:
    a, b, both = parts()
    b.partial_outputs["key"] = [1, 2]
    assert await both.fetch_partial_output("key") == [1, 2]
    await both.share_quarantine({"client x": 1.0})
    assert (a.quarantine, b.quarantine) == ({"client x": 1.0}, {"client x": 1.0})


async def test_a_part_may_come_and_go() -> None:
    _, _, both = parts()
    both.add("canary", LocalTransport(LocalReplica("c")))
    assert await listed(both) == ({"a", "b", "c"}, True)
    both.remove("canary")
    assert await listed(both) == ({"a", "b"}, True)
