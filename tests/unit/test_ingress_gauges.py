"""What the dispatcher counts and knows, for the gauges of an ingress."""

from __future__ import annotations

import pytest

from serve_app.engine.metrics import declared
from serve_app.ingress.event_loop import LoopUse
from serve_app.ingress.gauges import ProcessGauges
from serve_app.protocol.errors import EngineDead, NoReplica, ReplicaLost, TooManySequences, WrongReplica
from serve_app.protocol.messages import ReplicaCapacity, ReplicaLoad
from serve_app.router.admission_control import AdmissionDecision
from serve_app.router.attempts import FRAME_PERIOD_S, LOST, End, ReplicaConnection, ReplicaState
from serve_app.router.fleet_state import FleetState
from tests.unit.local_replicas import local_fleet, request
from tests.unit.test_gauges import assert_listed, recorded


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (EngineDead("out of memory"), End.DIED),
        (ReplicaLost("connection reset"), End.CUT),
        (WrongReplica("draining"), End.MOVED),
    ],
)
async def test_a_migration_counts_by_how_the_attempt_was_lost(error: Exception, cause: End) -> None:
    async with local_fleet("ab") as fleet:
        fleet.dispatcher.submit(request())
        attempt, replica, other = await fleet.first_attempt()
        replica.end(attempt, error)
        other.finish(await other.started.get(), 0)
        await fleet.results.until_over("r")
        assert dict(fleet.dispatcher.migrations_by_cause) == {cause: 1}


async def test_admission_counts_its_decisions() -> None:
    async with local_fleet("") as fleet:
        fleet.dispatcher.check_room(1)
        with pytest.raises(NoReplica):
            fleet.dispatcher.check_room(10_000)
        assert fleet.dispatcher.admission_decisions() == {
            AdmissionDecision.ADMITTED: 1,
            AdmissionDecision.NO_REPLICA: 1,
        }
    async with local_fleet("a") as fleet:
        await fleet.dispatcher.wait_for_replica(10)
        with pytest.raises(TooManySequences):
            fleet.dispatcher.check_room(10_000)
        assert fleet.dispatcher.admission_decisions() == {AdmissionDecision.TOO_MANY_SEQUENCES: 1}


def test_a_connection_is_late_from_when_its_frame_was_due() -> None:
    connection = ReplicaConnection("a", ReplicaLoad(0, 8, 0.0, draining=False), ReplicaCapacity())
    assert connection.state is ReplicaState.CONNECTING
    assert connection.lateness_s(100) == 0
    connection.up, connection.last_frame_s = True, 10.0
    assert connection.state is ReplicaState.UP
    assert connection.lateness_s(10 + FRAME_PERIOD_S) == 0
    assert connection.lateness_s(13 + FRAME_PERIOD_S) == 3
    connection.draining_since_s = 11.0
    assert connection.state is ReplicaState.DRAINING


async def test_an_ingress_exports_what_its_dispatcher_knows() -> None:
    gauges = ProcessGauges()
    record = recorded(declared(gauges))
    async with local_fleet("a") as fleet:
        fleet.dispatcher.submit(request(first=100))
        attempt = await fleet.replicas[0].started.get()
        fleet.replicas[0].emit(attempt, 0, 3)
        await fleet.results.until_tokens("r", 3)
        gauges.set(LoopUse(0.25, 0.125), fleet.dispatcher)
    values = {(name, *tags.values()): value for name, value, tags in record}
    assert values["step_inflight_requests",] == 1
    assert values["step_inflight_tokens",] == 4
    assert values["step_replicas", "up"] == 1
    assert values["step_replicas", "refused"] == 0
    assert [state for state in FleetState if values["step_fleet_state", state.value]] == [FleetState.UP]
    assert values["step_engine_expected_seconds",] == values["step_waiting_for_engine",] == 0
    assert values["step_event_loop_lag_seconds",] == 0.125
    assert 0 <= values["step_frame_lateness_seconds",] < 1
    assert {tags["cause"] for name, _, tags in record if name == "step_migrations"} == {one.value for one in LOST}
    assert_listed(record)
