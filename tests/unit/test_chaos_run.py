"""A whole run of chaos, against a stand-in for the service whose replicas are real processes."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys

import psutil
import pytest

from chaos import command, options
from chaos.analysis import Findings, analyze, passed
from serve_app.config.profile import ROOT
from tests.unit.stand_in_fleet import StandInFleet, stand_in

pytestmark = pytest.mark.slow  # a round takes a second to start, and so do processes

QUICK = ("--apis", "completions", "--streams", "16", "--concurrency", "8", "--tokens", "30-60", "--recover-s", "20")


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


async def run(fleet: StandInFleet, *flags: str) -> tuple[Findings, bool, list[str]]:
    parser = argparse.ArgumentParser()
    options.add_flags(parser)
    found = options.read(parser.parse_args(["--url", fleet.url, "--dashboard", fleet.url, *QUICK, *flags]))
    findings, printed = Findings(), list[str]()
    await command.ChaosRun(found, findings, printed.append).run()
    requested = found.streams if found.requests is None else found.requests
    return findings, passed(analyze(findings, requested), findings), printed


@pytest.mark.parametrize("fault", ["kill", "cut", "upgrade"])
async def test_a_service_whose_streams_survive_a_fault_passes(fault: str) -> None:
    async with stand_in() as fleet:
        findings, held, printed = await run(fleet, "--fault", fault)
    assert held, (printed, findings.problems)
    assert len(findings.injected) == len(findings.recovery_s) == 2
    assert findings.migrations == sum(line.migrations for line in findings.access.values()) > 0
    assert len(fleet.upgrades) == (2 if fault == "upgrade" else 0)
    assert any("round   2/2" in line for line in printed)


async def test_with_min_up_the_next_fault_does_not_wait_for_a_restart() -> None:
    async with stand_in() as fleet:
        fleet.slow_start = True  # a lost replica is not replaced until the second fault
        for _ in range(2):
            fleet.start_replica()
        running = asyncio.create_task(run(fleet, "--min-up", "2"))
        while fleet.started - len(fleet.replicas) < 2 and not running.done():  # the kernel sets no event
            fleet.remove_dead()
            await asyncio.sleep(0)
        fleet.slow_start = False
        findings, held, printed = await running
    assert held, (printed, findings.problems)
    assert len(findings.injected) == 2
    assert len({injected.replica_id for injected in findings.injected}) == 2
    assert len(findings.recovery_s) == 1
    assert any("2 engines run after" in line for line in printed)


async def test_a_slowed_replica_runs_on() -> None:
    async with stand_in() as fleet:
        findings, _, _ = await run(fleet, "--fault", "slow", "--slow-s", "0.5")
        assert all(process.status() != psutil.STATUS_STOPPED for process in fleet.replicas.values())
    assert not findings.problems
    assert {injected.fault for injected in findings.injected} == {"slow"}


@pytest.mark.parametrize("behaviour", ["doubles", "drops"])
async def test_a_service_that_loses_or_doubles_a_token_does_not_pass(behaviour: str) -> None:
    async with stand_in(behaviour) as fleet:
        findings, held, _ = await run(fleet, "--fault", "kill")
    assert not held
    found = analyze(findings, 16)
    assert found.different if behaviour == "doubles" else found.failed
    assert not findings.unstable


async def test_a_closed_loop_makes_its_upgrades() -> None:
    async with stand_in() as fleet:
        flags = ("--fault", "upgrade", "--requests", "40", "--upgrades", "2", "--pause-s", "0.1", "--settle-s", "1")
        findings, held, _ = await run(fleet, *flags)
    assert held
    assert len(fleet.upgrades) == len(findings.changes) == 2
    assert findings.timeline
    assert any(what.startswith("the access log of i0") for what in findings.unavailable)
    assert findings.access  # that of the running ingress is read


async def test_a_closed_loop_makes_its_changes_one_after_the_other() -> None:
    async with stand_in() as fleet:
        flags = (
            "--fault",
            "rolling",
            "--requests",
            "60",
            "--changes",
            "ingress,upgrade,ingress",
            "--long-tokens",
            "90",
        )
        findings, held, printed = await run(fleet, *flags, "--pause-s", "0.1", "--settle-s", "1")
    assert held, (printed, findings.problems)
    assert [applied.change.value for applied in findings.changes] == ["ingress", "upgrade", "ingress"]
    assert max(result.recording.spec.max_tokens for result in findings.streams) == 90


async def test_a_change_after_the_last_request_is_a_problem() -> None:
    async with stand_in() as fleet:
        flags = ("--fault", "rolling", "--requests", "8", "--changes", "ingress,ingress-out", "--settle-s", "1")
        findings, held, _ = await run(fleet, *flags)
    assert not held
    assert "ingress-out" in findings.problems[0]


async def test_ctrl_c_reports_what_was_measured_and_leaves_no_process_stopped() -> None:
    async with stand_in() as fleet:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "chaos", "--url", fleet.url, "--dashboard", fleet.url, *QUICK),
            *("--fault", "slow", "--slow-s", "600"),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        while not any(  # noqa: ASYNC110  # the kernel sets no event
            process.status() == psutil.STATUS_STOPPED for process in fleet.replicas.values()
        ):
            await asyncio.sleep(0)
        process.send_signal(signal.SIGINT)
        printed, _ = await process.communicate()
        assert all(replica.status() != psutil.STATUS_STOPPED for replica in fleet.replicas.values())
    assert process.returncode == 1
    assert b"interrupted" in printed
    assert b"FAILED" in printed
