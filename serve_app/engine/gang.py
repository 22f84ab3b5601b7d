"""The connection between an engine's workers on several nodes and their replica: the workers are Ray actors, in no
process table of the replica's own.

Each worker keeps a TCP connection to the replica. Over it the replica gets milestones and errors, and asks what the
worker's processes have done when a step is overdue. When it ends, the worker knows that its owner is gone, and ends
too. vLLM passes the address on: its Ray executor gives the workers the environment of the engine core.

A message is its length (4 bytes) and msgpack; the owner's only message is a single byte, `ASK`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import itertools
import logging
import os
import secrets
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final

import msgspec
import psutil

from serve_app.engine import activity
from serve_app.engine.child import ProcessReport, report_of
from serve_app.engine.watchdog import EngineActivity

logger = logging.getLogger(__name__)

OWNER_VARIABLE: Final = "STEP_SERVE_GANG_OWNER"
"""Environment variable with an `GangOwner`, as JSON."""

ASK: Final = b"?"
LONGEST_MESSAGE: Final = 1 << 20
"""A hundred processes take 3 KB. A longer message is from something else."""
CONNECT_S: Final = 10.0
SEND_S: Final = 1
"""Longest that a progress message may delay a worker."""

FRESH_S: Final = 5.0
"""An older answer does not describe the present. The watchdog asks twice a second."""

SILENCE_S: Final = (10, 5, 4)
"""TCP's keep-alive: idle seconds, seconds between probes, probes. The loss of a node is noticed after half a minute."""


class GangOwner(msgspec.Struct, frozen=True):
    """Where the replica listens, and which process it is: `started_s` tells it from another node's of the same id."""

    host: str
    port: int
    secret: str
    pid: int
    started_s: float


class WorkerHandshake(msgspec.Struct, array_like=True, tag=True):
    """A worker's first message."""

    secret: str


class WorkerReport(msgspec.Struct, array_like=True, tag=True):
    """A milestone or an error from a worker."""

    report: ProcessReport


class WorkerActivity(msgspec.Struct, array_like=True, tag=True):
    """What a worker's threads and compilers have done, as in `EngineActivity`."""

    cpu_s: dict[int, float]
    compiler_cpu_s: dict[int, float]
    gpu_busy_ratio: float | None


class Gang:
    """The owner's side. `receive` gets the workers' reports."""

    def __init__(self, receive: Callable[[ProcessReport], None]) -> None:
        self._receive = receive
        self._secret = secrets.token_hex(16)
        self._server: asyncio.Server | None = None
        self._workers: dict[int, asyncio.StreamWriter] = {}
        self._doing: dict[int, tuple[float, WorkerActivity]] = {}
        self._asked: set[int] = set()
        self._numbers = itertools.count(1)

    async def open(self, host: str) -> None:
        """Listen on that host, and put the address into the environment of processes started from now on.

        Where that is not possible the workers stay unseen: the engine starts all the same.
        """
        try:
            self._server = await asyncio.start_server(self._take, host, 0)
        except OSError as error:
            logger.warning("cannot listen to the engine's workers", extra={"host": host, "error": str(error)})
            return
        me = psutil.Process()
        port = self._server.sockets[0].getsockname()[1]
        owner = GangOwner(host, port, self._secret, me.pid, me.create_time())
        os.environ[OWNER_VARIABLE] = msgspec.json.encode(owner).decode()

    def close(self) -> None:
        """Close the connections to the workers, which then end. May be called twice."""
        os.environ.pop(OWNER_VARIABLE, None)
        if self._server is not None:
            self._server.close()
        for worker in self._workers.values():
            worker.transport.abort()

    def activity(self, own: EngineActivity, workers: int) -> EngineActivity:
        """`own` (the processes on this node) with the latest answers of this many workers. Asks them again."""
        oldest_s = time.monotonic() - FRESH_S
        fresh = {number: doing for number, (heard_s, doing) in self._doing.items() if heard_s >= oldest_s}
        for number, worker in self._workers.items():
            if number not in self._asked:
                self._asked.add(number)
                worker.write(ASK)
        ratios = [own.gpu_busy_ratio, *(doing.gpu_busy_ratio for doing in fresh.values())]
        return EngineActivity(
            {**own.cpu_s, **_apart({number: doing.cpu_s for number, doing in fresh.items()})},
            {**own.compiler_cpu_s, **_apart({number: doing.compiler_cpu_s for number, doing in fresh.items()})},
            max((ratio for ratio in ratios if ratio is not None), default=None),
            unseen_workers=max(0, workers - len(fresh)),
        )

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = next(self._numbers)
        _keep_alive(writer.get_extra_info("socket"))
        try:
            async with asyncio.timeout(CONNECT_S):
                opening = await _read(reader)
            if not isinstance(opening, WorkerHandshake) or not hmac.compare_digest(opening.secret, self._secret):
                return
            self._workers[number] = writer
            while True:
                message = await _read(reader)
                if isinstance(message, WorkerReport):
                    self._receive(message.report)
                elif isinstance(message, WorkerActivity):
                    self._doing[number] = (time.monotonic(), message)
                    self._asked.discard(number)
        except (OSError, EOFError, TimeoutError, msgspec.MsgspecError) as error:
            logger.debug("a worker's connection ended", extra={"error": str(error)})
        finally:
            self._workers.pop(number, None)
            self._doing.pop(number, None)
            self._asked.discard(number)
            writer.transport.abort()


async def _read(reader: asyncio.StreamReader) -> WorkerHandshake | WorkerReport | WorkerActivity:
    size = int.from_bytes(await reader.readexactly(4), "big")
    if size > LONGEST_MESSAGE:
        raise OSError("no message of a worker")
    return msgspec.msgpack.decode(await reader.readexactly(size), type=WorkerHandshake | WorkerReport | WorkerActivity)


def _apart(of_workers: Mapping[int, Mapping[int, float]]) -> dict[int, float]:
    """One mapping for all workers: ids on different nodes may be equal, so each worker has a range of its own."""
    return {number << 32 | item: cpu_s for number, items in of_workers.items() for item, cpu_s in items.items()}


# ---- the worker's side -----------------------------------------------------------------------------------------------


def serve_owner() -> None:
    """In a worker: report to the owner, answer it, and end with it. Does nothing elsewhere, or when called again."""
    name = os.environ.get(OWNER_VARIABLE)
    if not name or any(isinstance(thread, _Worker) for thread in threading.enumerate()):
        return
    owner = msgspec.json.decode(name, type=GangOwner)
    me = psutil.Process()
    if (me.pid, me.create_time()) == (owner.pid, owner.started_s):
        return
    try:
        connection = socket.create_connection((owner.host, owner.port), CONNECT_S)
    except OSError as error:
        # The engine may work all the same; its replica then knows less of it (`EngineActivity.unseen_workers`).
        logger.warning("the engine's owner cannot be reached", extra={"owner": owner.host, "error": str(error)})
        return
    connection.settimeout(None)
    _keep_alive(connection)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_S, 0))
    worker = _Worker(connection)
    worker.send(WorkerHandshake(owner.secret))
    logging.getLogger("vllm").addHandler(_Reporter(worker))
    worker.start()


class _Worker(threading.Thread):
    """Answers the owner until it is gone."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(name="serve-owner", daemon=True)
        self._connection = connection
        self._sending = threading.Lock()

    def send(self, message: WorkerHandshake | WorkerReport | WorkerActivity) -> None:
        """Raises nothing: an owner that is gone is noticed by `run`."""
        data = msgspec.msgpack.encode(message)
        with self._sending, contextlib.suppress(OSError):
            self._connection.sendall(len(data).to_bytes(4, "big") + data)

    def run(self) -> None:
        """See the module's docstring."""
        nvml = activity.nvml_library()
        gpu: activity.GpuReader = activity.gpu_reader(nvml) if nvml is not None else lambda: None
        me = psutil.Process()
        with contextlib.suppress(OSError):
            while self._connection.recv(1):
                doing = activity.read([me], gpu)
                cpu_s = dict(doing.cpu_s)
                cpu_s.pop(threading.get_native_id(), None)  # this thread: its reading is no progress of the engine
                self.send(WorkerActivity(cpu_s, dict(doing.compiler_cpu_s), doing.gpu_busy_ratio))
        os.kill(me.pid, signal.SIGKILL)


class _Reporter(logging.Handler):
    def __init__(self, worker: _Worker) -> None:
        super().__init__(logging.INFO)
        self._worker = worker

    def emit(self, record: logging.LogRecord) -> None:
        report = report_of(record)
        if report is not None:
            self._worker.send(WorkerReport(report))


def _keep_alive(connection: socket.socket) -> None:
    idle_s, between_s, probes = SILENCE_S
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle_s)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, between_s)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, probes)
