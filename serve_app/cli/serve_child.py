"""`serve run` as a child process, with everything that it starts.

Ray's daemons leave the child's process group, and HAProxy outlives Ray. So the child's environment carries a mark
(`machine.RUN_MARK`) that all of them inherit, and processes are ended by that mark and their pid, none by name.
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
from typing import Self

import psutil

from serve_app.cli import serve_api, serve_status
from serve_app.config import machine
from serve_app.config.profile import ROOT

GRACE_S = 5.0
"""How long Serve may take to stop by itself. Its replicas drain for half a minute and more, and nobody who presses
Ctrl-C waits for that; engines end with their replica, so nothing is lost by ending Serve sooner."""

JOINED_GRACE_S = 300.0
"""The same in a cluster of others, where what `serve run` leaves stays. A second Ctrl-C ends the wait."""

KILL_S = 5.0
"""Time between SIGTERM and SIGKILL."""

TAIL_LINES = 40

CHILD_ENV = {
    "PYTHONUNBUFFERED": "1",
    # Ray starts its workers at nice 15, engines and ingresses among them: they would give way to whatever else runs.
    "RAY_worker_niceness": "0",
    # Ray's daemons look for their parent, new log files and the machine's state all the time. Less often, they take a
    # third less of a core that a small machine has other uses for.
    "RAY_DASHBOARD_AGENT_CHECK_PARENT_INTERVAL_S": "5",
    "LOG_NAME_UPDATE_INTERVAL_S": "5",
    # The interval counts from so many log files on; below it, they are looked for ten times a second.
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",
    "REPORTER_UPDATE_INTERVAL_MS": "10000",
    # The dashboard's figures of itself.
    "METRICS_RECORD_INTERVAL_S": "30",
    # The process in which the application was built is done then; Ray would keep one such a CPU, just in case.
    "RAY_num_workers_soft_limit": "0",
}

MOST_HAPROXY_THREADS = 4
"""Serve's own number, for any machine. More than a quarter of its processors would only wake each other, once for every
token."""

FOLLOW_S = 0.5
"""How often the child's output is read."""


def child_env() -> dict[str, str]:
    """The child's environment, unless the user has set it."""
    threads = min(MOST_HAPROXY_THREADS, max(1, (os.cpu_count() or 1) // 4))
    return {**CHILD_ENV, "RAY_SERVE_HAPROXY_NBTHREAD": str(threads)}


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
        self._ended = asyncio.Event()

    async def __aenter__(self) -> Self:
        self.log.parent.mkdir(exist_ok=True)
        with self.log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                cwd=ROOT,
                env={**child_env(), **self._auth(), **os.environ, machine.RUN_MARK: self._run},
                stdin=asyncio.subprocess.DEVNULL,
                # A file and no pipe: daemons inherit it, and a pipe that they hold would never end.
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                # Ctrl-C in a terminal goes to the whole process group; we stop things in our own order.
                start_new_session=True,
            )
        self._reader = asyncio.create_task(self._follow(), name="serve-output")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.shield(self._take_down())

    def _auth(self) -> dict[str, str]:
        """A cluster of `ray start` requires this user's token where there is one, and `serve run` must be told to show
        it.

        A Ray of its own does so by itself.
        """
        return {"RAY_AUTH_MODE": "token"} if not self._owns_ray and serve_api.auth_token() else {}

    async def ended(self) -> None:
        """Returns when `serve run` has ended and its output is read."""
        if self._process is not None:
            await self._process.wait()
            self._ended.set()
        if self._reader is not None:
            await asyncio.wait([self._reader])  # not the task itself: cancelling this method must not cancel it

    async def interrupt(self, hurry: asyncio.Event) -> None:
        """Ask `serve run` to stop Serve, and wait for the grace time, or until told to hurry."""
        if self._process is None or self._process.returncode is not None:
            return
        # Not `send_signal`: that reaps a child that has just ended, while another task waits for it.
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGINT)
        waits = [asyncio.create_task(self._process.wait()), asyncio.create_task(hurry.wait())]
        await asyncio.wait(
            waits, timeout=GRACE_S if self._owns_ray else JOINED_GRACE_S, return_when=asyncio.FIRST_COMPLETED
        )
        for task in waits:
            task.cancel()

    async def _take_down(self) -> None:
        await asyncio.to_thread(end_run, self._run)
        await self.ended()

    async def _follow(self) -> None:
        rest = b""
        with self.log.open("rb") as log:
            while True:
                last = self._ended.is_set()
                while chunk := log.read(65536):
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        self._take(line)
                if last:
                    return
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._ended.wait(), FOLLOW_S)

    def _take(self, raw: bytes) -> None:
        line = serve_status.plain(raw.decode(errors="replace").rstrip())
        self.tail.append(line)
        self.dashboard = self.dashboard or serve_status.dashboard_in(line)
        progress = serve_status.progress_in(line)
        if progress:
            self._say(progress)


def end_run(run: str) -> None:
    """End every process of the run, first by SIGTERM. Returns when none is left (or we may not end it)."""
    for end in (psutil.Process.terminate, psutil.Process.kill):
        # Twice: a daemon that is being ended may just have started another.
        for _ in range(2):
            processes = machine.processes_of(run)
            for process in processes:
                with contextlib.suppress(psutil.Error):
                    end(process)
            psutil.wait_procs(processes, timeout=KILL_S)
