"""Run a worker job in this process, and observe it while it runs.

`load/worker_processes.py` does the same in processes of their own. Those are used for more streams than one loop can
follow, and whenever this process has other work (a live view, polling the fleet): drawing a screen takes 10 ms, which
would be added to every figure.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Protocol

from loadtest.api.record import Record, RunRecords, tpot_s, ttft_s
from loadtest.http.pool import Endpoint
from loadtest.load.self_check import SelfCheck
from loadtest.load.worker import Worker, WorkerJob, in_order, sessions_of, unix_time_at


class InterruptedEarly(Exception):
    """The user interrupted before the first request: there is nothing to report."""


@dataclass(frozen=True)
class RunResult:
    """The records of a run, and the self-check of each worker."""

    run: RunRecords
    checks: tuple[SelfCheck, ...]


@dataclass(frozen=True)
class FinishedRequest:
    """What an observer gets of a finished request. The times are 0 for a failed one."""

    ok: bool
    outcome: str
    ttft_ms: float
    tpot_ms: float
    tokens: int
    end_ns: int

    @staticmethod
    def of(record: Record) -> FinishedRequest:
        """From its record."""
        if not record.ok:
            return FinishedRequest(False, record.outcome.value, 0.0, 0.0, 0, record.end_ns)
        return FinishedRequest(
            True, "ok", ttft_s(record) * 1e3, tpot_s(record) * 1e3, record.output_tokens, record.end_ns
        )


class Observer(Protocol):
    """Follows a run while it runs."""

    def on_start(self, begin_ns: int, stop: Callable[[], None]) -> None:
        """The clock starts; `stop` ends the run early and keeps what was measured."""

    def on_progress(self, started: int, ended: list[FinishedRequest]) -> None:
        """Requests that started and ended since the last call."""


class NullObserver:
    """An observer that does nothing."""

    def on_start(self, begin_ns: int, stop: Callable[[], None]) -> None:
        """Ignored."""

    def on_progress(self, started: int, ended: list[FinishedRequest]) -> None:
        """Ignored."""


class ForwardingObserver:
    """Passes each start and end in a worker on to an observer in the same process."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def request_started(self) -> None:
        """A request has started."""
        self._observer.on_progress(1, [])

    def request_finished(self, record: Record) -> None:
        """A request's record is complete."""
        self._observer.on_progress(0, [FinishedRequest.of(record)])


@contextmanager
def on_interrupt(stop: Callable[[], None]) -> Iterator[asyncio.Event]:
    """Call `stop` and set the event at SIGINT or SIGTERM. A second SIGINT raises KeyboardInterrupt as usual."""
    loop = asyncio.get_running_loop()
    interrupted = asyncio.Event()

    def interrupt() -> None:
        interrupted.set()
        loop.remove_signal_handler(signal.SIGINT)
        stop()

    loop.add_signal_handler(signal.SIGINT, interrupt)
    loop.add_signal_handler(signal.SIGTERM, interrupt)
    try:
        yield interrupted
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        loop.remove_signal_handler(signal.SIGTERM)


async def run_here(job: WorkerJob, endpoint: Endpoint, observer: Observer) -> RunResult:
    """Run a job on this process's loop. The first interrupt ends it early and keeps what was measured."""
    sessions = sessions_of(job.prompts)
    worker = Worker(job, endpoint, ForwardingObserver(observer))
    with on_interrupt(worker.stop) as interrupted:
        await worker.preconnect(len(sessions))
        observer.on_start(perf_counter_ns(), worker.stop)
        result = await worker.run(sessions, in_order(len(sessions)))
    begin_ns, end_ns = result.begin_ns, result.end_ns
    run = RunRecords(result.records, begin_ns, end_ns, unix_time_at(begin_ns), interrupted.is_set())
    return RunResult(run, (result.check,))
