"""Workers of an engine over several nodes: told apart from children only by how they are reached. No Ray here."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import psutil
import pytest

from serve_app.engine.child import ProcessReport
from serve_app.engine.gang import OWNER_VARIABLE, Gang, serve_owner
from serve_app.engine.watchdog import EngineActivity

OWN = EngineActivity({1: 1.0}, {}, 0.25)
WORKER = """
import logging, sys
from serve_app.engine.gang import serve_owner
serve_owner()
serve_owner()  # vLLM loads its plugins more than once
vllm = logging.getLogger("vllm")
vllm.setLevel(logging.INFO)
print("on", flush=True)
for line in sys.stdin:
    match line.strip():
        case "log": vllm.info("Starting to load model x...")
        case "err": vllm.error("it broke")
        case "spin":
            while True: pass
"""


@dataclass
class GangOwner:
    """A gang with what its workers said, and a worker to order about."""

    gang: Gang
    said: asyncio.Queue[ProcessReport]
    workers: list[asyncio.subprocess.Process] = field(default_factory=list)

    async def start(self) -> asyncio.subprocess.Process:
        pipes = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
        worker = await asyncio.create_subprocess_exec(sys.executable, "-c", WORKER, **pipes)  # type: ignore[arg-type]
        self.workers.append(worker)
        return worker

    async def hire(self) -> asyncio.subprocess.Process:
        """Returns when it has called on its owner."""
        worker = await self.start()
        assert worker.stdout is not None
        assert await worker.stdout.readline() == b"on\n"
        return worker

    async def seen(self, workers: int) -> EngineActivity:
        """Its activity as soon as all of so many workers have answered."""
        while (activity := self.gang.activity(OWN, workers)).unseen_workers:  # noqa: ASYNC110  # the watchdog polls, too
            await asyncio.sleep(0)
        return activity


def order(worker: asyncio.subprocess.Process, what: str) -> None:
    assert worker.stdin is not None
    worker.stdin.write(f"{what}\n".encode())


@pytest.fixture
async def owner() -> AsyncIterator[GangOwner]:
    said: asyncio.Queue[ProcessReport] = asyncio.Queue()
    found = GangOwner(Gang(said.put_nowait), said)
    await found.gang.open("127.0.0.1")
    yield found
    found.gang.close()
    for worker in found.workers:
        with contextlib.suppress(ProcessLookupError):
            worker.kill()
        await worker.wait()


async def test_a_worker_tells_its_milestones_and_errors(owner: GangOwner) -> None:
    worker = await owner.hire()
    order(worker, "log")
    assert await owner.said.get() == ProcessReport("loading weights", error=False)
    order(worker, "err")
    assert await owner.said.get() == ProcessReport("it broke", error=True)


async def test_what_workers_do_is_seen_and_told_apart(owner: GangOwner) -> None:
    first, _ = await owner.hire(), await owner.hire()
    before = await owner.seen(2)
    assert len(before.cpu_s) == 3, "ours, and a main thread of each: the one that looks is left out"
    assert before.cpu_s[1] == 1.0
    assert before.gpu_busy_ratio == 0.25
    order(first, "spin")
    moved_s = 0.0
    while moved_s < 0.05:
        now = await owner.seen(2)
        moved_s = max(now.cpu_s[key] - cpu_s for key, cpu_s in before.cpu_s.items())
        await asyncio.sleep(0)


async def test_a_worker_that_does_not_answer_is_unseen_and_not_still(owner: GangOwner) -> None:
    assert owner.gang.activity(OWN, 2) == EngineActivity({1: 1.0}, {}, 0.25, unseen_workers=2)
    worker = await owner.hire()
    await owner.seen(1)
    psutil.Process(worker.pid).kill()
    while not owner.gang.activity(OWN, 1).unseen_workers:  # noqa: ASYNC110  # the watchdog polls, too
        await asyncio.sleep(0)


async def test_a_worker_ends_with_its_owner_whatever_it_is_doing(owner: GangOwner) -> None:
    idle, busy = await owner.hire(), await owner.hire()
    order(busy, "spin")
    await owner.seen(2)
    owner.gang.close()
    assert [await worker.wait() for worker in (idle, busy)] == [-9, -9]


async def test_a_stranger_is_turned_away(owner: GangOwner) -> None:
    address = os.environ[OWNER_VARIABLE]
    os.environ[OWNER_VARIABLE] = address.replace(owner.gang._secret, "0" * 32)
    worker = await owner.start()
    os.environ[OWNER_VARIABLE] = address
    assert await worker.wait() == -9
    assert owner.gang.activity(OWN, 1).unseen_workers == 1


async def test_the_owner_is_no_worker_of_its_own(owner: GangOwner) -> None:
    serve_owner()
    assert owner.gang.activity(OWN, 1).unseen_workers == 1


async def test_a_worker_that_cannot_reach_its_owner_works_on(owner: GangOwner) -> None:
    """A firewall between the nodes; the address is closed here."""
    address = os.environ[OWNER_VARIABLE]
    owner.gang.close()
    os.environ[OWNER_VARIABLE] = address
    worker = await owner.hire()
    del os.environ[OWNER_VARIABLE]
    assert worker.returncode is None


async def test_an_address_that_is_not_this_nodes_keeps_no_engine_from_starting() -> None:
    gang = Gang(lambda _report: None)
    await gang.open("192.0.2.1")  # of nobody: RFC 5737
    assert OWNER_VARIABLE not in os.environ
    assert gang.activity(OWN, 2).unseen_workers == 2
    gang.close()
