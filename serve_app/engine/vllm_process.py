"""Starts and stops a vLLM engine. `vllm.py` is what it does in between.

An engine is vLLM's `AsyncLLM`, which starts the engine core as a process; that starts the workers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import secrets
import signal
import socket
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any, Final

import msgspec
import psutil

from serve_app.config import vllm_device, vllm_flags
from serve_app.config.vllm_flags import BadFlag
from serve_app.engine.child import REPORTS_VARIABLE, ProcessReport
from serve_app.engine.contract import FAILED_BY_ITSELF, EngineInfo, ProgressSink
from serve_app.engine.kv_events import KvEvents
from serve_app.engine.vllm_environment import START_TIMEOUT_S, prepare_environment
from serve_app.protocol.errors import EngineDead

if TYPE_CHECKING:  # importing vLLM takes seconds; `python -m serve_app.vllm_patches.vllm_api_check` reads these
    from vllm.config import VllmConfig
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

logger = logging.getLogger(__name__)

TICK_S = 10.0
"""The phase is repeated this often: a longer silence looks like a dead start."""

STOP_GRACE_S = 10.0
"""How long the engine's processes may take to end by themselves: freeing GPU memory takes a few seconds."""


@dataclass(frozen=True)
class Started:
    """A running engine core: vLLM's client of it, its final configuration, and its processes."""

    llm: AsyncLLM
    vllm_config: VllmConfig
    processes: Sequence[psutil.Process]


class EngineReports:
    """Reports of an engine's processes: milestones of the start as words, and their errors."""

    def __init__(self, progress: ProgressSink) -> None:
        self._progress = progress
        self._began_s = time.monotonic()
        self._phase = ""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._ticker: asyncio.Task[None] | None = None
        self.error: str | None = None
        """The first error that one of them reported: the cause of what came after."""
        self.compilations = 0  # of kernels, while they serve, as far as vLLM's monitor says so

    def open(self) -> None:
        """Listen to processes that are started from now on, and repeat the last phase every `TICK_S`."""
        name = f"step-serve-{os.getpid()}-{secrets.token_hex(8)}"
        self._socket.bind("\0" + name)
        os.environ[REPORTS_VARIABLE] = name  # inherited by the processes that vLLM starts
        loop = asyncio.get_running_loop()
        loop.add_reader(self._socket, self._receive)
        self._ticker = loop.create_task(self._tick(), name="engine-start-ticker")

    def say(self, phase: str) -> None:
        """The start has reached this phase. May be called from another thread."""
        self._phase = phase
        self._progress(f"{phase} ({time.monotonic() - self._began_s:.0f} s)")

    def started(self) -> None:
        """The start is over: nothing is repeated any more. Errors are still received."""
        os.environ.pop(REPORTS_VARIABLE, None)
        if self._ticker is not None:
            self._ticker.cancel()

    def close(self) -> None:
        """Stop listening. May be called twice. `error` includes everything received until now."""
        if self._socket.fileno() < 0 or self._ticker is None:
            return
        self.started()
        self._receive()  # the last report of a failing process has the cause
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()

    def _receive(self) -> None:
        while True:
            try:
                report = msgspec.msgpack.decode(self._socket.recv(65536), type=ProcessReport)
            except BlockingIOError:
                return
            except msgspec.DecodeError:
                continue  # not from us
            self.take(report)

    def take(self, report: ProcessReport) -> None:
        """Handle one report of a process."""
        if report.error:
            self.error = self.error or report.text
        elif report.compiled:
            self.compilations += 1
            logger.warning("the engine compiled a kernel while it serves", extra={"kernel": report.compiled})
        elif report.text != self._phase and self._ticker is not None and not self._ticker.cancelled():
            self.say(report.text)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.say(self._phase)


def start_engine(
    argv: Sequence[str],
    stat_loggers: Sequence[Any],
    say: ProgressSink,
    kv_events: KvEvents,
    start_timeout_s: float = START_TIMEOUT_S,
) -> Started:
    """Start an engine with these options of vLLM's server; returns when it is ready. Blocks for minutes.

    Raises `EngineDead` with vLLM's own words for options that it refuses.
    """
    prepare_environment(start_timeout_s)
    say("loading vLLM")
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    say("reading the configuration")
    engine_args = parse_engine_args(argv)
    # The kind of cache that `vllm_io.leave_out_cached_images` mirrors.
    engine_args.mm_processor_cache_type = "lru"
    # The server's usage context, not the embedded one: it decides the default batch limits.
    vllm_config = engine_args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    kv_events.configure(vllm_config)
    say("starting the engine's processes")
    llm = AsyncLLM.from_vllm_config(
        vllm_config, usage_context=UsageContext.OPENAI_API_SERVER, stat_loggers=list(stat_loggers)
    )
    processes = [process for core in engine_core_processes() for process in (core, *core.children(recursive=True))]
    return Started(llm, vllm_config, processes)


def environment_is_final() -> None:
    """Have vLLM read each of its environment variables in this process once, and not for every token.

    For a process that serves: later changes of `os.environ` are not seen. Engine cores do it by themselves.
    """
    from vllm.envs import enable_envs_cache

    enable_envs_cache()


def parse_engine_args(argv: Sequence[str]) -> AsyncEngineArgs:
    """vLLM's `AsyncEngineArgs` from the options of its server. Raises `EngineDead` for options that it refuses."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    try:
        return AsyncEngineArgs.from_cli_args(vllm_flags.parse(argv, vllm_flags.serve_parser()))
    except BadFlag as error:
        raise EngineDead(f"vLLM refuses its options: {error}") from error


def engine_info(vllm_config: VllmConfig, start_s: float, *, reports_cache: bool = False) -> EngineInfo:
    """The settings of a started engine. vLLM's configuration describes one data-parallel rank."""
    cache = vllm_config.cache_config
    scheduler = vllm_config.scheduler_config
    ranks = vllm_config.parallel_config.data_parallel_size
    return EngineInfo(
        max_model_len=vllm_config.model_config.max_model_len,
        max_num_seqs=scheduler.max_num_seqs * ranks,
        max_num_batched_tokens=scheduler.max_num_batched_tokens,
        kv_cache_tokens=(cache.kv_cache_size_tokens or 0) * ranks,
        model=vllm_config.model_config.model,
        engine_version=vllm_device.version(),
        start_s=start_s,
        reports_cache=reports_cache,
    )


def engine_core_processes() -> list[psutil.Process]:
    """The engine cores that this process has started and that have not been seen to end."""
    found = []
    for child in multiprocessing.active_children():
        if child.name.startswith("EngineCore") and child.pid is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(child.pid))
    return found


FROM_OUTSIDE: Final = (-signal.SIGKILL, -signal.SIGTERM)
"""Exit codes of a process that an operator has killed, or the kernel for lack of memory."""

END_S: Final = 0.5
"""How long a killed process may take to be gone: the kernel reports it within milliseconds."""


def engine_core_children(before: Collection[int]) -> list[BaseProcess]:
    """The engine cores of this process except those in `before`, as multiprocessing objects."""
    children = multiprocessing.active_children()
    return [child for child in children if child.name.startswith("EngineCore") and child.pid not in before]


def how_cores_ended(cores: Sequence[BaseProcess]) -> str:
    """Why an engine ended of which a process has ended. A core that fails reports it and exits; one that is killed
    cannot. Blocks for `END_S` at most."""
    ended = wait([core.sentinel for core in cores], END_S)
    for core in cores:
        if core.sentinel in ended:
            core.join(END_S)  # it may not have been reaped yet
    codes = [core.exitcode for core in cores]
    if any(code in FROM_OUTSIDE for code in codes):
        return "the engine core's process was killed"
    # A core that still runs has reported the failure itself.
    by_itself = any(code != 0 for code in codes)
    return f"the engine core {FAILED_BY_ITSELF}" if by_itself else "the engine core's process has ended"


def stop_engine(started: Started) -> None:
    """End the engine and all its processes. Blocks for `STOP_GRACE_S` at most, twice."""
    processes = set(started.processes)
    for process in started.processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            processes.update(process.children(recursive=True))
    started.llm.shutdown(timeout=STOP_GRACE_S)
    kill_remaining(list(processes))


def kill_engine_cores(before: set[int], wait_s: float = STOP_GRACE_S) -> None:
    """Kill the engine cores and their workers, except those in `before`, which belong to others.

    Blocks for `wait_s` at most while the kill takes effect.
    """
    kill_remaining(
        [
            process
            for core in engine_core_processes()
            if core.pid not in before
            for process in (core, *core.children(recursive=True))
        ],
        grace_s=0.0,
        wait_s=wait_s,
    )


def kill_remaining(
    processes: Sequence[psutil.Process], grace_s: float = STOP_GRACE_S, wait_s: float = STOP_GRACE_S
) -> None:
    """Wait for processes to end for `grace_s`, kill those that do not, and wait for `wait_s` at most until they are
    gone."""
    alive = wait_gone(processes, grace_s)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    wait_gone(alive, wait_s)


def wait_gone(processes: Sequence[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Those of `processes` that still run after `timeout_s`. Blocks; returns as soon as none does.

    It only looks: `psutil.wait_procs` would reap children behind the back of multiprocessing, which would then believe
    them alive.
    """
    deadline_s = time.monotonic() + timeout_s
    while True:
        alive = [process for process in processes if is_alive(process)]
        if not alive or time.monotonic() >= deadline_s:
            return alive
        time.sleep(0.05)


def is_alive(process: psutil.Process) -> bool:
    """Whether it still runs. A process that has ended and waits to be reaped holds no memory any more."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
