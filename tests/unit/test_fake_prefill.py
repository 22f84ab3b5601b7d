"""The fake engine's prefix cache and prefill time, on a clock that only its own sleeps move."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.engine.fake import FakeEngine, FakeEngineConfig, Fault, FaultKind
from serve_app.engine.fake_cache import FakeCache, PageChain
from serve_app.protocol.messages import WIRE_VERSION, AttemptRequest, RequestSpec, TokenDelta, encode_tokens
from serve_app.protocol.pages import ROOT, page_hash

PAGE = 256


@dataclass
class Run:
    """An engine, the deltas of each step, and when they came."""

    now_s: float = 0.0
    steps: list[tuple[float, list[TokenDelta]]] = field(default_factory=list)
    engine: FakeEngine = field(init=False)

    def sink(self, deltas: Sequence[TokenDelta]) -> None:
        self.steps.append((self.now_s, list(deltas)))

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        await asyncio.sleep(0)

    def first(self, attempt_id: str) -> tuple[float, TokenDelta]:
        """When its first delta came, and the delta."""
        return next((at, one) for at, deltas in self.steps for one in deltas if one.attempt_id == attempt_id)

    async def send(self, name: str, prompt: Sequence[int], **changes: Any) -> TokenDelta:
        """Run a request to its end: its first delta."""
        await self.engine.run(attempt(name, prompt, **changes))
        return self.first(name)[1]


def attempt(
    name: str, prompt: Sequence[int], max_tokens: int = 1, images: Sequence[str] = (), emitted: Sequence[int] = ()
) -> AttemptRequest:
    spec = RequestSpec(name, encode_tokens(list(prompt)), max_tokens, 0, True, [], 0, [], images=list(images))
    return AttemptRequest(WIRE_VERSION, name, "ingress", spec, list(emitted))


@asynccontextmanager
async def started(**settings: Any) -> AsyncIterator[Run]:
    run = Run()
    config = FakeEngineConfig(**{"max_model_len": 100_000, "prefix_caching": True, **settings})
    run.engine = FakeEngine(config, run.sink, clock=lambda: run.now_s, sleep=run.sleep)
    await run.engine.start(lambda _: None)
    try:
        yield run
    finally:
        await run.engine.shutdown()


def prompt(tokens: int, seed: int = 0) -> list[int]:
    return [(seed * 7919 + number) % 5000 for number in range(tokens)]


async def test_a_prompt_takes_the_time_of_the_tokens_that_are_not_cached() -> None:
    async with started(prefill_tokens_per_s=1000.0) as run:
        await run.send("first", prompt(4000))
        assert run.now_s == pytest.approx(4.0)
        delta = await run.send("again", [*prompt(4000), 1, 2, 3])
        assert delta.cached_tokens == 15 * PAGE
        assert run.now_s == pytest.approx(4.0 + 0.163)


async def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    async with started() as run:
        await run.send("first", prompt(2 * PAGE))
        assert (await run.send("again", prompt(2 * PAGE))).cached_tokens == PAGE


async def test_requests_decode_while_a_prompt_is_computed_in_chunks() -> None:
    async with started(prefill_tokens_per_s=1000.0, max_num_batched_tokens=501, gap_s=0.1) as run:
        streaming = asyncio.create_task(run.engine.run(attempt("streams", prompt(1, 1), max_tokens=20)))
        await run.engine.first_token_sent.wait()
        began = len(run.steps)
        await run.send("long", prompt(2000))
        await streaming
        steps = run.steps[began:]
        chunks = [number for number, (_, deltas) in enumerate(steps) if deltas[-1].attempt_id == "long"]
        assert chunks[0] in (3, 4)  # four chunks of 500, each with a token of the other
        assert all(deltas[0].attempt_id == "streams" for _, deltas in steps[: chunks[0]])
        assert steps[2][0] - steps[1][0] == pytest.approx(0.6)


async def test_a_second_prompt_waits_for_the_first() -> None:
    async with started(prefill_tokens_per_s=1000.0, max_num_batched_tokens=500) as run:
        await asyncio.gather(run.send("a", prompt(2000, 1)), run.send("b", prompt(3000, 2)))
        assert run.first("a")[0] == pytest.approx(2.0)
        assert run.first("b")[0] == pytest.approx(5.0)


async def test_two_requests_that_start_together_compute_what_they_share_once() -> None:
    async with started(prefill_tokens_per_s=1000.0) as run:
        await asyncio.gather(run.send("a", prompt(1025)), run.send("b", prompt(1025)))
        assert run.first("a")[1].cached_tokens == 0
        assert run.first("b")[1].cached_tokens == 4 * PAGE


async def test_a_prompt_that_goes_on_with_an_answer_finds_it() -> None:
    async with started() as run:
        await run.engine.run(attempt("first", prompt(200), max_tokens=100))
        said = [token for _, deltas in run.steps for delta in deltas for token in delta.token_ids]
        assert (await run.send("next", [*prompt(200), *said, 1])).cached_tokens == PAGE


async def test_what_was_used_longest_ago_is_evicted_first() -> None:
    async with started(kv_cache_tokens=8 * PAGE) as run:
        for name in "abc":
            await run.send(name, prompt(3 * PAGE, ord(name)))
        assert (await run.send("c again", [*prompt(3 * PAGE, ord("c")), 1])).cached_tokens == 3 * PAGE
        assert (await run.send("b again", [*prompt(3 * PAGE, ord("b")), 1])).cached_tokens == 3 * PAGE
        first = (await run.send("a again", [*prompt(3 * PAGE, ord("a")), 1])).cached_tokens
        assert first is not None and first < 3 * PAGE
        changes = run.engine.cache_changes()
        assert changes is not None and len(changes.stored) <= 8


async def test_a_request_waits_for_room_and_pages_in_use_stay() -> None:
    async with started(kv_cache_tokens=8 * PAGE, gap_s=0.1) as run:
        held = prompt(5 * PAGE, 1)
        running = asyncio.create_task(run.engine.run(attempt("holds", held, max_tokens=50)))
        await run.engine.first_token_sent.wait()
        await run.send("waits", prompt(4 * PAGE, 2))
        assert running.done()
        assert run.first("waits")[0] > 4.8
        held_now = (await run.send("again", [*held, 1])).cached_tokens
        assert held_now is not None and held_now >= 3 * PAGE


async def test_a_request_named_by_an_eviction_finds_nothing() -> None:
    storm = Fault(FaultKind.EVICT, at_token=0, request_ids=frozenset({"storm"}))
    async with started(faults=(storm,)) as run:
        await run.send("first", prompt(4 * PAGE))
        pages = run.engine.cache_changes()
        assert pages is not None and len(pages.stored) == 4
        assert (await run.send("storm", prompt(3 * PAGE, 1), max_tokens=4)).cached_tokens == 0
        changes = run.engine.cache_changes()
        assert changes is not None and set(changes.removed) == set(pages.stored)
        assert len(changes.stored) == 3


async def test_images_belong_to_the_first_page() -> None:
    async with started() as run:
        await run.send("one", prompt(2 * PAGE), images=["x"])
        changes = run.engine.cache_changes()
        first = page_hash(ROOT, prompt(PAGE), ["x"])
        assert changes is not None
        assert changes.stored == [first, page_hash(first, prompt(2 * PAGE)[PAGE:])]
        assert (await run.send("other", [*prompt(2 * PAGE), 1], images=["y"])).cached_tokens == 0
        assert (await run.send("same", [*prompt(2 * PAGE), 1], images=["x"])).cached_tokens == 2 * PAGE


async def test_without_prefix_caching_nothing_is_kept_or_told() -> None:
    async with started(prefix_caching=False) as run:
        await run.send("first", prompt(1000))
        assert (await run.send("again", prompt(1000))).cached_tokens == 0
        assert run.engine.cache_changes() is None


async def test_an_attempt_that_continues_another_computes_its_tokens_too() -> None:
    async with started(prefill_tokens_per_s=1000.0) as run:
        resumed = msgspec.structs.replace(attempt("r", prompt(1000), max_tokens=501), emitted_token_ids=[5] * 500)
        await run.engine.run(resumed)
        assert run.now_s == pytest.approx(1.5)


@given(
    st.lists(st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=6), st.booleans()), max_size=30),
    st.integers(1, 8),
)
def test_the_log_always_tells_what_the_cache_holds(requests: list[tuple[list[int], bool]], capacity: int) -> None:
    cache, told, running = FakeCache(capacity), set[int](), list[list[int]]()
    for shape, ends in requests:
        chain = PageChain([part for part in shape for _ in range(PAGE)], ())
        pages = [chain[number] for number in range(len(chain))]
        for page in pages:
            cache.use(page)
        running.append(pages)
        if ends:
            cache.release(running.pop(0))
        cache.make_room(0)
        if (changes := cache.log.take()) is not None:
            assert not set(changes.removed) - told
            told = (told - set(changes.removed)) | set(changes.stored)
        held = {page for pages in running for page in pages}
        assert held <= told
        assert len(told) <= max(capacity, len(held))
        assert cache.cached(chain, 99) == next((n for n, page in enumerate(pages) if page not in told), len(pages))
