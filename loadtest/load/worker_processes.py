"""A run over several processes: one counter hands out the requests, one clock starts them, one list gathers records.

The counter keeps the closed loop's meaning across processes: the next request goes to whichever slot is free.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from time import perf_counter_ns

import uvloop

from loadtest.api.record import Record, RunRecords
from loadtest.errors import LoadTestError
from loadtest.http.pool import Endpoint
from loadtest.load.run import FinishedRequest, InterruptedEarly, Observer, RunResult, on_interrupt
from loadtest.load.worker import Job, NextSession, Worker, WorkerResult, sessions_of, wall_anchor

NEWS_S = 0.25
START_IN_S = 0.1
"""From the moment all workers are ready to the common start."""


@dataclass(frozen=True)
class Progress:
    """What a worker tells the parent while it runs."""

    started: int
    ended: list[FinishedRequest]


@dataclass(frozen=True)
class WorkerReady:
    """A worker's connections are open."""


def run_worker(job: Job, endpoint: Endpoint, counter: Synchronized[int], pipe: Connection) -> None:
    """A worker process's whole life."""
    uvloop.run(_work(job, endpoint, counter, pipe))


class _Reporter:
    """Collects news and sends them at intervals."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._started = 0
        self._ended: list[FinishedRequest] = []

    def started(self) -> None:
        self._started += 1

    def finished(self, record: Record) -> None:
        self._ended.append(FinishedRequest.of(record))

    def send(self) -> None:
        if self._started or self._ended:
            self._pipe.send(Progress(self._started, self._ended))
            self._started, self._ended = 0, []

    async def forever(self) -> None:
        while True:
            await asyncio.sleep(NEWS_S)
            self.send()


async def _work(job: Job, endpoint: Endpoint, counter: Synchronized[int], pipe: Connection) -> None:
    sessions = sessions_of(job.prompts)
    reporter = _Reporter(pipe)
    worker = Worker(job, endpoint, reporter)
    # A terminal's Ctrl-C reaches every process of the group. Only the parent acts on it, and tells us once.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)
    await worker.open_ahead(len(sessions))
    pipe.send(WorkerReady())
    begin_ns: int = pipe.recv()
    telling = asyncio.create_task(reporter.forever())
    try:
        result = await worker.run(sessions, _shared(counter, len(sessions)), begin_ns)
    finally:
        telling.cancel()
    reporter.send()
    pipe.send(result)


def _shared(counter: Synchronized[int], count: int) -> NextSession:
    def next_session() -> int | None:
        with counter.get_lock():
            number = counter.value
            counter.value = number + 1
        return number if number < count else None

    return next_session


async def run_in_workers(job: Job, endpoint: Endpoint, workers: int, observer: Observer) -> RunResult:
    """Run a job over worker processes. The first interrupt ends it early with what was measured."""
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    pipes: list[Connection] = []
    processes = []
    for number in range(workers):
        ours, theirs = context.Pipe()
        share = replace(job, load=replace(job.load, max_inflight=_share(job.load.max_inflight, workers, number)))
        process = context.Process(target=run_worker, args=(share, endpoint, counter, theirs), daemon=True)
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)

    def stop() -> None:
        for process in processes:
            process.terminate()

    try:
        with on_interrupt(stop) as interrupted:
            try:
                await asyncio.gather(*(_wait_for(pipe) for pipe in pipes))
            except LoadTestError:
                if interrupted:  # a worker that is told to stop before it could listen just ends
                    raise InterruptedEarly from None
                raise
            begin_ns = perf_counter_ns() + int(START_IN_S * 1e9)
            for pipe in pipes:
                pipe.send(begin_ns)
            observer.begin(begin_ns, stop)
            result = await asyncio.gather(*(_follow(pipe, observer) for pipe in pipes))
    finally:
        for process in processes:
            process.join(timeout=5)
            if process.is_alive():
                process.kill()
    records = sorted((record for one in result for record in one.records), key=lambda record: record.index)
    end_ns = max(one.end_ns for one in result)
    run = RunRecords(records, begin_ns, end_ns, wall_anchor(begin_ns), bool(interrupted))
    return RunResult(run, tuple(one.check for one in result))


def _share(slots: int | None, workers: int, number: int) -> int | None:
    """This worker's part of the slots, at least one."""
    if slots is None:
        return None
    return max(1, slots // workers + (number < slots % workers))


async def _wait_for(pipe: Connection) -> object:
    """The next message, without blocking the loop."""
    loop = asyncio.get_running_loop()
    came = asyncio.Event()
    loop.add_reader(pipe.fileno(), came.set)
    try:
        while not pipe.poll():
            came.clear()
            await came.wait()
        # The loop reads it without blocking, and a message may come in pieces.
        os.set_blocking(pipe.fileno(), True)
        return pipe.recv()
    except EOFError as gone:
        raise LoadTestError("a worker process died", "Its own message is above; try --workers 1") from gone
    finally:
        loop.remove_reader(pipe.fileno())


async def _follow(pipe: Connection, observer: Observer) -> WorkerResult:
    while True:
        said = await _wait_for(pipe)
        if isinstance(said, Progress):
            observer.progress(said.started, said.ended)
        elif isinstance(said, WorkerResult):
            return said
