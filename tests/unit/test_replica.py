"""What a replica says: of an attempt that did not end (its engine died of it, or not), of its load and of its cache."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field

import pytest

from serve_app.engine.cache_log import CacheMirror
from serve_app.engine.fake import FakeEngine, FakeEngineConfig, Fault, FaultKind
from serve_app.engine.fake_cache import PageChain
from serve_app.engine.replica import EngineReplica
from serve_app.engine.watchdog import WatchdogLimits
from serve_app.protocol.errors import EngineDead, WrongReplica
from serve_app.protocol.messages import (
    WIRE_VERSION,
    AttemptRequest,
    CacheChanges,
    Frame,
    RequestSpec,
    decode_frame,
    decode_info,
    encode_request,
    encode_tokens,
)


def attempt(attempt_id: str, prompt: Sequence[int] = (1,), ingress: str = "ingress", prefill_tokens: int = 0) -> bytes:
    spec = RequestSpec(attempt_id, encode_tokens(list(prompt)), 8, 0, False, [], 0, [b""])
    request = AttemptRequest(WIRE_VERSION, attempt_id, ingress, spec, [], prefill_tokens=prefill_tokens)
    return encode_request(request)


@asynccontextmanager
async def linked(*faults: Fault, gap_s: float = 0.0) -> AsyncIterator[EngineReplica]:
    """A replica with a link that somebody reads."""
    replica = EngineReplica(
        "a", lambda sink: FakeEngine(FakeEngineConfig(gap_s=gap_s, faults=faults), sink), WatchdogLimits()
    )
    await replica.start()
    up = asyncio.Event()

    async def read() -> None:
        async with aclosing(replica.frames("a", "ingress")) as frames:
            async for _ in frames:
                up.set()

    reading = asyncio.create_task(read())
    await up.wait()
    try:
        yield replica
    finally:
        await replica.stop()
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


async def test_an_engine_that_dies_with_an_attempt_in_it_has_died_of_it_for_all_we_know() -> None:
    async with linked(Fault(FaultKind.CRASH, at_token=2, every=1)) as replica:
        with pytest.raises(EngineDead):
            await replica.run_attempt("a", attempt("first"))
        with pytest.raises(WrongReplica, match="dead before"):
            await replica.run_attempt("a", attempt("second"))


async def test_an_attempt_in_a_replica_that_is_stopped_has_not_killed_it() -> None:
    async with linked(gap_s=60.0) as replica:
        running = asyncio.create_task(replica.run_attempt("a", attempt("first")))
        engine = replica._engine
        assert isinstance(engine, FakeEngine)
        await engine.first_token_sent.wait()
        await replica.stop()
        with pytest.raises(WrongReplica, match="being stopped"):
            await running


@dataclass
class Reader:
    """An ingress that follows a replica's frames."""

    replica: EngineReplica
    name: str
    frames: list[Frame] = field(default_factory=list)
    pages: CacheMirror = field(default_factory=CacheMirror)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def read(self) -> None:
        async with aclosing(self.replica.frames("a", self.name)) as frames:
            async for data in frames:
                frame = decode_frame(data)
                self.frames.append(frame)
                if frame.cache is not None:
                    self.pages.apply(frame.cache)
                self.changed.set()

    def holds(self, pages: Sequence[int]) -> bool:
        return self.pages.pages == set(pages)

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not true():
                self.changed.clear()
                await self.changed.wait()


@asynccontextmanager
async def running(config: FakeEngineConfig) -> AsyncIterator[Callable[[str], Awaitable[Reader]]]:
    """A replica, and what connects one more ingress to it."""
    replica = EngineReplica("a", lambda sink: FakeEngine(config, sink), WatchdogLimits())
    await replica.start()
    tasks: list[asyncio.Task[None]] = []

    async def connect(name: str) -> Reader:
        reader = Reader(replica, name)
        tasks.append(asyncio.create_task(reader.read()))
        await reader.until(lambda: bool(reader.frames))
        return reader

    try:
        yield connect
    finally:
        await replica.stop()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def pages(prompt: Sequence[int]) -> list[int]:
    chain = PageChain(prompt, ())
    return [chain[number] for number in range(len(chain))]


PROMPT = list(range(1000))


async def test_every_ingress_knows_what_the_cache_holds_from_its_first_frame_on() -> None:
    evicts = Fault(FaultKind.EVICT, at_token=0, request_ids=frozenset({"evicts"}))
    async with running(FakeEngineConfig(prefix_caching=True, faults=(evicts,))) as connect:
        first = await connect("first")
        assert first.frames[0].cache == CacheChanges([], reset=True)
        await first.replica.run_attempt("a", attempt("one", PROMPT, "first"))
        await first.until(lambda: first.pages.pages == set(pages(PROMPT)))
        second = await connect("second")
        assert second.frames[0].cache is not None and second.frames[0].cache.reset
        assert second.pages.pages == first.pages.pages
        other = [7, *PROMPT]
        await first.replica.run_attempt("a", attempt("evicts", other, "second"))
        for reader in (first, second):
            await reader.until(functools.partial(reader.holds, pages(other)))
            assert not any(frame.cache and frame.cache.reset for frame in reader.frames[1:])
        info = decode_info(await first.replica.info())
        assert info.capacity.reports_cache and info.capacity.kv_cache_tokens == 16 * 8192


async def test_a_replica_whose_engine_does_not_report_its_cache_says_nothing_of_it() -> None:
    async with running(FakeEngineConfig()) as connect:
        reader = await connect("first")
        await reader.replica.run_attempt("a", attempt("one", PROMPT, "first"))
        assert not decode_info(await reader.replica.info()).capacity.reports_cache
        assert all(frame.cache is None for frame in reader.frames)


async def test_frames_carry_the_prefill_that_waits_and_its_rate() -> None:
    config = FakeEngineConfig(prefix_caching=True, prefill_tokens_per_s=50_000.0, max_num_batched_tokens=4000)
    async with running(config) as connect:
        reader = await connect("first")
        assert reader.frames[0].load.prefill_tokens_per_s is None
        prompts = [list(range(start, start + 8000)) for start in range(4)]
        runs = [
            reader.replica.run_attempt("a", attempt(str(n), prompt, "first", prefill_tokens=8000))
            for n, prompt in enumerate(prompts)
        ]
        waiting = asyncio.gather(*runs)
        await reader.until(lambda: bool(reader.frames[-1].deltas))
        load = reader.frames[-1].load
        assert 0 < load.queued_prefill_tokens <= 24_000
        await waiting
        await reader.until(lambda: reader.frames[-1].load.unfinished == 0)
        load = reader.frames[-1].load
        assert load.queued_prefill_tokens == 0
        assert load.prefill_tokens_per_s == pytest.approx(50_000, rel=0.5)
        assert 0 < load.recent_unfinished < 4
