"""One run from ready prompts to records: in this process, or in worker processes of their own.

Worker processes are used for more streams than one loop can follow, and whenever this process has something else to do
(a live view, polling the fleet): drawing a screen takes 10 ms, which would be added to every figure.
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
from loadtest.load.worker import Job, Worker, in_order, sessions_of, wall_anchor


class InterruptedEarly(Exception):
    """The user interrupted before the clock began: there is nothing to report."""


@dataclass(frozen=True)
class RunResult:
    """A run and what its workers cost, one entry per worker."""

    run: RunRecords
    checks: tuple[SelfCheck, ...]


@dataclass(frozen=True)
class FinishedRequest:
    """What the live view hears of a finished request. Times in ms."""

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
    """Follows a run while it goes on."""

    def begin(self, begin_ns: int, stop: Callable[[], None]) -> None:
        """The clock starts; `stop` ends the run early and keeps what was measured."""

    def progress(self, started: int, ended: list[FinishedRequest]) -> None:
        """Requests started and ended since the last news."""


class NullObserver:
    """An audience that does not listen."""

    def begin(self, begin_ns: int, stop: Callable[[], None]) -> None:
        """Nothing."""

    def progress(self, started: int, ended: list[FinishedRequest]) -> None:
        """Nothing."""


class ForwardingObserver:
    """A worker's watcher that passes news on at once, for an audience in the same process."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def started(self) -> None:
        """A request began."""
        self._observer.progress(1, [])

    def finished(self, record: Record) -> None:
        """A request's record is complete."""
        self._observer.progress(0, [FinishedRequest.of(record)])


@contextmanager
def on_interrupt(stop: Callable[[], None]) -> Iterator[list[bool]]:
    """Call `stop` at the first SIGINT or SIGTERM; the list is no longer empty then. A second SIGINT kills as usual."""
    loop = asyncio.get_running_loop()
    came: list[bool] = []

    def once() -> None:
        came.append(True)
        loop.remove_signal_handler(signal.SIGINT)
        stop()

    loop.add_signal_handler(signal.SIGINT, once)
    loop.add_signal_handler(signal.SIGTERM, once)
    try:
        yield came
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        loop.remove_signal_handler(signal.SIGTERM)


async def run_here(job: Job, endpoint: Endpoint, observer: Observer) -> RunResult:
    """Run a job on this process's loop. The first interrupt ends it early with what was measured."""
    sessions = sessions_of(job.prompts)
    worker = Worker(job, endpoint, ForwardingObserver(observer))
    with on_interrupt(worker.stop) as interrupted:
        await worker.open_ahead(len(sessions))
        observer.begin(perf_counter_ns(), worker.stop)
        result = await worker.run(sessions, in_order(len(sessions)))
    run = RunRecords(result.records, result.begin_ns, result.end_ns, wall_anchor(result.begin_ns), bool(interrupted))
    return RunResult(run, (result.check,))
