"""A start that cannot work ends a plain `serve run` too, with the reason as its last words.

`serve run` hands its file to Serve's controller and then waits for ever, whatever becomes of it (ray#31168). What
refuses a configuration is `build()`, in a process of Ray's. If that Ray is the command's own, the command is an
ancestor of that process, and ending it ends nothing that was there before. In a cluster that others started it is none,
and nothing is ended.
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
    """End the `serve run` that started this process' Ray, if there is one, and say why in its terminal. Whether there
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
    """The nearest of them that is `serve run`."""
    for process in ancestors:
        with contextlib.suppress(psutil.Error):
            if is_serve_run(process.cmdline()):
                return process
    return None


def is_serve_run(words: Sequence[str]) -> bool:
    """Whether a command line is Serve's program with `run` as its command; before it come Python and its options."""
    programs = [number for number, word in enumerate(words[:-1]) if Path(word).name == "serve"]
    return any(words[number + 1] == "run" for number in programs)


def _say(command: psutil.Process, words: str) -> None:
    """Its standard error, whatever that is: Ray brings what we write to ours to it only later, if at all."""
    with contextlib.suppress(OSError), Path(f"/proc/{command.pid}/fd/2").open("a", encoding="utf-8") as terminal:
        terminal.write(words)
