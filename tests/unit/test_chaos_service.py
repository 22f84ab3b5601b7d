"""What chaos reads of the service over Ray's dashboard, and the changes that it deploys."""

from __future__ import annotations

import asyncio
import json

import pytest

from chaos import service
from chaos.changes import UPGRADE_VARIABLE, Change
from chaos.service import Access, Service
from serve_app.cli.serve_api import StatusUnknown
from tests.unit.stand_in_fleet import StandInFleet, stand_in


def log_line(request_id: str, migrations: int) -> str:
    values = {"id": request_id, "replica": ["r1"], "migrations": migrations}
    return f"serve_app.access: request {json.dumps(values)}"


def of(fleet: StandInFleet) -> Service:
    return Service(fleet.url, "step")


def test_counters_are_read_with_their_labels() -> None:
    page = '# HELP x y\nray_step_migrations_total{replica="a"} 3.0\nray_step_migrations_total_created{replica="a"} 9\n'
    assert service.counters(page, service.MIGRATIONS) == [('{replica="a"}', 3.0)]


def test_access_lines_are_found_among_other_lines() -> None:
    line = '2026 INFO serve_app.access: request {"id":"c-1","replica":["a","b"],"migrations":1,"total_s":0.1}'
    half = 'serve_app.access: request {"id":"c-0","repl'
    assert service.access_of([half, "x", line]) == {"c-1": Access("c-1", 1, ["a", "b"])}


async def test_migrations_of_a_replica_that_has_ended_still_count() -> None:
    async with stand_in() as fleet:
        found = of(fleet)
        fleet.log += [log_line("c-1", 2), log_line("c-2", 1)]
        assert await asyncio.to_thread(found.migrations) == 3
        fleet.log.clear()  # its counter is as that of a new process
        assert await asyncio.to_thread(found.migrations) == 3


async def test_logs_are_read_of_every_ingress_and_a_lost_one_is_named() -> None:
    async with stand_in() as fleet:
        found = of(fleet)
        await asyncio.to_thread(found.fleet)
        fleet.log.append(log_line("c-1", 1))
        assert await asyncio.to_thread(found.access_lines, 10) == ({"c-1": Access("c-1", 1, ["r1"])}, [])
        await asyncio.to_thread(found.change, Change.UPGRADE, "v2")
        await asyncio.to_thread(found.fleet)
        lines, unread = await asyncio.to_thread(found.access_lines, 10)
    assert set(lines) == {"c-1"}
    assert [replica.split()[0] for replica in unread] == ["i0"]


async def test_a_change_is_deployed_with_its_label() -> None:
    async with stand_in() as fleet:
        before = await asyncio.to_thread(of(fleet).fleet)
        await asyncio.to_thread(of(fleet).change, Change.UPGRADE, "v2")
        after = await asyncio.to_thread(of(fleet).fleet)
    (application,) = json.loads(fleet.upgrades[0])["applications"]
    assert application["runtime_env"]["env_vars"] == {UPGRADE_VARIABLE: "v2"}
    assert not {replica.replica_id for replica in before.replicas} & {replica.replica_id for replica in after.replicas}


def test_a_dashboard_that_does_not_answer_is_reported() -> None:
    with pytest.raises(StatusUnknown):
        Service("http://127.0.0.1:9", "step").fleet()
