"""The processes of the bench: each reads commands from standard input, a line of JSON each, and answers with a line."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import msgspec
import psutil

from bench.client import RunFailed

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[2]


class Command(msgspec.Struct):
    """`engines`: so many engines are to run, in the process of engines. `replicas`: these are the engines now, each an
    encoded `ReplicaInfo` (base64), in the others; answered when all are connected."""

    engines: int = 0
    replicas: list[bytes] = []


class Reply(msgspec.Struct):
    """`port` of the ingress' HTTP server; `replicas` as `Command` wants them; `frames` and `bytes` that were received
    from engines, since the start."""

    port: int = 0
    replicas: list[bytes] = []
    frames: int = 0
    received_bytes: int = 0


class Child:
    """One of the processes. Use as a context manager: leaving it ends the process."""

    def __init__(self, module: str, *words: str) -> None:
        self._command = [sys.executable, "-m", module, *words]

    def __enter__(self) -> Self:
        self._popen = subprocess.Popen(self._command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.process = psutil.Process(self._popen.pid)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._popen.kill()
        self._popen.communicate()

    def ask(self, command: Command) -> Reply:
        """Raises `RunFailed` where the process has ended; its own error is on standard error."""
        if self._popen.stdin is None or self._popen.stdout is None:
            raise RunFailed("the process is not running")
        try:
            self._popen.stdin.write(msgspec.json.encode(command) + b"\n")
            self._popen.stdin.flush()
        except OSError as error:
            raise RunFailed(f"{self._command[2]} has ended: {error}") from error
        line = self._popen.stdout.readline()
        if not line:
            raise RunFailed(f"{self._command[2]} has ended")
        return msgspec.json.decode(line, type=Reply)

    def cpu_s(self) -> float:
        """CPU seconds since its start, of all its threads."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def memory_bytes(self) -> int:
        """What it has of its own: pages that no other process shares."""
        return int(self.process.memory_full_info().uss)


async def answer(handle: Callable[[Command], Awaitable[Reply]]) -> None:
    """Answer commands until standard input ends."""
    reader = asyncio.StreamReader(limit=1 << 24)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        reply = await handle(msgspec.json.decode(line, type=Command))
        sys.stdout.buffer.write(msgspec.json.encode(reply) + b"\n")
        sys.stdout.buffer.flush()
