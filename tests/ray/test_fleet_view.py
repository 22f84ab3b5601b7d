"""`python -m loadtest run --ray-dashboard` against a live Serve: what the report shows is what became of the fleet."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from serve_app.config.profile import ROOT
from tests.ray.cluster import Cluster

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]  # the first test starts the service

LOAD_S = 20
"""Long enough for the replica to be missed and replaced: Serve takes a few seconds for each."""


async def loadtest(service: Cluster, *flags: str) -> asyncio.subprocess.Process:
    """The command, started."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "loadtest", "run", "--url", service.url()),
        *("--ray-dashboard", f"http://{service.head.address}:{service.dashboard_port}", *flags),
        cwd=ROOT,
        env=service._env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


async def test_a_killed_replica_and_its_return_are_on_the_runs_time_axis(service: Cluster, tmp_path: Path) -> None:
    victim, other = await service.replicas("engine")
    files = tmp_path / "fleet.json", tmp_path / "fleet.html"
    running = await loadtest(
        service,
        *("--dataset-name", "natural", "--input-len", "60", "--output-len", "24", "--phases", f"5s@2,{LOAD_S - 5}s@6"),
        *("--slo", "ttft_p90<2s", "--at", f"8:kill -9 {victim['pid']}"),
        *("--json", str(files[0]), "--html", str(files[1])),
    )
    printed = (await running.communicate())[0].decode()
    assert running.returncode == 0, printed
    fleet: dict[str, Any] = json.loads(files[0].read_text(encoding="utf-8"))["loadtest"]["fleet"]
    assert not fleet["problem"]
    assert all(len(fleet[name]) == len(fleet["at_s"]) for name in ("target_replicas", "queued", "kv_usage"))
    assert fleet["target_replicas"][-1] == 4
    counts = fleet["replicas"]["engine RUNNING"]
    assert counts[0] == 2
    assert min(counts) == 1
    said = {(mark["kind"], mark["what"]): mark["at_s"] for mark in fleet["marks"]}
    lost_s = said["death", f"engine: replica {victim['replica_id']} was lost"]
    assert 8 <= lost_s < LOAD_S
    assert f"engine: replica {other['replica_id']} was lost" not in str(said)
    # The load step, the command and the loss: each has the time until the objectives held again.
    assert len(fleet["recoveries"]) >= 2, printed
    page = files[1].read_text(encoding="utf-8")
    assert all(title in page for title in ("Replicas", "Queue", "Rate")), "one page, one time axis"
    await service.until_replicas("engine", 2, 60)
