"""A plugin of coverage.py: saves what a child process has run every second, for many of them are killed.

Ray ends its workers with SIGKILL or without Python's exit, and so do tests; coverage.py saves at a normal end only.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Mapping
from typing import Final

from coverage import Coverage
from coverage.plugin_support import Plugins

SAVE_S: Final = 1.0
"""The longest time whose lines are lost."""

SPAWNED: Final = "--multiprocessing-fork"
"""Marks what multiprocessing starts. It is the only Python given as text (`-c`) that gets a thread: the rest is written
in a test, ends soon, and may have its threads counted."""

FORKS: Final = "serve_app.ingress.grammars.vllm_worker"
"""Must have one thread. Each child that it forks saves the lines of its parent, too, when it calls `os._exit`."""


def coverage_init(_: Plugins, __: Mapping[str, str]) -> None:
    """Called by coverage.py in each process that it measures. The first one, pytest's, saves at its end."""
    is_child, words = "COVERAGE_PROCESS_CONFIG" in os.environ, sys.orig_argv
    if is_child and FORKS not in words and ("-c" not in words or SPAWNED in words):
        ends = threading.Event()
        thread = threading.Thread(target=_save_often, args=(ends,), name="coverage saves", daemon=True)
        thread.start()
        # A daemon thread that Python's exit stops within a C library takes the process down.
        atexit.register(lambda: (ends.set(), thread.join()))


def _save_often(ends: threading.Event) -> None:
    while not ends.wait(SAVE_S):
        measured = Coverage.current()
        if measured is not None:
            measured.save()
