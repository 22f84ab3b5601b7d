"""The data channel between an ingress and an engine replica: one TCP connection, attempts one way, frames the other.

A call or a message of Ray Serve costs each side as much as several steps' tokens. So attempts and frames do not go by
Serve. Serve still manages the pair (`router/serve_transport.py`): the ingress keeps one streaming call open beside the
channel. Serve waits for that call before it stops a replica, and it reports how the replica ended when the channel
breaks.

The bodies of messages (`protocol/message_stream.py`) are msgpack; a frame arrives encoded.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import itertools
import logging
import secrets
from collections.abc import AsyncGenerator
from typing import Protocol

import msgspec

from serve_app.protocol.errors import (
    AttemptRefused,
    EngineDead,
    EngineDeadBeside,
    EngineDeadByRequest,
    ImagesMissing,
    Preempted,
    ReplicaFull,
    ReplicaLost,
    ReplicaStopping,
    WaitedTooLong,
    WrongReplica,
)
from serve_app.protocol.message_stream import MAX_MESSAGE_BYTES, MessageStream
from serve_app.protocol.messages import AttemptRequest, DataChannelAddress, OnFrame, decode_frame
from serve_app.protocol.paced_reads import PacedReads

logger = logging.getLogger(__name__)

OPEN_TIMEOUT_S = 5.0
"""Longer without an answer: a firewall drops the packets, or the replica is in trouble."""

MAX_HANDSHAKE_BYTES = 4096
"""What a connection may send before it has proved that it was offered. An ingress sends nothing more before the first
frame, which comes after that."""

OPEN, RUN, STOP, ENDED, FRAME = range(5)
"""Kinds of messages: `Handshake`, `StartAttempt`, a number, `AttemptEnded`, a frame."""

ERRORS: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (
        WrongReplica,
        ReplicaStopping,
        ReplicaFull,
        WaitedTooLong,
        Preempted,
        ImagesMissing,
        AttemptRefused,
        EngineDead,
        EngineDeadByRequest,
        EngineDeadBeside,
    )
}
"""Errors that an attempt may end with, by the name that is sent."""


class Handshake(msgspec.Struct, array_like=True):
    """The first message: which ingress calls which replica, and the secret that proves the address was offered."""

    secret: bytes
    target: str
    ingress_id: str


class StartAttempt(msgspec.Struct, array_like=True):
    """An attempt (`AttemptRequest`). `number` counts those of this channel."""

    number: int
    attempt: msgspec.Raw


class AttemptEnded(msgspec.Struct, array_like=True):
    """An attempt has ended: `error` is empty or a name in `ERRORS`."""

    number: int
    error: str = ""
    text: str = ""


class Runner(Protocol):
    """What the server runs attempts on: `EngineReplica`."""

    async def run_attempt(self, target: str, data: bytes | memoryview) -> None:
        """Run an attempt (`AttemptRequest`, encoded) to its end; cancelling it aborts the attempt."""

    def frames(self, target: str, ingress_id: str) -> AsyncGenerator[bytes, None]:
        """Frames for an ingress, until closed."""


class DataChannelServer:
    """Accepts the data channels of one replica."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._secret = secrets.token_bytes(16)
        self._server: asyncio.Server | None = None
        self._channels: set[asyncio.Task[None]] = set()

    async def open(self, host: str) -> DataChannelAddress:
        """Listen on any free port of that host. Raises `OSError` where that is not possible."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: MessageStream(self._connected, MAX_HANDSHAKE_BYTES), host, 0)
        return DataChannelAddress(host, self._server.sockets[0].getsockname()[1], self._secret)

    async def close(self) -> None:
        """End every channel and the attempts on it."""
        if self._server is not None:
            self._server.close()
        for channel in self._channels:
            channel.cancel()
        await asyncio.gather(*self._channels, return_exceptions=True)

    def _connected(self, stream: MessageStream) -> None:
        channel = asyncio.get_running_loop().create_task(self._take(stream), name="data channel")
        self._channels.add(channel)
        channel.add_done_callback(self._channels.discard)

    async def _take(self, stream: MessageStream) -> None:
        attempts: dict[int, asyncio.Task[None]] = {}
        pump: asyncio.Task[None] | None = None
        try:
            handshake = await self._handshake(stream)
            stream.longest = MAX_MESSAGE_BYTES
            pump = asyncio.create_task(self._pump(stream, handshake), name=f"channel to {handshake.ingress_id}")
            while True:
                kind, body = await stream.read()
                if kind == RUN:
                    start = msgspec.msgpack.decode(body, type=StartAttempt)
                    attempts[start.number] = asyncio.create_task(self._run(stream, handshake.target, start))
                    attempts = {number: task for number, task in attempts.items() if not task.done()}
                elif kind == STOP and (stopped := attempts.get(msgspec.msgpack.decode(body, type=int))) is not None:
                    stopped.cancel()
        except (OSError, EOFError, TimeoutError, ConnectionError, msgspec.MsgspecError) as error:
            logger.debug("a data channel ended", extra={"error": str(error)})
        finally:
            stream.abort()
            left = [*attempts.values(), *([pump] if pump is not None else [])]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    async def _handshake(self, stream: MessageStream) -> Handshake:
        async with asyncio.timeout(OPEN_TIMEOUT_S):
            kind, body = await stream.read()
        handshake = msgspec.msgpack.decode(body, type=Handshake)
        if kind != OPEN or not hmac.compare_digest(handshake.secret, self._secret):
            raise ConnectionError("the secret is wrong")
        return handshake

    async def _pump(self, stream: MessageStream, handshake: Handshake) -> None:
        try:
            async with contextlib.aclosing(self._runner.frames(handshake.target, handshake.ingress_id)) as frames:
                async for frame in frames:
                    stream.write_encoded(FRAME, frame)
                    # Waits while the ingress does not read: steps are then merged (`engine/outbox.py`).
                    await stream.drain()
        except (OSError, WrongReplica) as error:
            logger.debug("a data channel ended", extra={"error": str(error)})
        finally:
            stream.abort()

    async def _run(self, stream: MessageStream, target: str, start: StartAttempt) -> None:
        ended = AttemptEnded(start.number)
        try:
            await self._runner.run_attempt(target, memoryview(start.attempt))
        except tuple(ERRORS.values()) as error:
            ended = AttemptEnded(start.number, type(error).__name__, str(error))
        except Exception as error:  # whatever it is, the ingress must not wait forever
            logger.exception("an attempt failed")
            ended = AttemptEnded(start.number, AttemptRefused.__name__, f"{type(error).__name__}: {error}")
        stream.write(ENDED, ended)


class DataChannel:
    """The ingress' end of a channel. `follow` it all the time: the ends of attempts come with the frames."""

    def __init__(self, stream: MessageStream, reads: PacedReads) -> None:
        self._stream = stream
        self._reads = reads
        self._numbers = itertools.count()
        self._running: dict[int, asyncio.Future[None]] = {}
        self._broken: Exception | None = None

    @classmethod
    async def open(cls, address: DataChannelAddress, target: str, ingress_id: str, reads: PacedReads) -> DataChannel:
        """Raises `OSError`, `TimeoutError` where nothing answers. `reads`: what receives all channels' frames."""
        async with asyncio.timeout(OPEN_TIMEOUT_S):
            _, stream = await asyncio.get_running_loop().create_connection(MessageStream, address.host, address.port)
        stream.write(OPEN, Handshake(address.secret, target, ingress_id))
        return cls(stream, reads)

    async def follow(self, on_frame: OnFrame) -> None:
        """Give `on_frame` each frame until the channel ends, for whatever reason. Raises what `on_frame` raised, but
        for an `OSError` or `EOFError`, which is an end of the channel like any other."""

        def receive(kind: int, body: memoryview) -> None:
            if kind == FRAME:
                on_frame(decode_frame(body))
            elif kind == ENDED:
                self._end(msgspec.msgpack.decode(body, type=AttemptEnded))

        with contextlib.suppress(OSError, EOFError):
            await self._stream.deliver(receive, self._reads)

    async def run(self, attempt: AttemptRequest) -> None:
        """Run an attempt; returns when it has ended. Raises the error that it ended with, or the reason given to
        `close`."""
        if self._broken is not None:
            raise _again(self._broken)
        number = next(self._numbers)
        ended = self._running[number] = asyncio.get_running_loop().create_future()
        self._stream.write(RUN, (number, attempt))
        try:
            await ended
        except asyncio.CancelledError:
            self._stream.write(STOP, number)
            raise
        finally:
            del self._running[number]

    def disconnect(self) -> None:
        """Close the connection: `follow` ends. Attempts on it wait for `close`, which tells them why."""
        self._stream.abort()

    def close(self, reason: Exception) -> None:
        """Close the connection; attempts on it end with `reason`."""
        self._broken = reason
        self.disconnect()
        for ended in self._running.values():
            if not ended.done():
                ended.set_exception(_again(reason))

    def _end(self, how: AttemptEnded) -> None:
        ended = self._running.get(how.number)
        if ended is None or ended.done():
            return
        if how.error:
            ended.set_exception(ERRORS.get(how.error, ReplicaLost)(how.text))
        else:
            ended.set_result(None)


def _again(error: Exception) -> Exception:
    """A copy: one exception must not be raised in several tasks, for each adds to its traceback."""
    return type(error)(*error.args)
