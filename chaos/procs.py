"""Signals to the processes of a replica on this machine. Run here, or by `ray_agent.py` on the node where they are.

A process is known by its number and its time of birth: numbers are used again, and a replica that just died is replaced
at once. Imports nothing but psutil, so that it runs on any node.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Sequence

import msgspec
import psutil

SLICE_S = 0.1
STOPPED_SHARE = 0.9
"""`slow`: a tenth of the speed, in slices shorter than what anyone takes for a hang."""

ENGINE_CORE = "::EngineCore"
"""In the title that vLLM gives its engine core (`VLLM::EngineCore`, `VLLM::EngineCore_DP0`)."""

GCS_FLAG = "--gcs-address="
"""How a raylet is told where the cluster's head is."""


class NoEngineProcess(Exception):
    """The replica's engine is no process of its own: it is the fake one, or not there (yet)."""


class Proc(msgspec.Struct, frozen=True):
    """A process that cannot be mistaken for a later one with its number."""

    pid: int
    started_s: float


def find(pid: int, fault: str) -> list[Proc]:
    """The processes that a fault (`options.Fault`) is for. Raises `NoEngineProcess`, `psutil.Error`."""
    replica = psutil.Process(pid)
    if fault in ("kill", "cut"):
        return [_proc(replica)]
    cores = [child for child in replica.children(recursive=True) if _is_core(child)]
    if not cores and fault == "slow":
        return [_proc(replica)]
    if not cores:
        raise NoEngineProcess
    if fault == "kill-engine":
        return [_proc(core) for core in cores]
    return [_proc(one) for core in cores for one in (core, *core.children(recursive=True))]


def _is_core(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        words = process.cmdline()
        return bool(words) and ENGINE_CORE in words[0]
    return False


def _proc(process: psutil.Process) -> Proc:
    return Proc(process.pid, process.create_time())


def send(procs: Sequence[Proc], number: int) -> int:
    """Send a signal to those that still live; returns to how many."""
    sent = 0
    for proc in procs:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(proc.pid)
            if process.create_time() == proc.started_s and process.status() != psutil.STATUS_ZOMBIE:
                process.send_signal(signal.Signals(number))
                sent += 1
    return sent


def slow(procs: Sequence[Proc], for_s: float, stop: threading.Event) -> None:
    """Stop the processes most of the time, for a while or until told to end. Leaves them running."""
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
