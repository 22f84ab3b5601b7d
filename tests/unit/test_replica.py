"""What a replica says of an attempt that did not end: its engine died of it, or it had nothing to do with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest

from serve_app.engine.fake import FakeEngine, FakeEngineConfig, Fault, FaultKind
from serve_app.engine.replica import EngineReplica
from serve_app.engine.watchdog import WatchdogLimits
from serve_app.protocol.errors import EngineDead, WrongReplica
from serve_app.protocol.messages import WIRE_VERSION, AttemptRequest, RequestSpec, encode_request, encode_tokens


def attempt(attempt_id: str) -> bytes:
    return encode_request(
        AttemptRequest(
            WIRE_VERSION,
            attempt_id,
            "ingress",
            RequestSpec(attempt_id, encode_tokens([1]), 8, 0, False, [], 0, [b""]),
            [],
        )
    )


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
