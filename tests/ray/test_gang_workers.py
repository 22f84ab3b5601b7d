"""Workers of an engine over several nodes are Ray actors: fake ones here, but real actors with vLLM's real plugins."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from serve_app.engine.child import ProcessReport
from serve_app.engine.gang import OWNER_VARIABLE, Gang
from serve_app.engine.watchdog import EngineActivity
from tests.ray.cluster import Cluster, Node, until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]  # the first test starts Ray

NOTHING = EngineActivity({})


@dataclass
class Running:
    """An owner, the engine core below it, and the core's workers by process id."""

    gang: Gang
    said: asyncio.Queue[ProcessReport]
    core: subprocess.Popen[str]
    workers: list[int]

    def order(self, number: int, what: str) -> None:
        assert self.core.stdin is not None
        self.core.stdin.write(f"{number} {what}\n")
        self.core.stdin.flush()

    async def all_seen(self) -> bool:
        return not self.gang.activity(NOTHING, len(self.workers)).unseen_workers

    async def all_gone(self) -> bool:
        return not any(psutil.pid_exists(pid) for pid in self.workers)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(Node()) as found:
        found.start_head("--num-cpus=2")
        yield found


@asynccontextmanager
async def running(cluster: Cluster) -> AsyncIterator[Running]:
    said: asyncio.Queue[ProcessReport] = asyncio.Queue()
    gang = Gang(said.put_nowait)
    await gang.open("127.0.0.1")
    script = str(Path(__file__).with_name("gang_core.py"))
    core = cluster.popen(cluster.head, sys.executable, script, cluster.address, os.environ[OWNER_VARIABLE])
    try:
        assert core.stdout is not None
        line = await asyncio.to_thread(core.stdout.readline)
        assert line, (cluster.folder / "gang_core.log").read_text(encoding="utf-8")[-3000:]
        yield Running(gang, said, core, json.loads(line))
    finally:
        gang.close()
        core.kill()
        core.wait()


async def test_workers_report_their_errors_and_are_seen_and_end_with_the_replica(cluster: Cluster) -> None:
    async with running(cluster) as engine:
        engine.order(0, "fail")
        while (report := await engine.said.get()).text != "RayWorkerProc failed: no kernel image":
            pass
        assert report.error
        engine.order(1, "spin")
        await until(engine.all_seen, 30, "an answer of each worker")
        engine.gang.close()
        await until(engine.all_gone, 30, "the end of the workers, one of them in a loop")
        assert engine.core.poll() is None, "Ray had no reason to end them: their driver lives"


async def test_workers_end_with_the_engine_core(cluster: Cluster) -> None:
    """By Ray, whose driver the core is; a core ends with its replica by itself (`child.die_with_parent`)."""
    async with running(cluster) as engine:
        engine.order(1, "spin")
        engine.core.kill()
        await until(engine.all_gone, 60, "the end of the workers, one of them in a loop")
