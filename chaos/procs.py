"""Signals to a replica's processes on the node where this runs, and the requests that ask for them from elsewhere.

`ray_agent.py` runs `execute` on other nodes. A process is identified by its pid and its start time: pids are reused,
and Serve replaces a lost replica at once. Imports only psutil and msgspec, so that it runs on any node.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Sequence
from typing import Literal

import msgspec
import psutil

SLICE_S = 0.1
STOPPED_SHARE = 0.9
"""`slow` leaves a tenth of the speed, in slices too short to be taken for a hang."""

ENGINE_CORE = "::EngineCore"
"""In the title that vLLM gives its engine core (`VLLM::EngineCore`, `VLLM::EngineCore_DP0`)."""

GCS_FLAG = "--gcs-address="
"""The raylet's flag with the address of the cluster's head."""


class NoEngineProcess(Exception):
    """The engine has no process of its own: it is the fake engine, or it is not running."""


class Proc(msgspec.Struct, frozen=True):
    """A process, distinct from any later one with its pid."""

    pid: int
    started_s: float


class AgentRequest(msgspec.Struct, frozen=True):
    """`find` the processes that a fault is for; `signal` or `slow` them; list the replicas' `unfinished` requests;
    `drain` a node, which goes in `for_s`."""

    do: Literal["find", "signal", "slow", "unfinished", "drain"]
    node_id: str = ""
    pid: int = 0
    fault: str = ""
    procs: list[Proc] = []
    signal: int = 0
    for_s: float = 0.0


class UnfinishedRequests(msgspec.Struct, frozen=True):
    """How many requests one replica holds."""

    replica_id: str
    unfinished: int


class AgentReply(msgspec.Struct, frozen=True):
    """The result of an `AgentRequest`. `error` is empty if it succeeded."""

    error: str = ""
    no_engine_process: bool = False
    procs: list[Proc] = []
    count: int = 0
    unfinished_requests: list[UnfinishedRequests] = []


def execute(request: AgentRequest) -> AgentReply:
    """Execute `find`, `signal` or `slow` on this node."""
    try:
        if request.do == "find":
            return AgentReply(procs=find(request.pid, request.fault))
        if request.do == "slow":
            slow(request.procs, request.for_s, threading.Event())
            return AgentReply()
        return AgentReply(count=send(request.procs, request.signal))
    except NoEngineProcess:
        return AgentReply(no_engine_process=True)
    except psutil.Error as error:
        return AgentReply(error=str(error))


def find(pid: int, fault: str) -> list[Proc]:
    """The processes that a fault (`options.Fault`) is for. Raises `NoEngineProcess`, `psutil.Error`."""
    replica = psutil.Process(pid)
    if fault in ("kill", "cut"):
        return [_proc(replica)]
    cores = [child for child in replica.children(recursive=True) if is_engine_core(child)]
    if not cores and fault == "slow":
        return [_proc(replica)]
    if not cores:
        raise NoEngineProcess
    if fault == "kill-engine":
        return [_proc(core) for core in cores]
    return [_proc(process) for core in cores for process in (core, *core.children(recursive=True))]


def is_engine_core(process: psutil.Process) -> bool:
    """Whether this is vLLM's engine core."""
    with contextlib.suppress(psutil.Error):
        words = process.cmdline()
        return bool(words) and ENGINE_CORE in words[0]
    return False


def _proc(process: psutil.Process) -> Proc:
    return Proc(process.pid, process.create_time())


def send(procs: Sequence[Proc], number: int) -> int:
    """Send a signal to the processes that are still alive; returns how many."""
    sent = 0
    for proc in procs:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(proc.pid)
            if process.create_time() == proc.started_s and process.status() != psutil.STATUS_ZOMBIE:
                process.send_signal(signal.Signals(number))
                sent += 1
    return sent


def slow(procs: Sequence[Proc], for_s: float, stop: threading.Event) -> None:
    """Stop the processes nine tenths of the time, for `for_s` or until `stop` is set. They run afterwards."""
    try:
        for _ in range(round(for_s / SLICE_S)):
            if not send(procs, signal.SIGSTOP) or stop.wait(SLICE_S * STOPPED_SHARE):
                return
            send(procs, signal.SIGCONT)
            if stop.wait(SLICE_S * (1 - STOPPED_SHARE)):
                return
    finally:
        send(procs, signal.SIGCONT)


def gcs_address(pids: Sequence[int]) -> str | None:
    """The address of Ray's GCS, from the command line of the raylet that started one of these processes."""
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            for parent in psutil.Process(pid).parents():
                for word in parent.cmdline():
                    if word.startswith(GCS_FLAG):
                        return str(word.removeprefix(GCS_FLAG))
    return None
