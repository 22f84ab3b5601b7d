"""`python -m chaos` as a user runs it, against the whole service over fake engines."""

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


async def chaos(service: Cluster, *flags: str) -> tuple[int, str]:
    """Run the command; returns its exit status and what it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "chaos", "--url", service.url()),
        *("--dashboard", f"http://{service.head.address}:{service.dashboard_port}", *flags),
        cwd=ROOT,
        env=service._env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    printed, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, printed.decode()


async def test_no_client_notices_killed_replicas(service: Cluster, tmp_path: Path) -> None:
    out = tmp_path / "chaos.json"
    flags = ("--streams", "24", "--concurrency", "12", "--tokens", "60-120", "--json", str(out))
    status, printed = await chaos(service, *flags)
    assert status == 0, printed
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    assert (found["finished"], found["failed"], found["different"]) == (24, 0, 0)
    assert len(found["faults"]) == 2
    assert found["migrations"] == found["logged_migrations"] > 0
    assert found["affected_is_known"]
    assert found["unfinished"] == 0
    assert {stream["api"] for stream in found["streams"]} == {"chat", "completions", "messages", "responses"}


@pytest.mark.parametrize(("fault", "instead"), [("kill-engine", "--fault kill"), ("hang", "--fault cut")])
async def test_a_fake_engine_has_no_process_to_take_away(service: Cluster, fault: str, instead: str) -> None:
    status, printed = await chaos(service, "--fault", fault)
    assert status == 2
    assert instead in printed
