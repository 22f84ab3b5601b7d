"""Every way a request can end has its own outcome, and keeps the server's message."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from loadtest.api.requests import Api
from loadtest.data.prompt import Prompt
from loadtest.errors import RequestOutcome
from loadtest.load.runner import RunResult
from loadtest.mock.answers import MockConfig
from loadtest.mock.server import MockServer

StartMock = Callable[..., Awaitable[MockServer]]
RunJob = Callable[..., Awaitable[RunResult]]

PROMPTS = [Prompt(text="hello", prompt_tokens=2, output_tokens=12) for _ in range(4)]
FAULTS = {
    "full": (RequestOutcome.FULL, "HTTP 429", "mock full"),
    "unavailable": (RequestOutcome.UNAVAILABLE, "HTTP 503", "mock unavailable"),
    "error": (RequestOutcome.SERVER_ERROR, "HTTP 500", "mock error"),
    "event": (RequestOutcome.ERROR_EVENT, "engine died", "engine died"),
    "cut": (RequestOutcome.CUT, "closed the connection", "data: "),
    "short": (RequestOutcome.SHORT, "6 tokens of the forced 12", "data: "),
    "garbage": (RequestOutcome.MALFORMED, "JSON", "not json"),
}


def spoiled(fault: str) -> MockConfig:
    return MockConfig(first_s=0.005, gap_s=0.001, fail_every=2, fault=fault)


@pytest.mark.parametrize("api", list(Api))
@pytest.mark.parametrize("fault", sorted(FAULTS))
async def test_a_fault_has_its_own_outcome_and_keeps_the_body(
    start_mock: StartMock, run_job: RunJob, fault: str, api: Api
) -> None:
    server = await start_mock(spoiled(fault))
    finished = await run_job(server.url, PROMPTS, api=api)
    outcome, error, body = FAULTS[fault]
    failed = [record for record in finished.run.records if record.failed]
    assert sorted(record.ok for record in finished.run.records) == [False, False, True, True]
    for record in failed:
        assert record.outcome is outcome
        assert error in record.error
        assert body in record.body


async def test_retry_after_is_kept_and_nothing_is_sent_again(start_mock: StartMock, run_job: RunJob) -> None:
    server = await start_mock(spoiled("full"))
    finished = await run_job(server.url, PROMPTS)
    assert {record.retry_after_s for record in finished.run.records if record.failed} == {7.0}
    assert len(server.requests) == len(PROMPTS)


async def test_a_server_that_falls_silent_is_a_timeout(start_mock: StartMock, run_job: RunJob) -> None:
    server = await start_mock(spoiled("silent"))
    finished = await run_job(server.url, PROMPTS[:2], timeout_s=0.2)
    assert [record.outcome for record in finished.run.records] == [RequestOutcome.OK, RequestOutcome.TIMEOUT]


async def test_nobody_listening_is_a_record_per_request(run_job: RunJob) -> None:
    server = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    finished = await run_job(f"http://127.0.0.1:{port}", PROMPTS)
    assert {record.outcome for record in finished.run.records} == {RequestOutcome.NOT_CONNECTED}
    assert len(finished.run.records) == len(PROMPTS)


async def test_vllms_client_would_call_a_short_or_broken_answer_a_success(
    start_mock: StartMock, run_job: RunJob
) -> None:
    for fault, same in (("short", True), ("event", True), ("cut", False), ("full", False)):
        server = await start_mock(spoiled(fault))
        finished = await run_job(server.url, PROMPTS)
        assert {record.vllm_success for record in finished.run.records if record.failed} == {same}, fault


async def test_ok_records_know_their_times_and_tokens(start_mock: StartMock, run_job: RunJob) -> None:
    server = await start_mock(MockConfig(first_s=0.005, gap_s=0.001, tokens_per_chunk=3, reasoning_chunks=2))
    finished = await run_job(server.url, PROMPTS)
    for record in finished.run.records:
        assert record.ok
        assert record.output_tokens == 12
        assert record.chunk_has_token.tolist() == [False, True, True, True, True]
        assert record.start_ns <= record.sent_ns <= record.first_byte_ns <= record.first_token_ns
        assert record.first_token_ns == record.first_reasoning_ns < record.first_visible_ns <= record.end_ns
        assert record.finish_reason == "length"
