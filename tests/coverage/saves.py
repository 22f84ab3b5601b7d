"""A plugin of coverage.py: saves what a child process has run every second, for many of them are killed.

Ray ends its workers with SIGKILL or without Python's exit, and so do tests; coverage.py saves at a normal end only.
"""

from __future__ import annotations

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
        # Not a daemon: Python waits for it before it calls what is registered for its exit. There coverage.py saves and
        # closes its data, which this thread must not be saving at the same time.
        threading.Thread(target=_save_often, name="coverage saves").start()


def _save_often() -> None:
    main = threading.main_thread()
    while main.is_alive():
        main.join(SAVE_S)
        measured = Coverage.current()
        if measured is not None and main.is_alive():
            measured.save()
