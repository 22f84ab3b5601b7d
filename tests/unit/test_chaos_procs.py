"""Signals to local processes, and the requests that ask for them."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import psutil
import pytest

from chaos import procs
from chaos.procs import AgentReply, AgentRequest
from tests.unit.chaos_examples import sleeping_process, until


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with sleeping_process() as child:
        yield child


def is_now(child: subprocess.Popen[bytes], status: str) -> bool:
    return bool(psutil.Process(child.pid).status() == status)


def test_a_process_is_signalled_only_if_pid_and_start_time_match(process: subprocess.Popen[bytes]) -> None:
    (found,) = procs.find(process.pid, "cut")
    assert procs.send([found], signal.SIGSTOP) == 1
    until(lambda: is_now(process, psutil.STATUS_STOPPED))
    assert procs.send([procs.Proc(found.pid, found.started_s - 100)], signal.SIGKILL) == 0
    assert procs.send([found], signal.SIGKILL) == 1
    assert process.wait() == -signal.SIGKILL
    assert procs.send([found], signal.SIGKILL) == 0


@pytest.mark.parametrize("fault", ["hang", "kill-engine"])
def test_an_engine_without_its_own_process_is_reported(process: subprocess.Popen[bytes], fault: str) -> None:
    with pytest.raises(procs.NoEngineProcess):
        procs.find(process.pid, fault)
    assert procs.find(process.pid, "slow")[0].pid == process.pid


def test_the_engine_core_is_found_by_its_title() -> None:
    with subprocess.Popen(["sh", "-c", 'exec -a "VLLM::EngineCore" sleep 60 & wait'], executable="/bin/bash") as parent:
        until(lambda: any(procs.is_engine_core(child) for child in psutil.Process(parent.pid).children()))
        (core,) = procs.find(parent.pid, "kill-engine")
        assert core.pid != parent.pid
        assert procs.send([core], signal.SIGKILL) == 1


def test_ray_is_found_by_the_raylet_that_started_a_replica() -> None:
    raylet = ["-c", "import subprocess; subprocess.run(['sleep', '60'])", "--gcs-address=10.0.0.1:6379"]
    with subprocess.Popen([sys.executable, *raylet]) as parent:
        until(lambda: len(psutil.Process(parent.pid).children()) == 1)
        (replica,) = psutil.Process(parent.pid).children()
        assert procs.gcs_address([replica.pid]) == "10.0.0.1:6379"
        replica.kill()


def test_a_slowed_process_runs_again_when_stopped_early(process: subprocess.Popen[bytes]) -> None:
    stop = threading.Event()
    slowing = threading.Thread(target=procs.slow, args=(procs.find(process.pid, "slow"), 60.0, stop))
    slowing.start()
    until(lambda: is_now(process, psutil.STATUS_STOPPED))
    stop.set()
    slowing.join(timeout=5)
    until(lambda: not is_now(process, psutil.STATUS_STOPPED))


def test_a_request_to_find_and_signal_is_executed(process: subprocess.Popen[bytes]) -> None:
    found = procs.execute(AgentRequest("find", pid=process.pid, fault="kill"))
    assert [proc.pid for proc in found.procs] == [process.pid]
    assert procs.execute(AgentRequest("signal", procs=found.procs, signal=signal.SIGKILL)) == AgentReply(count=1)
    assert process.wait() == -signal.SIGKILL


def test_a_request_to_slow_returns_when_the_process_runs_again(process: subprocess.Popen[bytes]) -> None:
    found = procs.find(process.pid, "slow")
    assert procs.execute(AgentRequest("slow", procs=found, for_s=0.1)) == AgentReply()
    until(lambda: not is_now(process, psutil.STATUS_STOPPED))


def test_a_request_that_cannot_be_executed_is_answered_with_the_reason(process: subprocess.Popen[bytes]) -> None:
    assert procs.execute(AgentRequest("find", pid=process.pid, fault="hang")).no_engine_process
    process.kill()
    process.wait()
    assert str(process.pid) in procs.execute(AgentRequest("find", pid=process.pid, fault="kill")).error
