"""Faults on this node and, through the Ray agent, on other nodes; what happens when a process cannot be reached."""

from __future__ import annotations

import asyncio
import io
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence

import msgspec
import psutil
import pytest
from ray.exceptions import RayError

from chaos import procs
from chaos.fault_target import FaultInjector, FaultTarget, TargetProcesses, TargetUnreachable, find_ray
from chaos.fleet import Fleet, Replica
from chaos.options import Fault
from chaos.procs import AgentReply, AgentRequest, NoEngineProcess, UnfinishedRequests
from chaos.ray_agent import answer_requests, unfinished_requests
from serve_app.protocol.messages import WIRE_VERSION, ReplicaInfo, ReplicaLoad
from tests.unit.chaos_examples import sleeping_process, until

AGENT = """
import sys
print("a library's message", flush=True)
for line, reply in zip(sys.stdin, sys.argv[1].split(";")):
    print(reply, flush=True)
"""


def agent(*replies: AgentReply) -> Sequence[str]:
    """A command that writes these replies, one for each request, and then ends."""
    return (sys.executable, "-c", AGENT, ";".join(msgspec.json.encode(reply).decode() for reply in replies))


def replica(pid: int, *, node_ip: str = "127.0.0.1") -> Replica:
    return Replica("r1", "engine", "RUNNING", pid, "n1", node_ip, "a1")


REMOTE = replica(7, node_ip="192.0.2.9")


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with sleeping_process() as child:
        yield child


async def test_a_local_replica_that_has_ended_is_unreachable(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    async with FaultTarget("", "step") as target:
        with pytest.raises(TargetUnreachable, match="as the user that Ray runs as"):
            await target.processes("kill", replica(process.pid))


async def test_without_rays_address_a_replica_of_another_node_is_unreachable() -> None:
    async with FaultTarget("", "step") as target:
        with pytest.raises(TargetUnreachable, match="--ray-address"):
            await target.processes("kill", REMOTE)
        with pytest.raises(TargetUnreachable, match="--ray-address"):
            await target.unfinished_requests()


async def test_an_agent_that_ends_could_not_connect_to_ray() -> None:
    async with FaultTarget("192.0.2.9:6379", "step", (sys.executable, "-c", "")) as target:
        with pytest.raises(TargetUnreachable, match=r"cannot connect to Ray at 192\.0\.2\.9:6379"):
            await target.unfinished_requests()


async def test_processes_of_another_node_are_found_and_signalled_by_the_agent() -> None:
    found = procs.Proc(7, 1.0)
    async with FaultTarget("x", "step", agent(AgentReply(procs=[found]), AgentReply(count=1), AgentReply())) as target:
        processes = await target.processes("kill", REMOTE)
        assert processes == TargetProcesses(REMOTE, (found,))
        assert await target.send(processes, signal.SIGKILL) == 1
        await target.slow(processes, 0.1)


async def test_an_agents_error_and_a_missing_engine_process_are_raised() -> None:
    async with FaultTarget("x", "step", agent(AgentReply(error="gone"), AgentReply(no_engine_process=True))) as target:
        with pytest.raises(TargetUnreachable, match="gone"):
            await target.processes("kill", REMOTE)
        with pytest.raises(NoEngineProcess):
            await target.processes("hang", REMOTE)


async def test_requests_to_the_agent_wait_for_each_other() -> None:
    counts = [UnfinishedRequests("r1", count) for count in range(3)]
    replies = [AgentReply(unfinished_requests=[count]) for count in counts]
    async with FaultTarget("x", "step", agent(*replies)) as target:
        found = await asyncio.gather(*(target.unfinished_requests() for _ in counts))
    assert sorted(one.unfinished for (one,) in found) == [0, 1, 2]


async def test_a_stopped_replica_is_killed_when_the_fault_ends(process: subprocess.Popen[bytes]) -> None:
    async with FaultTarget("", "step") as target, FaultInjector(target, slow_s=1.0) as injector:
        processes = await target.processes("cut", replica(process.pid))
        await injector.inject(Fault.CUT, processes)
        until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
        await injector.end_faults()
        assert process.wait() == -signal.SIGKILL
        with pytest.raises(TargetUnreachable, match="ended before the fault"):
            await injector.inject(Fault.KILL, processes)


def test_rays_address_is_the_given_one_or_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = Fleet((REMOTE,), {})
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert find_ray("10.0.0.1:6379", fleet) == "10.0.0.1:6379"
    assert find_ray(None, fleet) == ""
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.2:6379")
    assert find_ray(None, fleet) == "10.0.0.2:6379"


# ---- the agent's side ------------------------------------------------------------------------------------------------


def replies_to(*requests: AgentRequest) -> list[AgentReply]:
    def execute(request: AgentRequest) -> AgentReply:
        if request.do == "signal":
            raise RayError("no such node")
        return procs.execute(request)

    written = io.StringIO()
    answer_requests([msgspec.json.encode(request) + b"\n" for request in requests], written, execute)
    return [msgspec.json.decode(line, type=AgentReply) for line in written.getvalue().splitlines()]


def test_the_agent_replies_to_each_request_and_goes_on_after_an_error(process: subprocess.Popen[bytes]) -> None:
    find = AgentRequest("find", pid=process.pid, fault="kill")
    found, failed, again = replies_to(find, AgentRequest("signal"), find)
    assert [proc.pid for proc in found.procs] == [process.pid]
    assert failed.error == "RayError: no such node"
    assert again == found


class Answers:
    """In place of a handle on the engine deployment, and of what its broadcast returns."""

    def __init__(self, *answers: bytes | Exception) -> None:
        self._answers = answers

    def broadcast(self, method: str) -> Answers:
        assert method == "info"
        return self

    def results(self, **_: object) -> Sequence[bytes | Exception]:
        return self._answers


def test_the_agent_reports_unfinished_requests_and_replicas_that_do_not_answer() -> None:
    load = ReplicaLoad(unfinished=3, max_num_seqs=8, kv_usage_ratio=0.0, draining=False)
    info = msgspec.msgpack.encode(ReplicaInfo(WIRE_VERSION, "r1", load))
    reply = unfinished_requests(Answers(info, TimeoutError()))  # type: ignore[arg-type]
    assert reply.unfinished_requests == [UnfinishedRequests("r1", load.unfinished)]
    assert reply.error == "1 of 2 replicas do not answer"
    assert unfinished_requests(Answers(info)).error == ""  # type: ignore[arg-type]
