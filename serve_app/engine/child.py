"""What each process of an engine does for its owner: it ends with the owner, and reports how the start goes.

vLLM runs an engine as a tree of processes (the engine core, and a worker per GPU below it). Two things are missing
there: an engine core whose owner is killed lives on and holds the GPUs, and the reason of a failed start is only in the
log of the process that failed. Our vLLM plugin (`engine/vllm_plugin.py`) calls these functions in each process.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import multiprocessing.connection
import os
import re
import signal
import socket
import sysconfig
import threading
from typing import Final

import msgspec

REPORTS_VARIABLE: Final = "STEP_SERVE_ENGINE_REPORTS"
"""Environment variable with the name of the owner's socket in Linux's abstract namespace, without the leading NUL."""

ORPHAN_CHECK_S: Final = 2.0
"""A pipe reports the parent's end at once. The parent's id is checked too, in case the pipe's other end leaked
elsewhere."""

PHASES: Final = (
    ("Initializing a V1 LLM engine", "starting workers"),
    ("Starting to load model", "loading weights"),
    ("Loading weights took", "weights loaded"),
    ("Loading drafter model", "loading the draft model"),
    ("Model loading took", "profiling"),
    ("Warming up model for the compilation", "profiling"),
    ("Starting torch.compile", "compiling"),
    ("Directly load the compiled graph", "loading compiled graphs"),
    ("Cache the graph", "compiling"),
    ("Dynamo bytecode transform", "compiling"),
    ("torch.compile took", "profiling"),
    ("Available KV cache memory", "allocating the KV cache"),
    ("GPU KV cache size", "allocating the KV cache"),
    ("CPU KV cache size", "allocating the KV cache"),
    ("Capturing CUDA graph", "capturing CUDA graphs"),
    ("Graph capturing finished", "warming up"),
    ("init engine (profile", "engine core ready"),
)
"""How vLLM's log messages begin, and the phase that each means. A message that vLLM rewords costs one line of
progress."""


DOWNLOADED: Final = re.compile(r"Time spent downloading weights for .*: ([0-9.]+) seconds")
"""How vLLM says, once it has them, how long it has waited for weights from the Hugging Face hub."""

COMPILED: Final = re.compile(r"(\w+) (?:kernel )?JIT compilation during inference: (.*?)\. This causes")
"""How vLLM's monitor of late compilations (`vllm.utils.jit_monitor`) says that one has happened. It says it once for
each kernel (`jit-monitor-verbose`: each time), of Triton, CuTeDSL and TileLang, where the engine is not eager."""


class ProcessReport(msgspec.Struct, array_like=True):
    """One message to the owner: the current phase of the start, or an error; else the name of a kernel that was
    `compiled` while the engine serves."""

    text: str
    error: bool
    compiled: str = ""


def is_engine_process() -> bool:
    """Whether another process's multiprocessing started this one, as vLLM starts its own."""
    return multiprocessing.parent_process() is not None


def search_path(path: str) -> str:
    """The program search path `path` with this environment's own programs in front.

    vLLM and FlashInfer run `ninja`, which pip puts there. Ray's workers inherit the PATH of whoever started Ray, which
    has it only where the environment was activated.
    """
    scripts = sysconfig.get_path("scripts")
    return os.pathsep.join([scripts, *(part for part in path.split(os.pathsep) if part and part != scripts)])


def find_own_programs() -> None:
    """Put the environment's programs on the PATH of this process and of what it starts."""
    os.environ["PATH"] = search_path(os.environ.get("PATH", os.defpath))


def die_with_parent() -> None:
    """Kill this process as soon as its parent is gone, however the parent ended.

    Not `PR_SET_PDEATHSIG`: that fires when the parent's *thread* ends, and an engine is started from a helper thread.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    parent_pid = os.getppid()

    def watch() -> None:
        while not multiprocessing.connection.wait([parent.sentinel], timeout=ORPHAN_CHECK_S):
            if os.getppid() != parent_pid:
                break
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="die-with-parent", daemon=True).start()


def report_to_owner() -> None:
    """Send vLLM's milestones and errors of this process to the owner, if one listens."""
    address = os.environ.get(REPORTS_VARIABLE)
    vllm = logging.getLogger("vllm")
    if address and not any(isinstance(handler, _Reporter) for handler in vllm.handlers):
        vllm.addHandler(_Reporter(address))


class _Reporter(logging.Handler):
    def __init__(self, address: str) -> None:
        super().__init__(logging.INFO)
        self._address = "\0" + address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def emit(self, record: logging.LogRecord) -> None:
        report = report_of(record)
        if report is None:
            return
        with contextlib.suppress(OSError):  # no listener, or a busy one: progress is worth no delay
            self._socket.sendto(msgspec.msgpack.encode(report), self._address)


def report_of(record: logging.LogRecord) -> ProcessReport | None:
    """What a log record of vLLM tells the owner, if anything."""
    message = record.getMessage()
    if record.levelno >= logging.ERROR:
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            message = f"{message} {type(error).__name__}: {error}"
        return ProcessReport(message[:4000], error=True)
    if (found := COMPILED.match(message)) is not None:
        return ProcessReport("", error=False, compiled=f"{found[1]} {found[2]}"[:200])
    if (found := DOWNLOADED.match(message)) is not None:
        return ProcessReport(f"weights downloaded in {found[1]} s", error=False)
    for beginning, words in PHASES:
        if message.startswith(beginning):
            return ProcessReport(words, error=False)
    return None
