"""The service, as `python -m serve_app serve` starts it: its output as it comes, and nothing left of it afterwards."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import psutil

from serve_app.cli import serve_api, serve_child
from serve_app.config import machine
from serve_app.config.profile import ROOT
from serve_app.rehearse.facts import ANSWERS, DASHBOARD, STAMPED

POLL_S = 0.2
STOP_S = 120.0
"""`serve` gives Serve five seconds and the other processes ten: if it takes longer, something hangs."""

Say = Callable[[str], None]


def serve_command(deploy: Path) -> list[str]:
    """The command that a user types to start it."""
    return [sys.executable, "-m", "serve_app", "serve", "--file", str(deploy)]


class NotStarted(Exception):
    """The service ended, or did not answer in time. The message is its last output."""


class Service:
    """Use as a context manager: leaving it ends the service and all its processes."""

    def __init__(self, command: Sequence[str], log: Path, say: Say) -> None:
        self.lines: list[tuple[float, str]] = []
        """Its output, with the seconds since its call."""
        self.dashboard = ""
        self.stop_s: float | None = None
        self.left_over: list[str] = []
        self._command = command
        self._log = log
        self._say = say
        self._process: subprocess.Popen[bytes] | None = None
        self._mark = ""

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=ROOT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "RAY_ADDRESS": "local"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is ours to act on
            )
        born_s = psutil.Process(self._process.pid).create_time()
        self._mark = f"{self._process.pid}-{born_s:.2f}"  # as `machine.new_run_mark` has it
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self._process
        if process is None:
            return
        began_s = time.monotonic()
        try:
            with contextlib.suppress(subprocess.TimeoutExpired, ProcessLookupError):
                os.kill(process.pid, signal.SIGINT)
                process.wait(STOP_S)
        finally:  # a second Ctrl-C ends the wait
            self.stop_s = time.monotonic() - began_s
            if process.poll() is None:
                self.left_over.append(f"serve_app serve itself, after {self.stop_s:.0f} s")
                process.kill()
                process.wait()
            self.left_over += [machine.command_of(one.pid) for one in machine.processes_of(self._mark)]
            serve_child.end_run(self._mark)

    def until_it_answers(self, limit_s: float) -> None:
        """Follow the start, line by line. Raises `NotStarted`."""
        began_s = time.monotonic()
        with self._log.open("rb") as log:
            lines = self._follow(log, began_s + limit_s)
            for line in lines:
                self.lines.append((time.monotonic() - began_s, line))
                self._say(f"  {line}" if line else "")
                stamped = STAMPED.match(line)
                if stamped is not None and stamped["text"] == ANSWERS:
                    break
            else:
                if self._process is not None and self._process.poll() is None:
                    raise NotStarted(f"not in {limit_s:.0f} s; last: {self.lines[-1][1].strip() if self.lines else ''}")
                failed = [line.strip() for _, line in self.lines if "FAIL" in line]
                raise NotStarted("\n".join(failed or [line for _, line in self.lines[-8:]]) or "it said nothing")
            self.dashboard = next((found[1] for line in lines if (found := DASHBOARD.search(line))), "")

    def _follow(self, log: BinaryIO, deadline_s: float) -> Iterator[str]:
        """Lines as they come; ends with the process, or at the deadline."""
        rest = b""
        while True:
            ended = self._process is None or self._process.poll() is not None
            *lines, rest = (rest + log.read()).split(b"\n")
            yield from (line.decode(errors="replace") for line in lines)
            if ended or time.monotonic() > deadline_s:
                return
            time.sleep(POLL_S)


def run_tool(arguments: Sequence[str], limit_s: float, say: Say) -> tuple[int, str]:
    """Run one of this project's commands, passing its output on. Returns its exit status and its last output.

    It is killed after `limit_s`, and when this function is left by an exception.
    """
    token = serve_api.auth_token()
    env = {**os.environ, "PYTHONUNBUFFERED": "1", **({"RAY_AUTH_TOKEN": token} if token else {})}
    last: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        deadline = threading.Timer(limit_s, process.kill)
        deadline.start()
        try:
            for line in process.stdout or ():
                say(f"  {line.rstrip()}")
                last = [*last[-7:], line.rstrip()]
        except BaseException:
            process.kill()
            raise
        finally:
            deadline.cancel()
    return process.wait(), "\n".join(last)
