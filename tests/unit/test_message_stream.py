"""Messages over a connection: whole and in order, however the bytes arrive; and a reader that is slow is waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.protocol.message_stream import HEAD_BYTES, MAX_WAITING, SCRATCH_BYTES, MessageStream

SMALL, TINY_STEPS = st.integers(0, 300), st.integers(1, 9)
LARGE = st.sampled_from([SCRATCH_BYTES - 5, SCRATCH_BYTES - 4, SCRATCH_BYTES, 3 * SCRATCH_BYTES])
KINDS = st.integers(0, 255)


@dataclass
class FakeTransport(asyncio.Transport):
    """Keeps what is written."""

    written: bytearray = field(default_factory=bytearray)
    reading: bool = True
    aborted: bool = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.aborted  # uvloop raises
        self.reading = True

    def abort(self) -> None:
        self.aborted = True


def stream(longest: int = 1 << 30) -> tuple[MessageStream, FakeTransport]:
    made, transport = MessageStream(longest=longest), FakeTransport()
    made.connection_made(transport)
    return made, transport


def receive(to: MessageStream, data: bytes, steps: list[int]) -> None:
    """As an event loop hands data over: into the buffer that it is given, so much at a time."""
    turn = 0
    while data:
        buffer = to.get_buffer(-1)
        count = min(steps[turn % len(steps)], len(buffer), len(data))
        buffer[:count] = data[:count]
        to.buffer_updated(count)
        data, turn = data[count:], turn + 1


def at_once(reading: Coroutine[Any, Any, tuple[int, memoryview]]) -> tuple[int, memoryview]:
    """The result of a coroutine that has nothing to wait for."""
    try:
        reading.send(None)
    except StopIteration as done:
        value: tuple[int, memoryview] = done.value
        return value
    raise AssertionError("it waits")


def message(size: int, kind: int = 3) -> bytes:
    return (size + 1).to_bytes(4, "big") + bytes((kind,)) + (bytes(range(251)) * (size // 251 + 1))[:size]


def read_in_steps(messages: list[tuple[int, int]], steps: list[int]) -> None:
    to, _ = stream()
    receive(to, b"".join(message(size, kind) for size, kind in messages), steps)
    read = [(kind, bytes(body)) for kind, body in [at_once(to.read()) for _ in messages]]
    assert read == [(kind, message(size)[HEAD_BYTES:]) for size, kind in messages]


@given(st.lists(st.tuples(SMALL, KINDS), max_size=12), st.lists(TINY_STEPS, min_size=1, max_size=8))
def test_messages_may_arrive_byte_by_byte(messages: list[tuple[int, int]], steps: list[int]) -> None:
    read_in_steps(messages, steps)


@given(
    st.lists(st.tuples(SMALL | LARGE, KINDS), max_size=6),
    st.lists(st.integers(1000, 3 * SCRATCH_BYTES), min_size=1, max_size=8),
)
def test_messages_of_all_sizes_arrive_whole_and_in_order(messages: list[tuple[int, int]], steps: list[int]) -> None:
    read_in_steps(messages, steps)


async def test_what_is_written_is_read() -> None:
    sender, transport = stream()
    sender.write(1, ["a", 2])
    sender.write_encoded(2, msgspec.msgpack.encode({"b": 3}))
    to, _ = stream()
    receive(to, bytes(transport.written), [7])
    read = [await to.read(), await to.read()]
    assert [(kind, msgspec.msgpack.decode(body)) for kind, body in read] == [(1, ["a", 2]), (2, {"b": 3})]


async def test_a_large_message_can_be_written_to() -> None:
    """torch wants its buffers writable."""
    to, _ = stream()
    receive(to, message(2 * SCRATCH_BYTES), [SCRATCH_BYTES])
    assert not (await to.read())[1].readonly


async def test_a_message_that_is_too_long_ends_the_connection_before_memory_is_taken() -> None:
    to, transport = stream(longest=100)
    receive(to, message(99), [1000])
    receive(to, message(100), [1000])
    assert transport.aborted
    assert len((await to.read())[1]) == 99
    for _ in range(2):
        with pytest.raises(ConnectionError, match="101 bytes"):
            await to.read()


async def test_who_does_not_read_is_sent_nothing_more() -> None:
    to, transport = stream()
    receive(to, message(1) * (MAX_WAITING + 1), [1 << 20])
    assert not transport.reading
    for _ in range(MAX_WAITING + 1):
        await to.read()
    assert transport.reading


async def test_what_was_received_is_read_after_the_end_too() -> None:
    to, transport = stream()
    receive(to, message(1) * (MAX_WAITING + 1), [1 << 20])
    to.abort()
    for _ in range(MAX_WAITING + 1):
        await to.read()
    with pytest.raises(ConnectionError):
        await to.read()
    assert transport.aborted


async def test_a_writer_waits_for_the_other_side() -> None:
    to, _ = stream()
    to.pause_writing()
    waiting = asyncio.create_task(to.drain())
    await asyncio.sleep(0)
    assert not waiting.done()
    to.resume_writing()
    await waiting
    to.pause_writing()
    waiting = asyncio.create_task(to.drain())
    to.connection_lost(OSError("cable"))
    with pytest.raises(ConnectionError):
        await waiting


async def test_the_end_comes_behind_what_was_received() -> None:
    to, transport = stream()
    receive(to, message(5), [100])
    to.eof_received()
    assert len((await to.read())[1]) == 5
    with pytest.raises(EOFError):
        await to.read()
    to.write(1, "too late")
    assert transport.written == b""
