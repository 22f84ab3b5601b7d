"""The way to a replica's processes: by ourselves on this node, through `ray_agent.py` on any other.

What is asked of `ray_agent.py` is asked in turn, with a deadline; where it cannot be had (no Ray address, no token),
all that this machine's own processes need still works, and the report says what it could not see.
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
from chaos.agent_protocol import AgentReply, AgentRequest, UnfinishedRequests
from chaos.fleet import Fleet, Replica
from chaos.options import own_addresses
from chaos.procs import NoEngineProcess, Proc
from serve_app.cli import serve_api

REPLY_S = 90.0
"""Starting Ray's client and a worker on a far node takes tens of seconds on a busy machine."""


class TargetUnreachable(Exception):
    """A process cannot be found or signalled. The message says what to do."""


@dataclass(frozen=True)
class TargetProcesses:
    """The processes of a replica that a fault is for."""

    replica: Replica
    procs: tuple[Proc, ...]


class FaultTarget:
    """Use as an async context manager; leaving it ends `ray_agent.py`."""

    def __init__(self, ray_address: str, application: str) -> None:
        self._address = ray_address
        self._application = application
        self._here = own_addresses()
        self._agent: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._end_slow = threading.Event()

    async def __aenter__(self) -> Self:
        env = dict(os.environ)
        if serve_api.auth_token() is not None:
            env.setdefault("RAY_AUTH_MODE", "token")
        if self._address:
            self._agent = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "chaos.ray_agent", self._address, self._application),
                env=env,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is ours to act on
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
        if not self._is_here(replica):
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
        """Signal them; returns how many there still were."""
        if not self._is_here(processes.replica):
            node_id = processes.replica.node_id
            return (
                await self._request(AgentRequest("signal", node_id=node_id, procs=list(processes.procs), signal=number))
            ).count
        try:
            return procs.send(processes.procs, number)
        except psutil.AccessDenied as error:
            raise TargetUnreachable(f"{error}. Run this as the user that Ray runs as") from error

    async def slow(self, processes: TargetProcesses, for_s: float) -> None:
        """Slow them down for so long."""
        if not self._is_here(processes.replica):
            node_id = processes.replica.node_id
            await self._request(AgentRequest("slow", node_id=node_id, procs=list(processes.procs), for_s=for_s), for_s)
            return
        await asyncio.to_thread(procs.slow, processes.procs, for_s, self._end_slow)

    async def unfinished_requests(self) -> Sequence[UnfinishedRequests]:
        """What every engine replica has to do. Raises `TargetUnreachable`."""
        return (await self._request(AgentRequest("loads"))).unfinished_requests

    def _is_here(self, replica: Replica) -> bool:
        return replica.node_ip in self._here

    async def _request(self, request: AgentRequest, for_s: float = 0.0) -> AgentReply:
        agent = self._agent
        if agent is None or agent.stdin is None or agent.stdout is None:
            raise TargetUnreachable("Ray's address is not known: give --ray-address HOST:6379")
        async with self._turn:
            try:
                async with asyncio.timeout(REPLY_S + for_s):
                    agent.stdin.write(msgspec.json.encode(request) + b"\n")
                    await agent.stdin.drain()
                    line = await agent.stdout.readline()
                    while line and not line.startswith(b"{"):  # what a library prints
                        line = await agent.stdout.readline()
            except (TimeoutError, ConnectionError) as error:
                raise TargetUnreachable(f"Ray at {self._address} does not answer") from error
        if not line:
            raise TargetUnreachable(
                f"cannot join Ray at {self._address}: is it right, and the token (docs/operations.md)?"
            )
        reply = msgspec.json.decode(line, type=AgentReply)
        if reply.error:
            raise TargetUnreachable(reply.error)
        return reply


def find_ray(given: str | None, fleet: Fleet) -> str:
    """The address of Ray's GCS, empty if it cannot be told: as given, by a replica on this node, or from RAY_ADDRESS.

    Not whatever Ray runs on this machine: it may be another one.
    """
    here = own_addresses()
    pids = [one.pid for one in fleet.replicas if one.pid and one.node_ip in here]
    return given or procs.gcs_address(pids) or os.environ.get("RAY_ADDRESS", "")
