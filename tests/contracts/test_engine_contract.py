"""What every engine promises its replica. The fake passes the same suite as vLLM, so tests of others may trust it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from serve_app.engine.fake import FakeEngine
from serve_app.engine.vllm_process import engine_core_processes, is_alive
from serve_app.protocol.errors import AttemptRefused, EngineDead
from serve_app.protocol.pages import PAGE_TOKENS
from tests.contracts.harness import (
    CRASHES,
    LENGTH,
    MAX_MODEL_LEN,
    MAX_NUM_SEQS,
    MTP_ARGV,
    START_TIMEOUT_S,
    STOP,
    Subject,
    pages_of,
    start_fake,
    start_vllm,
)

pytestmark = [
    pytest.mark.usefixtures("engine_environment"),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(START_TIMEOUT_S),
]


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=["fake", pytest.param("vllm", marks=pytest.mark.engine)]
)
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    started = await (start_fake() if request.param == "fake" else start_vllm(*MTP_ARGV))
    yield started
    await started.engine.shutdown()


async def test_a_started_engine_says_what_it_settled_on(subject: Subject) -> None:
    assert subject.info.max_model_len == MAX_MODEL_LEN
    assert subject.info.max_num_seqs == MAX_NUM_SEQS
    assert subject.info.kv_cache_tokens >= MAX_MODEL_LEN
    await subject.engine.check()
    assert subject.engine.stats().unfinished == 0


async def test_tokens_arrive_once_each_and_stop_at_max_tokens(subject: Subject) -> None:
    attempt = subject.attempt(max_tokens=17)
    steps_before = subject.engine.stats().steps
    tokens = await subject.run(attempt)
    assert len(tokens) == 17
    assert subject.last(attempt).finish_reason == LENGTH
    assert subject.sink.deltas[attempt.attempt_id][0].position == 0
    assert subject.sink.deltas[attempt.attempt_id][0].cached_tokens is not None
    assert subject.engine.stats().steps > steps_before


async def test_the_first_delta_says_how_long_its_prefill_took(subject: Subject) -> None:
    attempt = subject.attempt(max_tokens=5)
    loop = asyncio.get_running_loop()
    begun_s = loop.time()
    await subject.run(attempt)
    timing = subject.sink.deltas[attempt.attempt_id][0].timing
    assert timing is not None
    assert timing.engine_queue_s >= 0
    assert 0 < timing.prefill_s <= loop.time() - begun_s


async def test_nothing_compiles_and_waits_for_a_cpu_only_grow(subject: Subject) -> None:
    before = subject.engine.cpu_wait()
    await subject.run(subject.attempt(max_tokens=8))
    after = subject.engine.cpu_wait()
    assert before, "its processes"
    assert set(before) == set(after)
    assert all(before[pid] <= after[pid] for pid in before)
    assert subject.engine.compilers() == {}
    assert subject.engine.stats().compilations == 0


async def test_the_same_prompt_gives_the_same_tokens(subject: Subject) -> None:
    assert await subject.run(subject.attempt(max_tokens=12)) == await subject.run(subject.attempt(max_tokens=12))


async def test_a_stop_token_ends_the_request_and_is_named(subject: Subject) -> None:
    undisturbed = await subject.run(subject.attempt(max_tokens=24))
    stop = undisturbed[9]
    attempt = subject.attempt(max_tokens=24, stop_token_ids=[stop])
    assert await subject.run(attempt) == undisturbed[: undisturbed.index(stop) + 1]
    assert subject.last(attempt).finish_reason == STOP
    assert subject.last(attempt).stop_reason == stop


async def test_a_resumed_attempt_goes_on_as_if_nothing_had_happened(subject: Subject) -> None:
    undisturbed = await subject.run(subject.attempt(max_tokens=32))
    for emitted in (1, 7, 31):
        attempt = subject.attempt(max_tokens=32, emitted=undisturbed[:emitted])
        assert await subject.run(attempt) == undisturbed[emitted:]
        assert subject.sink.deltas[attempt.attempt_id][0].position == emitted
        assert subject.last(attempt).finish_reason == LENGTH


async def test_an_attempt_with_nothing_left_to_do_ends_at_once(subject: Subject) -> None:
    undisturbed = await subject.run(subject.attempt(max_tokens=8))
    attempt = subject.attempt(max_tokens=8, emitted=undisturbed)
    assert await subject.run(attempt) == []
    assert subject.last(attempt).finish_reason == LENGTH


async def test_requests_beyond_max_num_seqs_wait_and_finish(subject: Subject) -> None:
    attempts = [subject.attempt(max_tokens=40, prompt=range(10 + i, 40 + i)) for i in range(2 * MAX_NUM_SEQS)]
    running = asyncio.gather(*(subject.engine.run(attempt) for attempt in attempts))
    await subject.sink.wait_for_tokens(attempts[0].attempt_id, 2)
    stats = subject.engine.stats()
    assert stats.unfinished == 2 * MAX_NUM_SEQS
    assert 0 < stats.running <= MAX_NUM_SEQS
    assert stats.kv_usage_ratio > 0
    await running
    assert all(len(subject.sink.tokens(attempt.attempt_id)) == 40 for attempt in attempts)
    assert max(len(step) for step in subject.sink.steps) == MAX_NUM_SEQS, "a step's deltas come together"
    assert subject.engine.stats().unfinished == 0


async def test_an_abort_ends_the_attempt_without_a_finish_and_frees_its_slot(subject: Subject) -> None:
    attempt = subject.attempt(max_tokens=450)
    run = asyncio.create_task(subject.engine.run(attempt))
    await subject.sink.wait_for_tokens(attempt.attempt_id, 3)
    await subject.engine.abort(attempt.attempt_id)
    await run
    assert subject.last(attempt).finish_reason is None
    await expect_no_more_deltas(subject, attempt.attempt_id)
    await subject.engine.abort("never heard of")


async def test_cancelling_the_run_aborts_the_attempt(subject: Subject) -> None:
    attempt = subject.attempt(max_tokens=450)
    run = asyncio.create_task(subject.engine.run(attempt))
    await subject.sink.wait_for_tokens(attempt.attempt_id, 3)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    await expect_no_more_deltas(subject, attempt.attempt_id)


async def expect_no_more_deltas(subject: Subject, attempt_id: str) -> None:
    """A freed slot lets the engine run as many others as it ever could, and none of what was freed comes along."""
    assert subject.engine.stats().unfinished == 0
    seen = len(subject.sink.tokens(attempt_id))
    others = [subject.attempt(max_tokens=30, prompt=range(60 + i, 90 + i)) for i in range(MAX_NUM_SEQS)]
    running = asyncio.gather(*(subject.engine.run(other) for other in others))
    await asyncio.gather(*(subject.sink.wait_for_tokens(other.attempt_id, 1) for other in others))
    assert subject.engine.stats().running == MAX_NUM_SEQS
    await running
    assert len(subject.sink.tokens(attempt_id)) == seen


async def test_a_prefix_that_was_computed_is_not_computed_again(subject: Subject) -> None:
    prompt = [100 + number % 700 for number in range(400)]
    first, again = subject.attempt(max_tokens=4, prompt=prompt), subject.attempt(max_tokens=4, prompt=[*prompt, 90, 91])
    tokens = await subject.run(first)
    assert subject.cached_tokens(first) == 0
    await subject.run(again)
    cached = subject.cached_tokens(again)
    assert cached is not None and PAGE_TOKENS <= cached <= len(prompt)
    assert await subject.run(subject.attempt(max_tokens=4, prompt=prompt)) == tokens


async def test_the_cache_is_named_page_by_page_until_it_is_evicted(subject: Subject) -> None:
    assert subject.info.reports_cache
    assert subject.evict is not None
    prompt = [800 - number % 700 for number in range(300)]
    pages = pages_of(prompt)
    await subject.run(subject.attempt(max_tokens=4, prompt=prompt))
    await subject.wait_for_pages(held=pages)
    await subject.evict()
    await subject.wait_for_pages(gone=pages)
    assert not subject.pages.pages
    assert subject.engine.cache_changes() is None
    again = subject.attempt(max_tokens=4, prompt=prompt)
    await subject.run(again)
    assert subject.cached_tokens(again) == 0
    await subject.wait_for_pages(held=pages)


async def test_pages_of_an_answer_are_named_like_those_of_a_prompt(subject: Subject) -> None:
    """That a prompt goes on with an answer does not make vLLM find the answer: sliding windows keep less."""
    prompt = [300 + number % 500 for number in range(200)]
    tokens = await subject.run(subject.attempt(max_tokens=100, prompt=prompt))
    await subject.wait_for_pages(held=pages_of([*prompt, *tokens]))


async def test_a_prompt_that_fills_the_context_is_refused(subject: Subject) -> None:
    with pytest.raises(AttemptRefused, match=str(MAX_MODEL_LEN)):
        await subject.engine.run(subject.attempt(max_tokens=4, prompt=[30] * MAX_MODEL_LEN))
    assert subject.engine.stats().unfinished == 0


async def test_the_context_ends_an_answer_that_reaches_it(subject: Subject) -> None:
    attempt = subject.attempt(max_tokens=100, prompt=[30] * (MAX_MODEL_LEN - 10))
    assert len(await subject.run(attempt)) == 10
    assert subject.last(attempt).finish_reason == LENGTH


async def test_an_attempt_is_not_run_twice_at_a_time(subject: Subject) -> None:
    attempt = subject.attempt(max_tokens=60)
    run = asyncio.create_task(subject.engine.run(attempt))
    await subject.sink.wait_for_tokens(attempt.attempt_id, 1)
    with pytest.raises(AttemptRefused):
        await subject.engine.run(attempt)
    await run
    assert len(subject.sink.tokens(attempt.attempt_id)) == 60


async def test_death_reaches_every_attempt_and_shutdown_may_follow_twice(subject: Subject) -> None:
    """The last test of its engine."""
    attempts = [subject.attempt(max_tokens=450, request_id=f"dies-{i}") for i in range(MAX_NUM_SEQS + 1)]
    runs = [asyncio.create_task(subject.engine.run(attempt)) for attempt in attempts]
    await subject.sink.wait_for_tokens(attempts[0].attempt_id, 2)
    await subject.kill()
    async with asyncio.timeout(5):
        for run in runs:
            with pytest.raises(EngineDead):
                await run
    with pytest.raises(EngineDead):
        await subject.engine.check()
    with pytest.raises(EngineDead):
        await subject.engine.run(subject.attempt(max_tokens=1))
    assert subject.engine.stats().unfinished == 0
    await subject.engine.shutdown()
    await subject.engine.shutdown()


async def test_an_engine_found_stuck_fails_every_attempt_and_leaves_nothing(subject: Subject) -> None:
    """After the death above: an engine of its own."""
    stuck = await (start_fake() if isinstance(subject.engine, FakeEngine) else start_vllm(*MTP_ARGV))
    attempt = stuck.attempt(max_tokens=450)
    run = asyncio.create_task(stuck.engine.run(attempt))
    await stuck.sink.wait_for_tokens(attempt.attempt_id, 2)
    for process in (processes := engine_core_processes()):
        process.suspend()
    stuck.engine.fail("no step for 20 s")
    with pytest.raises(EngineDead, match="no step"):
        await run
    with pytest.raises(EngineDead, match="no step"):
        await stuck.engine.check()
    await stuck.engine.shutdown()
    assert not any(is_alive(process) for process in processes)


async def test_a_fake_engine_crashes_at_the_token_it_was_told() -> None:
    subject = await start_fake()
    crashing = subject.attempt(max_tokens=20, request_id=CRASHES)
    bystander = subject.attempt(max_tokens=100)
    ends = await asyncio.gather(subject.run(crashing), subject.run(bystander), return_exceptions=True)
    assert all(isinstance(end, EngineDead) for end in ends)
    assert len(subject.sink.tokens(crashing.attempt_id)) == 5
    await subject.engine.shutdown()
