"""A worker sends what it is given when it is due, never more at once than allowed, and keeps what was measured."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable

import msgspec
import numpy as np
import pytest

from loadtest.api.requests import Api, BodySpec
from loadtest.data.prompt import Prompt
from loadtest.errors import RequestOutcome
from loadtest.http.address import parse_url
from loadtest.http.pool import Endpoint
from loadtest.load.run import FinishedRequest, InterruptedEarly, NullObserver, RunResult
from loadtest.load.schedule import LoadSchedule
from loadtest.load.worker import WorkerJob, sessions_of
from loadtest.load.worker_processes import run_in_workers
from loadtest.metrics.steady_state import inflight
from loadtest.mock.answers import MockConfig
from loadtest.mock.server import MockServer

StartMock = Callable[..., Awaitable[MockServer]]
RunJob = Callable[..., Awaitable[RunResult]]


def prompts(count: int, tokens: int = 4) -> list[Prompt]:
    return [Prompt(text=f"prompt {number}", output_tokens=tokens) for number in range(count)]


async def test_a_closed_loop_never_has_more_in_flight_than_its_slots(start_mock: StartMock, run_job: RunJob) -> None:
    server = await start_mock()
    finished = await run_job(server.url, prompts(20), load=LoadSchedule(3))
    _, level = inflight(finished.run.records)
    assert level.max() == 3
    assert [record.index for record in finished.run.records] == list(range(20))
    assert all(record.ok for record in finished.run.records)


async def test_an_open_loop_starts_no_request_before_its_time(start_mock: StartMock, run_job: RunJob) -> None:
    server = await start_mock()
    times = (0.0, 0.01, 0.02, 0.05)
    finished = await run_job(server.url, prompts(4), load=LoadSchedule(None, times_s=times))
    run = finished.run
    intended = [(record.intended_ns - run.begin_ns) / 1e9 for record in run.records]
    assert np.allclose(intended, times, atol=1e-6)
    assert all(record.start_ns >= record.intended_ns for record in run.records)


async def test_a_capped_open_loop_shows_the_wait_in_the_client(start_mock: StartMock, run_job: RunJob) -> None:
    server = await start_mock(MockConfig(first_s=0.05, gap_s=0.001))
    finished = await run_job(server.url, prompts(3), load=LoadSchedule(1, times_s=(0.0, 0.0, 0.0)))
    waits = [record.start_ns - record.intended_ns for record in finished.run.records]
    assert waits[0] < waits[1] < waits[2]
    assert waits[1] >= 50_000_000


async def test_a_conversation_carries_what_was_said_and_names_its_session(
    start_mock: StartMock, run_job: RunJob
) -> None:
    server = await start_mock()
    talk = [Prompt(text=f"turn {turn}", output_tokens=2, session=5, turn=turn) for turn in range(3)]
    finished = await run_job(server.url, [*talk, *prompts(1)], session_prefix="run-", load=LoadSchedule(1))
    assert all(record.ok for record in finished.run.records)
    said = [[msgspec.json.decode(message)["role"] for message in asked.messages] for asked in server.requests]
    assert said == [
        ["user"],
        ["user", "assistant", "user"],
        ["user", "assistant", "user", "assistant", "user"],
        ["user"],
    ]
    assert msgspec.json.decode(server.requests[1].messages[1])["content"] == " word word"
    assert [headers.get("x-session-id") for headers in server.headers] == ["run-5"] * 3 + [None]


async def test_a_conversation_that_breaks_is_not_continued(start_mock: StartMock, run_job: RunJob) -> None:
    server = await start_mock(MockConfig(first_s=0.005, gap_s=0.001, fail_every=2, fault="error"))
    talk = [Prompt(text="x", output_tokens=2, session=0, turn=turn) for turn in range(4)]
    finished = await run_job(server.url, talk)
    assert [record.outcome for record in finished.run.records] == [RequestOutcome.OK, RequestOutcome.SERVER_ERROR]


async def test_nothing_starts_after_the_time_is_up(start_mock: StartMock, run_job: RunJob) -> None:
    server = await start_mock(MockConfig(first_s=0.03, gap_s=0.001))
    finished = await run_job(server.url, prompts(1000, 1), load=LoadSchedule(2, stop_after_s=0.1))
    run = finished.run
    assert 2 <= len(run.records) < 1000
    assert all((record.start_ns - run.begin_ns) / 1e9 < 0.2 for record in run.records)


class StopAt:
    """An audience that ends the run at the n-th answer."""

    def __init__(self, answers: int) -> None:
        self._left = answers

    def on_start(self, begin_ns: int, stop: Callable[[], None]) -> None:  # noqa: ARG002  # an audience hears more than this one needs
        self._stop = stop

    def on_progress(self, started: int, ended: list[FinishedRequest]) -> None:  # noqa: ARG002  # an audience hears more than this one needs
        self._left -= len(ended)
        if self._left <= 0:
            self._stop()


async def test_stopping_keeps_what_ended_and_calls_the_rest_interrupted(start_mock: StartMock, run_job: RunJob) -> None:
    server = await start_mock(MockConfig(first_s=0.01, gap_s=0.001))
    finished = await run_job(server.url, prompts(500), load=LoadSchedule(4), observer=StopAt(8))
    outcomes = [record.outcome for record in finished.run.records]
    assert outcomes.count(RequestOutcome.OK) >= 8
    assert set(outcomes) <= {RequestOutcome.OK, RequestOutcome.INTERRUPTED}
    assert len(outcomes) < 500
    assert not any(record.failed for record in finished.run.records)


async def test_connections_are_used_again_unless_told_otherwise(start_mock: StartMock, run_job: RunJob) -> None:
    server = await start_mock()
    kept = await run_job(server.url, prompts(6), load=LoadSchedule(1))
    assert sum(record.connect_ns > 0 for record in kept.run.records) == 0, "opened before the clock started"
    fresh = await run_job(server.url, prompts(6), load=LoadSchedule(1), reuse_connections=False)
    assert all(record.connect_ns > 0 for record in fresh.run.records)


async def test_worker_processes_send_every_request_once(start_mock: StartMock) -> None:

    server = await start_mock()
    job = WorkerJob(prompts=prompts(12), body_spec=BodySpec(Api.CHAT, "mock", ignore_eos=True), load=LoadSchedule(4))
    finished = await run_in_workers(job, Endpoint(parse_url(server.url), "127.0.0.1"), 2, NullObserver())
    assert [record.index for record in finished.run.records] == list(range(12))
    assert all(record.ok for record in finished.run.records)
    assert len(finished.checks) == 2
    assert all(record.start_ns >= finished.run.begin_ns for record in finished.run.records)


async def test_stopping_worker_processes_keeps_what_they_measured(start_mock: StartMock) -> None:

    server = await start_mock(MockConfig(first_s=0.05, gap_s=0.001))
    job = WorkerJob(prompts=prompts(2000), body_spec=BodySpec(Api.CHAT, "mock", ignore_eos=True), load=LoadSchedule(4))
    finished = await run_in_workers(job, Endpoint(parse_url(server.url), "127.0.0.1"), 2, StopAt(4))
    outcomes = [record.outcome for record in finished.run.records]
    assert outcomes.count(RequestOutcome.OK) >= 4
    assert set(outcomes) <= {RequestOutcome.OK, RequestOutcome.INTERRUPTED}
    assert len(outcomes) < 2000


def test_prompts_group_into_sessions_in_order() -> None:
    sessions = [3, -1, 3, 4, -1]
    found = sessions_of([Prompt(text="x", session=session) for session in sessions])
    assert found == [[0, 2], [1], [3], [4]]


async def test_an_interrupt_before_the_workers_are_ready_is_no_dead_worker(start_mock: StartMock) -> None:
    server = await start_mock()
    job = WorkerJob(prompts=prompts(4), body_spec=BodySpec(Api.CHAT, "mock"), load=LoadSchedule(2))
    # It comes as soon as the workers are started, which takes them longer than a turn of this loop.
    asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGINT)
    with pytest.raises(InterruptedEarly):
        await run_in_workers(job, Endpoint(parse_url(server.url), "127.0.0.1"), 2, NullObserver())
