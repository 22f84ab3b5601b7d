"""Ends a plain `serve run` whose start cannot work, with the reason as its last output.

`serve run` passes its file to Serve's controller and then waits forever, whatever becomes of it (ray#31168). `build()`
refuses the configuration in a process of Ray's. If the command started that Ray, it is an ancestor of that process, and
ending it ends nothing that existed before. In a cluster that others started it is not an ancestor, and nothing is
ended.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Sequence
from pathlib import Path

import psutil

HAPROXY = "haproxy"

LAST_WORDS = """
Not started. {reason}
`make serve` and `python -m serve_app preflight` find such things before Ray starts.
"""


def end(reason: str) -> bool:
    """End the `serve run` that started this process' Ray, and write the reason to its terminal. Returns whether there
    was one."""
    command = started_by(psutil.Process().parents())
    if command is None:
        return False
    _say(command, LAST_WORDS.format(reason=reason))
    # It outlives the Ray that started it and would keep the port.
    for child in command.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if child.name() == HAPROXY:
                child.kill()
    with contextlib.suppress(psutil.NoSuchProcess):
        command.send_signal(signal.SIGTERM)
    return True


def started_by(ancestors: Sequence[psutil.Process]) -> psutil.Process | None:
    """The nearest ancestor that is `serve run`."""
    for process in ancestors:
        with contextlib.suppress(psutil.Error):
            if is_serve_run(process.cmdline()):
                return process
    return None


def is_serve_run(words: Sequence[str]) -> bool:
    """Whether a command line is Serve's program with the command `run`; Python and its options may come before it."""
    programs = [number for number, word in enumerate(words[:-1]) if Path(word).name == "serve"]
    return any(words[number + 1] == "run" for number in programs)


def _say(command: psutil.Process, words: str) -> None:
    """Write to its standard error, whatever that is: Ray forwards our own only later, if at all."""
    with contextlib.suppress(OSError), Path(f"/proc/{command.pid}/fd/2").open("a", encoding="utf-8") as terminal:
        terminal.write(words)
