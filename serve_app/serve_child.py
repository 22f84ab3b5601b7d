"""`serve run` as a child process, and everything that it starts.

Ray's daemons leave the child's process group, and HAProxy outlives Ray. So the child's environment carries a mark
(`machine.RUN_MARK`) that all of them inherit, and what is taken down is what carries it: by pid, nothing by name.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import psutil

from serve_app import machine, serve_status
from serve_app.profile import ROOT

GRACE_S = 5.0
"""How long Serve may take to end by itself. Its replicas drain for half a minute and more, which nobody who presses
Ctrl-C waits for; engines die with their replica, so nothing is lost by ending it sooner."""

JOINED_GRACE_S = 300.0
"""The same in a cluster that is not ours: what `serve run` leaves there stays. A second Ctrl-C ends the wait."""

KILL_S = 5.0
"""Between SIGTERM and SIGKILL for what is left."""

TAIL_LINES = 40


class ServeChild:
    """Use as an async context manager: on leaving it, nothing that the child started in a Ray of its own is alive."""

    def __init__(self, command: Sequence[str], *, owns_ray: bool, log: Path, say: Callable[[str], None]) -> None:
        self.log = log
        self.dashboard: str | None = None
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._command = command
        self._owns_ray = owns_ray
        self._say = say
        self._run = machine.new_run_mark()
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self.log.parent.mkdir(exist_ok=True)
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            cwd=ROOT,
            env={**os.environ, machine.RUN_MARK: self._run, "PYTHONUNBUFFERED": "1"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            # Ctrl-C in a terminal goes to its whole process group: the order of taking things down is ours to choose.
            start_new_session=True,
        )
        self._reader = asyncio.create_task(self._read(), name="serve-output")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.shield(self._take_down())

    async def ended(self) -> None:
        """Returns when `serve run` is no more and its last words are read."""
        if self._process is not None and self._reader is not None:
            await self._process.wait()
            await asyncio.wait([self._reader], timeout=2)

    async def interrupt(self) -> None:
        """Ask `serve run` to end Serve, and wait for as long as that is worth."""
        if self._process is None or self._process.returncode is not None:
            return
        self._process.send_signal(signal.SIGINT)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), GRACE_S if self._owns_ray else JOINED_GRACE_S)

    async def _take_down(self) -> None:
        await asyncio.to_thread(end_run, self._run)
        if self._process is not None:
            await self._process.wait()
        if self._reader is not None:
            await asyncio.wait([self._reader], timeout=2)
            self._reader.cancel()

    async def _read(self) -> None:
        process = self._process
        if process is None or process.stdout is None:
            return
        with self.log.open("wb") as log:
            rest = b""
            while chunk := await process.stdout.read(65536):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._take(line, log)
                log.flush()

    def _take(self, raw: bytes, log: IO[bytes]) -> None:
        log.write(raw + b"\n")
        line = serve_status.plain(raw.decode(errors="replace").rstrip())
        self.tail.append(line)
        self.dashboard = self.dashboard or serve_status.dashboard_in(line)
        progress = serve_status.progress_in(line)
        if progress:
            self._say(progress)


def end_run(run: str) -> None:
    """End every process of the run, politely first. Returns when none is left (or cannot be ended by us)."""
    for end in (psutil.Process.terminate, psutil.Process.kill):
        # Twice: a daemon that is being ended may just have started another.
        for _ in range(2):
            processes = machine.processes_of(run)
            for process in processes:
                with contextlib.suppress(psutil.Error):
                    end(process)
            psutil.wait_procs(processes, timeout=KILL_S)
