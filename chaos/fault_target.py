"""Finds the processes of a replica, injects one fault into them, and ends the fault.

Processes of this node are signalled directly, those of other nodes through `ray_agent.py`. Requests to the agent are
sent one at a time, with a deadline. Without Ray's address or token, faults on this node still work, and the report
says what is unavailable.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import msgspec
import psutil

from chaos import procs
from chaos.fleet import Fleet, Replica
from chaos.options import Fault, own_addresses
from chaos.procs import AgentReply, AgentRequest, NoEngineProcess, Proc, UnfinishedRequests
from serve_app.cli import serve_api

AGENT = (sys.executable, "-m", "chaos.ray_agent")
REPLY_S = 90.0
"""Starting Ray's client, and a worker on another node, takes tens of seconds on a busy machine."""

SIGNALS = {
    Fault.KILL: signal.SIGKILL,
    Fault.KILL_ENGINE: signal.SIGKILL,
    Fault.HANG: signal.SIGSTOP,
    Fault.CUT: signal.SIGSTOP,
}


class TargetUnreachable(Exception):
    """A process cannot be found or signalled. The message says what to do."""


@dataclass(frozen=True)
class TargetProcesses:
    """The processes of a replica that a fault is for."""

    replica: Replica
    procs: tuple[Proc, ...]


class FaultTarget:
    """Access to the replicas' processes. Use as an async context manager; leaving it ends `ray_agent.py`."""

    def __init__(self, ray_address: str, application: str, agent: Sequence[str] = AGENT) -> None:
        self._address = ray_address
        self._command = (*agent, ray_address, application)
        self._own_addresses = own_addresses()
        self._agent: asyncio.subprocess.Process | None = None
        self._agent_lock = asyncio.Lock()
        self._end_slow = threading.Event()

    async def __aenter__(self) -> Self:
        env = dict(os.environ)
        if serve_api.auth_token() is not None:
            env.setdefault("RAY_AUTH_MODE", "token")
        if self._address:
            self._agent = await asyncio.create_subprocess_exec(
                *self._command,
                env=env,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C must not end it
            )
        return self

    async def __aexit__(self, *_: object) -> None:
        self._end_slow.set()
        if self._agent is not None and self._agent.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._agent.kill()
            await self._agent.wait()

    async def processes(self, fault: str, replica: Replica) -> TargetProcesses:
        """Find the processes. Raises `NoEngineProcess`, `TargetUnreachable`."""
        if not self._is_local(replica):
            reply = await self._request(AgentRequest("find", node_id=replica.node_id, pid=replica.pid, fault=fault))
            if reply.no_engine_process:
                raise NoEngineProcess
            return TargetProcesses(replica, tuple(reply.procs))
        try:
            return TargetProcesses(replica, tuple(await asyncio.to_thread(procs.find, replica.pid, fault)))
        except psutil.Error as error:
            raise TargetUnreachable(
                f"replica {replica.replica_id}: {error}. Run this as the user that Ray runs as"
            ) from error

    async def send(self, processes: TargetProcesses, number: signal.Signals) -> int:
        """Signal the processes; returns how many were still alive. Raises `TargetUnreachable`."""
        if not self._is_local(processes.replica):
            node_id = processes.replica.node_id
            request = AgentRequest("signal", node_id=node_id, procs=list(processes.procs), signal=number)
            return (await self._request(request)).count
        try:
            return procs.send(processes.procs, number)
        except psutil.AccessDenied as error:
            raise TargetUnreachable(f"{error}. Run this as the user that Ray runs as") from error

    async def slow(self, processes: TargetProcesses, for_s: float) -> None:
        """Slow the processes down for `for_s`. Raises `TargetUnreachable`."""
        if not self._is_local(processes.replica):
            node_id = processes.replica.node_id
            await self._request(AgentRequest("slow", node_id=node_id, procs=list(processes.procs), for_s=for_s), for_s)
            return
        await asyncio.to_thread(procs.slow, processes.procs, for_s, self._end_slow)

    async def unfinished_requests(self) -> Sequence[UnfinishedRequests]:
        """How many requests every engine replica holds. Raises `TargetUnreachable`."""
        return (await self._request(AgentRequest("unfinished"))).unfinished_requests

    async def drain(self, node_id: str, deadline_s: float) -> None:
        """Have Ray drain a node, which goes in `deadline_s`. Raises `TargetUnreachable`."""
        await self._request(AgentRequest("drain", node_id=node_id, for_s=deadline_s))

    def _is_local(self, replica: Replica) -> bool:
        return replica.node_ip in self._own_addresses

    async def _request(self, request: AgentRequest, for_s: float = 0.0) -> AgentReply:
        agent = self._agent
        if agent is None or agent.stdin is None or agent.stdout is None:
            raise TargetUnreachable("Ray's address is not known: give --ray-address HOST:6379")
        async with self._agent_lock:
            try:
                async with asyncio.timeout(REPLY_S + for_s):
                    agent.stdin.write(msgspec.json.encode(request) + b"\n")
                    await agent.stdin.drain()
                    line = await agent.stdout.readline()
                    while line and not line.startswith(b"{"):  # a library may print to stdout
                        line = await agent.stdout.readline()
            except (TimeoutError, ConnectionError) as error:
                raise TargetUnreachable(f"Ray at {self._address} does not answer") from error
        if not line:
            raise TargetUnreachable(
                f"cannot connect to Ray at {self._address}: check the address and the token (docs/operations.md)"
            )
        reply = msgspec.json.decode(line, type=AgentReply)
        if reply.error:
            raise TargetUnreachable(reply.error)
        return reply


class FaultInjector:
    """Injects faults. Use as an async context manager: leaving it ends all faults.

    A replica that was stopped is killed when its round is over (Serve has often killed it by then). One that was slowed
    down runs on.
    """

    def __init__(self, target: FaultTarget, slow_s: float) -> None:
        self._target = target
        self._slow_s = slow_s
        self._stopped: list[tuple[Fault, TargetProcesses]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.shield(self.end_faults())

    async def inject(self, fault: Fault, processes: TargetProcesses) -> None:
        """Inject a fault. `SLOW` returns when it is over, the others at once. Raises `TargetUnreachable`."""
        if fault is Fault.SLOW:
            self._stopped.append((fault, processes))
            await self._target.slow(processes, self._slow_s)
            return
        number = SIGNALS[fault]
        if number is signal.SIGSTOP:
            self._stopped.append((fault, processes))
        if not await self._target.send(processes, number):
            raise TargetUnreachable(f"replica {processes.replica.replica_id} ended before the fault")

    async def end_faults(self) -> None:
        """Kill what was stopped, resume what was slowed down."""
        while self._stopped:
            fault, processes = self._stopped.pop()
            # An unreachable process has ended, perhaps with its node: it is not stopped any more.
            with contextlib.suppress(TargetUnreachable):
                await self._target.send(processes, signal.SIGCONT if fault is Fault.SLOW else signal.SIGKILL)


def find_ray(given: str | None, fleet: Fleet) -> str:
    """The address of Ray's GCS: as given, from a local replica, or RAY_ADDRESS. Empty if unknown.

    Another Ray may run on this machine, so it is not searched for one.
    """
    here = own_addresses()
    pids = [replica.pid for replica in fleet.replicas if replica.pid and replica.node_ip in here]
    return given or procs.gcs_address(pids) or os.environ.get("RAY_ADDRESS", "")
