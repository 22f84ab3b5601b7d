"""An ingress works with engines of its own vLLM only, and says what is wrong with the others."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from serve_app.protocol.errors import OtherVersion
from serve_app.protocol.messages import WIRE_VERSION, ReplicaInfo
from serve_app.router.attempts import DispatcherLimits
from serve_app.router.dispatcher import Dispatcher
from serve_app.router.versions import EngineVersions
from tests.unit.local_replicas import IDLE, LocalReplica, LocalTransport, Results, request, until

BOTH = "the ingress runs vLLM 0.32.0 (CPU build), replica b runs 0.33.0: install the same on every node"


def info(vllm_version: str, wire_version: int = WIRE_VERSION, name: str = "b") -> ReplicaInfo:
    return ReplicaInfo(wire_version, name, IDLE, vllm_version=vllm_version)


@pytest.mark.parametrize(
    ("ingress", "engine"),
    [
        ("0.33.0", "0.33.0"),
        ("0.33.0+cpu", "0.33.0"),  # two builds of the same Python
        ("0.33.0", "0.33.0+cu130"),
        ("0.33.0", "fake"),
        ("0.33.0", ""),  # it does not say
    ],
)
def test_the_same_version_goes_together_whatever_its_build(ingress: str, engine: str) -> None:
    assert EngineVersions(ingress).mismatch(info(engine)) is None


@pytest.mark.parametrize(
    ("ingress", "engine"), [("0.32.0+cpu", "0.33.0"), ("0.33.0", "0.33.1"), ("0.33.0rc1", "0.33.0")]
)
def test_another_version_is_refused_with_both_and_the_fix(ingress: str, engine: str) -> None:
    why = EngineVersions(ingress).mismatch(info(engine))
    assert why is not None
    assert engine in why
    assert ingress.split("+", maxsplit=1)[0] in why
    assert "`make venv`" in why
    assert "STEP_SERVE_MACHINE=gpu" in why


def test_another_wire_version_is_refused_even_of_the_fake_engine() -> None:
    why = EngineVersions("0.33.0").mismatch(info("fake", WIRE_VERSION + 1))
    assert why is not None
    assert f"wire version {WIRE_VERSION}, replica b {WIRE_VERSION + 1}" in why
    assert "every node" in why


class MixedTransport(LocalTransport):
    """Replica `a` runs the ingress' version, `b` another."""

    async def replicas(self) -> tuple[list[ReplicaInfo], bool]:
        versions = {"a": "0.32.0+cpu", "b": "0.33.0"}
        names = self.live if self.listed is None else self.listed
        return [info(versions[name], name=name) for name in names], True


@asynccontextmanager
async def mixed(*names: str) -> AsyncIterator[tuple[Dispatcher, Results, dict[str, LocalReplica]]]:
    replicas = {name: LocalReplica(name) for name in names}
    results = Results()
    limits = DispatcherLimits(request_deadline_s=5.0)
    transport = MixedTransport(*replicas.values())
    async with Dispatcher(
        transport, "ingress", limits, results, incompatibility=EngineVersions("0.32.0+cpu").mismatch
    ) as fleet:
        yield fleet, results, replicas


async def test_a_request_goes_past_a_replica_of_another_version(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        async with mixed("a", "b") as (fleet, results, replicas):
            for number in range(4):
                fleet.submit(request(f"r{number}", first=100 * number))
                attempt = await replicas["a"].started.get()
                replicas["a"].emit(attempt, 0, last=True)
                replicas["a"].end(attempt)
                await results.until_over(f"r{number}")
            assert not results.errors
            assert replicas["b"].started.empty()
            assert [replica.replica_id for replica in fleet.replicas_up()] == ["a"]
            assert len(fleet.replicas_refused()) == 1
    told = [record for record in caplog.records if record.message == "nothing is sent to a replica"]
    assert len(told) == 1, "it is said once, not every second"
    assert BOTH in told[0].__dict__["reason"]


async def test_a_new_request_fails_at_once_where_all_is_of_another_version() -> None:
    async with mixed("b") as (fleet, results, _):
        fleet.submit(request())
        await results.until_over("r")
        error = results.errors["r"]
        assert isinstance(error, OtherVersion)
        assert (error.status, error.retry_after_s) == (503, 5)
        assert BOTH in error.message


async def test_a_refused_replica_that_goes_is_forgotten() -> None:
    transport = MixedTransport(LocalReplica("b"))
    async with Dispatcher(
        transport, "ingress", DispatcherLimits(5.0), Results(), incompatibility=EngineVersions("0.32.0+cpu").mismatch
    ) as fleet:
        await until(lambda: bool(fleet.replicas_refused()))
        transport.listed = set()
        await until(lambda: not fleet.replicas_refused())
