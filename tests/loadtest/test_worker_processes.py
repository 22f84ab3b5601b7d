"""Worker processes share the requests of a run, report while they run, and a dead one ends the run."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Awaitable, Callable

import pytest

from loadtest.api.requests import Api, BodySpec
from loadtest.data.prompt import Prompt
from loadtest.errors import LoadTestError, RequestOutcome
from loadtest.load.runner import FinishedRequest, InterruptedEarly, NullObserver, on_interrupt
from loadtest.load.schedule import LoadSchedule
from loadtest.load.worker import WorkerJob
from loadtest.load.worker_processes import choose_worker_count, run_in_workers, usable_cores
from loadtest.mock.answers import MockConfig
from loadtest.mock.server import MockServer
from tests.loadtest.conftest import endpoint_of

StartMock = Callable[..., Awaitable[MockServer]]


class RecordingObserver:
    """Counts starts and ends; calls `at_start` when the clock starts, and stops the run at the n-th answer."""

    def __init__(self, at_start: Callable[[], None] | None = None, *, stop_after: int = 10**9) -> None:
        self.starts = 0
        self.started = 0
        self.ended: list[FinishedRequest] = []
        self._at_start = at_start
        self._stop_after = stop_after

    def on_start(self, begin_ns: int, stop: Callable[[], None]) -> None:  # noqa: ARG002  # its protocol's signature
        self.starts += 1
        self._stop = stop
        if self._at_start is not None:
            self._at_start()

    def on_progress(self, started: int, ended: list[FinishedRequest]) -> None:
        self.started += started
        self.ended += ended
        if len(self.ended) >= self._stop_after:
            self._stop()


def job_of(count: int, load: LoadSchedule, **fields: object) -> WorkerJob:
    prompts = [Prompt(text=f"prompt {number}", output_tokens=4) for number in range(count)]
    return WorkerJob(prompts, BodySpec(Api.CHAT, "mock", ignore_eos=True), load, **fields)  # type: ignore[arg-type]  # of one test each


async def test_every_request_is_sent_once_and_observed(start_mock: StartMock) -> None:
    server = await start_mock()
    observer = RecordingObserver()
    finished = await run_in_workers(job_of(12, LoadSchedule(4)), endpoint_of(server.url), 2, observer)
    assert [record.index for record in finished.run.records] == list(range(12))
    assert all(record.ok for record in finished.run.records)
    assert len(finished.checks) == 2
    assert all(record.start_ns >= finished.run.begin_ns for record in finished.run.records)
    assert (observer.starts, observer.started, len(observer.ended)) == (1, 12, 12)
    assert {request.tokens for request in observer.ended} == {4}
    assert not finished.run.interrupted


async def test_an_open_loops_times_hold_across_processes(start_mock: StartMock) -> None:
    server = await start_mock()
    times_s = tuple(number * 0.01 for number in range(10))
    finished = await run_in_workers(job_of(10, LoadSchedule(None, times_s)), endpoint_of(server.url), 2, NullObserver())
    run = finished.run
    assert [(record.intended_ns - run.begin_ns) / 1e9 for record in run.records] == pytest.approx(times_s, abs=1e-6)


async def test_stopping_keeps_what_was_measured(start_mock: StartMock) -> None:
    server = await start_mock(MockConfig(first_s=0.05, gap_s=0.001))
    observer = RecordingObserver(stop_after=4)
    finished = await run_in_workers(job_of(2000, LoadSchedule(4)), endpoint_of(server.url), 2, observer)
    outcomes = [record.outcome for record in finished.run.records]
    assert outcomes.count(RequestOutcome.OK) >= 4
    assert set(outcomes) <= {RequestOutcome.OK, RequestOutcome.INTERRUPTED}
    assert len(outcomes) < 2000


async def test_a_signal_to_the_parent_ends_the_run_and_is_noted(start_mock: StartMock) -> None:
    server = await start_mock(MockConfig(first_s=0.01, gap_s=3600))
    observer = RecordingObserver(lambda: os.kill(os.getpid(), signal.SIGTERM))
    finished = await run_in_workers(job_of(4, LoadSchedule(2)), endpoint_of(server.url), 2, observer)
    assert finished.run.interrupted
    assert {record.outcome for record in finished.run.records} <= {RequestOutcome.INTERRUPTED}


async def test_an_interrupt_before_the_workers_are_ready_is_no_dead_worker(start_mock: StartMock) -> None:
    server = await start_mock()
    # It comes as soon as the workers are started, which takes them longer than a turn of this loop.
    asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGINT)
    with pytest.raises(InterruptedEarly):
        await run_in_workers(job_of(4, LoadSchedule(2)), endpoint_of(server.url), 2, NullObserver())


async def test_a_worker_that_dies_ends_the_run_and_the_other_workers(start_mock: StartMock) -> None:
    server = await start_mock(MockConfig(first_s=0.01, gap_s=3600))
    children = multiprocessing.active_children

    def kill_one() -> None:
        os.kill(children()[0].pid or 0, signal.SIGKILL)

    with pytest.raises(LoadTestError, match=r"a worker process died.*--workers 1"):
        await run_in_workers(job_of(4, LoadSchedule(4)), endpoint_of(server.url), 2, RecordingObserver(kill_one))
    assert not children()


async def test_a_second_interrupt_is_pythons_own() -> None:
    stops: list[bool] = []
    with on_interrupt(lambda: stops.append(True)) as interrupted:
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.wait_for(interrupted.wait(), 10)
        assert stops == [True]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("requested", "load", "cores", "count", "reason"),
    [
        (None, LoadSchedule(1), 8, 1, "1 process: 1 stream at 250 a process"),
        (None, LoadSchedule(250), 8, 1, "1 process: 250 streams"),
        (None, LoadSchedule(251), 8, 2, "2 processes: 251 streams"),
        (None, LoadSchedule(4096), 2, 2, "2 processes, one a core: too few for 4096 streams"),
        (3, LoadSchedule(32), 2, 3, "3 processes, as --workers says"),
        (None, LoadSchedule(None, times_s=tuple(i / 600 for i in range(1200))), 8, 3, "600 starts in a second"),
        (None, LoadSchedule(None, times_s=(0.0, 0.5, 1.5)), 8, 1, "2 starts in a second at 250 a process"),
        (None, LoadSchedule(1000, times_s=(0.0, 1.0)), 8, 4, "1000 streams"),
        (None, LoadSchedule(None, times_s=()), 8, 1, "a load of unknown size"),
    ],
)
def test_the_number_of_processes_follows_the_load(
    requested: int | None, load: LoadSchedule, cores: int, count: int, reason: str
) -> None:
    worker_count = choose_worker_count(requested, load, cores)
    assert worker_count.count == count
    assert reason in worker_count.reason


def test_there_is_a_usable_core() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
