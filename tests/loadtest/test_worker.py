"""A worker starts requests when they are due, never more at once than allowed, and keeps what was measured."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from dataclasses import replace
from itertools import pairwise
from time import perf_counter_ns

import msgspec
import numpy as np
import pytest

from loadtest.data.prompt import Prompt
from loadtest.errors import RequestOutcome
from loadtest.load.runner import FinishedRequest, RunResult
from loadtest.load.schedule import LoadSchedule
from loadtest.load.self_check import TICK_S, LoopLagMonitor, gc_paused
from loadtest.load.worker import sessions_of
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


async def test_a_conversation_has_its_history_and_a_session_id(start_mock: StartMock, run_job: RunJob) -> None:
    server = await start_mock()
    talk = [Prompt(text=f"turn {turn}", output_tokens=2, session=5, turn=turn) for turn in range(3)]
    finished = await run_job(server.url, [*talk, *prompts(1)], session_prefix="run-", load=LoadSchedule(1))
    assert all(record.ok for record in finished.run.records)
    roles = [[msgspec.json.decode(message)["role"] for message in asked.messages] for asked in server.requests]
    assert roles == [
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


async def test_a_conversation_ends_when_the_time_is_up(start_mock: StartMock, run_job: RunJob) -> None:
    server = await start_mock(MockConfig(first_s=0.03, gap_s=0.001))
    talk = [Prompt(text="x", output_tokens=1, session=0, turn=turn, think_s=0.01 * turn) for turn in range(1000)]
    run = (await run_job(server.url, talk, load=LoadSchedule(2, stop_after_s=0.1))).run
    assert 2 <= len(run.records) < 1000
    assert run.duration_s < 0.5, "the pause before a turn that is too late is not waited for"


class StopAt:
    """An observer that ends the run at the n-th answer."""

    def __init__(self, answers: int) -> None:
        self._left = answers

    def on_start(self, begin_ns: int, stop: Callable[[], None]) -> None:  # noqa: ARG002  # its protocol's signature
        self._stop = stop

    def on_progress(self, started: int, ended: list[FinishedRequest]) -> None:  # noqa: ARG002  # its protocol's signature
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


async def test_connections_are_used_again_by_default(start_mock: StartMock, run_job: RunJob) -> None:
    server = await start_mock()
    kept = await run_job(server.url, prompts(6), load=LoadSchedule(1))
    assert sum(record.connect_ns > 0 for record in kept.run.records) == 0, "opened before the clock started"
    fresh = await run_job(server.url, prompts(6), load=LoadSchedule(1), reuse_connections=False)
    assert all(record.connect_ns > 0 for record in fresh.run.records)


def test_prompts_group_into_sessions_in_order() -> None:
    sessions = [3, -1, 3, 4, -1]
    found = sessions_of([Prompt(text="x", session=session) for session in sessions])
    assert found == [[0, 2], [1], [3], [4]]


async def test_a_request_starts_when_the_one_before_it_in_its_slot_has_ended(
    start_mock: StartMock, run_job: RunJob
) -> None:
    server = await start_mock()
    records = (await run_job(server.url, prompts(5), load=LoadSchedule(1))).run.records
    for before, after in pairwise(records):
        assert before.end_ns <= after.intended_ns <= after.start_ns


async def test_think_time_comes_between_an_answer_and_the_next_turn(start_mock: StartMock, run_job: RunJob) -> None:
    server = await start_mock()
    talk = [Prompt(text="x", output_tokens=2, session=0, turn=turn, think_s=0.05) for turn in range(3)]
    finished = await run_job(server.url, talk)
    first, second, third = finished.run.records
    assert first.start_ns - finished.run.begin_ns < 50_000_000, "none before the first"
    assert second.start_ns - first.end_ns >= 50_000_000
    assert third.start_ns - second.end_ns >= 50_000_000


async def test_a_conversation_that_is_stopped_between_turns_ends(start_mock: StartMock, run_job: RunJob) -> None:
    server = await start_mock()
    talk = [Prompt(text="x", output_tokens=2, session=0, turn=turn, think_s=0.05) for turn in range(3)]
    finished = await run_job(server.url, talk, observer=StopAt(1))
    assert [record.outcome for record in finished.run.records] == [RequestOutcome.OK]


async def test_an_open_loop_that_is_stopped_starts_nothing_more(start_mock: StartMock, run_job: RunJob) -> None:
    server = await start_mock()
    times = (0.0, 0.0, 0.0, 3600.0)
    finished = await run_job(server.url, prompts(4), load=LoadSchedule(1, times_s=times), observer=StopAt(1))
    first, *others = [record.outcome for record in finished.run.records]
    assert first is RequestOutcome.OK
    # Its slot is free before it is parsed, so the second may have started.
    assert others in ([], [RequestOutcome.INTERRUPTED])
    assert finished.run.duration_s < 60


async def test_an_open_loop_starts_nothing_after_its_end(start_mock: StartMock, run_job: RunJob) -> None:
    server = await start_mock()
    load = LoadSchedule(None, times_s=(0.0, 0.05, 3600.0), stop_after_s=0.3)
    finished = await run_job(server.url, prompts(3), load=load)
    assert [record.index for record in finished.run.records] == [0, 1]


async def test_a_late_request_keeps_its_intended_time(start_mock: StartMock, run_job: RunJob) -> None:
    server = await start_mock(MockConfig(first_s=0.05, gap_s=0.001))
    load = LoadSchedule(1, times_s=(0.0, 0.01))
    run = (await run_job(server.url, prompts(2), load=load)).run
    assert run.records[1].intended_ns - run.begin_ns == pytest.approx(10_000_000, abs=1000)
    assert run.records[1].start_ns >= run.records[0].end_ns


async def test_requests_have_the_runs_headers_and_an_id_of_their_own(start_mock: StartMock, run_job: RunJob) -> None:
    server = await start_mock()
    await run_job(server.url, prompts(3), load=LoadSchedule(1), headers={"x-tag": "a"}, request_id_prefix="run-")
    assert [headers["x-request-id"] for headers in server.headers] == ["run-0", "run-1", "run-2"]
    assert {headers["x-tag"] for headers in server.headers} == {"a"}


async def test_a_session_header_can_be_left_out(start_mock: StartMock, run_job: RunJob) -> None:
    server = await start_mock()
    await run_job(server.url, [Prompt(text="x", output_tokens=1, session=3)], session_header="")
    assert not any("session" in name for name in server.headers[0])


async def test_texts_are_kept_where_they_are_wanted(start_mock: StartMock, run_job: RunJob) -> None:
    server = await start_mock()
    kept = await run_job(server.url, prompts(1), keep_text=True)
    assert kept.run.records[0].text == " word" * 4
    assert not (await run_job(server.url, prompts(1))).run.records[0].text


async def test_a_timeout_ends_only_requests_that_are_past_it(start_mock: StartMock, run_job: RunJob) -> None:
    server = await start_mock(MockConfig(first_s=0.001, gap_s=0.001, fail_every=3, fault="silent"))
    finished = await run_job(server.url, prompts(6), load=LoadSchedule(6), timeout_s=0.3)
    outcomes = [record.outcome for record in finished.run.records]
    assert outcomes.count(RequestOutcome.TIMEOUT) == 2
    assert outcomes.count(RequestOutcome.OK) == 4
    late = [record for record in finished.run.records if not record.ok]
    assert all(record.end_ns - record.start_ns >= 300_000_000 for record in late)
    assert {record.error for record in late} == {"no end within 0.3 s"}


async def test_the_loop_lag_of_a_blocked_loop_is_seen() -> None:
    monitor = LoopLagMonitor()
    monitor.start()
    end_ns = perf_counter_ns() + 60_000_000
    while perf_counter_ns() < end_ns:
        pass  # the loop is blocked
    for _ in range(3):
        await asyncio.sleep(0)  # the loop calls its late timers
    check = monitor.stop()
    assert check.loop_lag_max_ms >= 60 - TICK_S * 1e3 - 1
    assert check.wall_s >= 0.06 and 0 < check.cpu_ratio <= 1.2
    assert not replace(check, loop_lag_p99_ms=11.0).healthy
    assert not replace(check, cpu_s=check.wall_s, loop_lag_p99_ms=0.0).healthy
    assert replace(check, cpu_s=0.0, loop_lag_p99_ms=0.0).healthy


def test_the_garbage_collector_rests_while_the_clock_runs() -> None:
    with gc_paused():
        assert not gc.isenabled()
    assert gc.isenabled()
