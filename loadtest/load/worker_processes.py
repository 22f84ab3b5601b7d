"""Worker processes: how many a load needs, and a run that is spread over them.

A shared counter hands out the sessions, so the next one goes to whichever slot is free, in any process. All workers
start at one moment of the monotonic clock, which they share.
"""

from __future__ import annotations

import asyncio
import math
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.sharedctypes import Synchronized
from time import perf_counter_ns
from typing import TypeVar

import uvloop

from loadtest.api.record import Record, RunRecords
from loadtest.errors import LoadTestError
from loadtest.http.pool import Endpoint
from loadtest.load.runner import FinishedRequest, InterruptedEarly, Observer, RunResult, on_interrupt, run_here
from loadtest.load.schedule import LoadSchedule
from loadtest.load.worker import NextSession, Worker, WorkerJob, WorkerResult, sessions_of, unix_time_at

T = TypeVar("T")
STREAMS_PER_PROCESS = 250
"""Streams that one process can follow. At 256 it adds less than 4 ms to TTFT, at 512 more (decision 0019)."""
STARTS_PER_S_PER_PROCESS = 250
"""Requests that one process starts in a second: encoding and sending 32 KB takes about a millisecond of its loop."""
PROGRESS_INTERVAL_S = 0.25
START_DELAY_S = 0.1
"""From the moment all workers are ready to their common start."""
EXIT_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class WorkerCount:
    """The number of client processes, and the reason for it, which the report shows."""

    count: int
    reason: str


def choose_worker_count(requested: int | None, load: LoadSchedule, cores: int) -> WorkerCount:
    """The requested number, else as many as the load needs, at most one per core."""
    if requested is not None:
        return WorkerCount(requested, f"{_processes(requested)}, as --workers says")
    needs = []
    if load.max_inflight:
        streams = f"{load.max_inflight} stream{'' if load.max_inflight == 1 else 's'}"
        needs.append((load.max_inflight / STREAMS_PER_PROCESS, f"{streams} at {STREAMS_PER_PROCESS} a process"))
    if load.times_s:
        peak = max(Counter(int(time_s) for time_s in load.times_s).values())
        reason = f"{peak} starts in a second at {STARTS_PER_S_PER_PROCESS} a process"
        needs.append((peak / STARTS_PER_S_PER_PROCESS, reason))
    need, reason = max(needs, default=(1.0, "a load of unknown size"))
    count = max(1, math.ceil(need))
    if count > cores:
        return WorkerCount(cores, f"{_processes(cores)}, one a core: too few for {reason}")
    return WorkerCount(count, f"{_processes(count)}: {reason}")


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"


@dataclass(frozen=True)
class Progress:
    """Message from a worker: requests started and finished since its last message."""

    started: int
    finished: list[FinishedRequest]


@dataclass(frozen=True)
class WorkerReady:
    """Message from a worker: its connections are open."""


def run_worker(job: WorkerJob, endpoint: Endpoint, counter: Synchronized[int], pipe: Connection) -> None:
    """Entry point of a worker process."""
    uvloop.run(_work(job, endpoint, counter, pipe))


class _ProgressReporter:
    """Collects starts and ends, and sends them to the parent at intervals."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._started = 0
        self._finished: list[FinishedRequest] = []

    def request_started(self) -> None:
        self._started += 1

    def request_finished(self, record: Record) -> None:
        self._finished.append(FinishedRequest.of(record))

    def send(self) -> None:
        if self._started or self._finished:
            self._pipe.send(Progress(self._started, self._finished))
            self._started, self._finished = 0, []

    async def send_forever(self) -> None:
        while True:
            await asyncio.sleep(PROGRESS_INTERVAL_S)
            self.send()


async def _work(job: WorkerJob, endpoint: Endpoint, counter: Synchronized[int], pipe: Connection) -> None:
    sessions = sessions_of(job.prompts)
    reporter = _ProgressReporter(pipe)
    worker = Worker(job, endpoint, reporter)
    # A terminal's Ctrl-C goes to every process of the group. The parent acts on it and sends SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)
    await worker.preconnect(len(sessions))
    pipe.send(WorkerReady())
    begin_ns: int = pipe.recv()
    reporting = asyncio.create_task(reporter.send_forever())
    try:
        result = await worker.run(sessions, _shared_counter(counter, len(sessions)), begin_ns)
    finally:
        reporting.cancel()
    reporter.send()
    pipe.send(result)


def _shared_counter(counter: Synchronized[int], count: int) -> NextSession:
    def next_session() -> int | None:
        with counter.get_lock():
            index = counter.value
            counter.value = index + 1
        return index if index < count else None

    return next_session


async def run_job(
    job: WorkerJob, endpoint: Endpoint, workers: int, observer: Observer, *, separate: bool = False
) -> RunResult:
    """Run a job in this process, or in worker processes if it takes several of them or must be `separate`.

    Raises what `run_in_workers` does.
    """
    if separate or workers > 1:
        return await run_in_workers(job, endpoint, workers, observer)
    return await run_here(job, endpoint, observer)


async def run_in_workers(job: WorkerJob, endpoint: Endpoint, workers: int, observer: Observer) -> RunResult:
    """Run a job in worker processes. The first interrupt ends it early and keeps what was measured.

    Raises LoadTestError if a worker dies, and InterruptedEarly if the interrupt comes before the common start.
    """
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    processes, pipes = _start_workers(context, job, endpoint, workers, counter)

    def stop() -> None:
        for process in processes:
            process.terminate()

    try:
        with on_interrupt(stop) as interrupted:
            try:
                await _all(_receive(pipe) for pipe in pipes)
            except LoadTestError:
                if interrupted.is_set():  # SIGTERM ends a worker that has not yet set its handler
                    raise InterruptedEarly from None
                raise
            begin_ns = perf_counter_ns() + int(START_DELAY_S * 1e9)
            for pipe in pipes:
                pipe.send(begin_ns)
            observer.on_start(begin_ns, stop)
            results = await _all(_follow(pipe, observer) for pipe in pipes)
    except BaseException:
        stop()  # one worker has failed: the others' measurements are of no use
        raise
    finally:
        _end_workers(processes, pipes)
    records = sorted((record for result in results for record in result.records), key=lambda record: record.index)
    end_ns = max(result.end_ns for result in results)
    run = RunRecords(records, begin_ns, end_ns, unix_time_at(begin_ns), interrupted.is_set())
    return RunResult(run, tuple(result.check for result in results))


def _start_workers(
    context: SpawnContext, job: WorkerJob, endpoint: Endpoint, workers: int, counter: Synchronized[int]
) -> tuple[list[SpawnProcess], list[Connection]]:
    processes: list[SpawnProcess] = []
    pipes: list[Connection] = []
    for number in range(workers):
        parent_end, worker_end = context.Pipe()
        slots = _slots_of(number, job.load.max_inflight, workers)
        worker_job = replace(job, load=replace(job.load, max_inflight=slots))
        process = context.Process(target=run_worker, args=(worker_job, endpoint, counter, worker_end), daemon=True)
        process.start()
        worker_end.close()
        processes.append(process)
        pipes.append(parent_end)
    return processes, pipes


def _end_workers(processes: list[SpawnProcess], pipes: list[Connection]) -> None:
    for pipe in pipes:
        pipe.close()
    for process in processes:
        process.join(timeout=EXIT_TIMEOUT_S)
        if process.is_alive():
            process.kill()
            process.join()


def _slots_of(number: int, slots: int | None, workers: int) -> int | None:
    """One worker's part of the slots, at least one."""
    if slots is None:
        return None
    return max(1, slots // workers + (number < slots % workers))


async def _all(coroutines: Iterable[Coroutine[object, object, T]]) -> list[T]:
    """Their results; the first failure cancels the others, unlike `asyncio.gather` alone."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _receive(pipe: Connection) -> object:
    """The next message, without blocking the loop. Raises LoadTestError if the worker has died."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(pipe.fileno(), readable.set)
    try:
        while not pipe.poll():
            readable.clear()
            await readable.wait()
        # uvloop has made the descriptor non-blocking, and a message may arrive in pieces.
        os.set_blocking(pipe.fileno(), True)
        return pipe.recv()
    except (EOFError, ConnectionError) as bad:
        raise LoadTestError("a worker process died", "Its own message is above; try --workers 1") from bad
    finally:
        loop.remove_reader(pipe.fileno())


async def _follow(pipe: Connection, observer: Observer) -> WorkerResult:
    """Pass a worker's progress on until it sends its result."""
    while True:
        message = await _receive(pipe)
        if isinstance(message, Progress):
            observer.on_progress(message.started, message.finished)
        elif isinstance(message, WorkerResult):
            return message
