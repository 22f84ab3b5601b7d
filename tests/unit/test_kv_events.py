"""What becomes of reports of the prefix cache that cannot be worked through."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from serve_app.engine.kv_events import END_OF_REPLAY, BatchSequence, _published, _read, _replayed


class Socket:
    """Gives these messages, then nothing more."""

    def __init__(self, *messages: Sequence[bytes]) -> None:
        self._messages = list(messages)
        self.is_empty = asyncio.Event()

    async def recv_multipart(self) -> Sequence[bytes]:
        if not self._messages:
            self.is_empty.set()
            await asyncio.Event().wait()
        return self._messages.pop(0)


class Cache:
    """Applies batches; those of `broken` fail, as those of another vLLM might."""

    def __init__(self, broken: bytes) -> None:
        self.broken = broken
        self.applied: list[bytes] = []
        self.lost = 0
        self.sequence = BatchSequence(self.apply, self.lose, lambda _number: None)

    def apply(self, batch: bytes) -> None:
        if batch == self.broken:
            raise AttributeError("'BlockStored' has no 'extra_keys'")
        self.applied.append(batch)

    def lose(self) -> None:
        self.lost += 1


def number(value: int) -> bytes:
    return value.to_bytes(8, "big")


async def read_all(socket: Socket, cache: Cache, *, replay: bool = False) -> None:
    take = _replayed(cache.sequence) if replay else _published(cache.sequence)
    reader = asyncio.create_task(_read(socket, take, cache.lose))
    await asyncio.wait_for(socket.is_empty.wait(), 10)
    assert not reader.done()
    reader.cancel()


async def test_a_report_that_fails_is_logged_and_the_next_ones_are_read(caplog: pytest.LogCaptureFixture) -> None:
    cache = Cache(broken=b"b")
    await read_all(Socket([b"", number(0), b"a"], [b"", number(1), b"b"], [b"", number(2), b"c"]), cache)
    assert (cache.applied, cache.lost) == ([b"a", b"c"], 1)
    assert "a report of the prefix cache failed" in caplog.text
    assert "extra_keys" in caplog.text


async def test_a_message_of_another_shape_ends_nothing() -> None:
    cache = Cache(broken=b"b")
    await read_all(Socket([b"only one part"], [b"", number(0), b"a"]), cache)
    assert (cache.applied, cache.lost) == ([b"a"], 1)


async def test_replays_are_read_on_too() -> None:
    cache = Cache(broken=b"b")
    batches = [[b"", b"", number(0), b"b"], [b"", b"", number(1), b"c"], [b"", b"", END_OF_REPLAY, b""]]
    await read_all(Socket(*batches), cache, replay=True)
    assert (cache.applied, cache.lost) == ([b"c"], 1)
