"""Messages over one TCP connection, both ways: what a data channel (`protocol/data_channel.py`) is made of.

A message is its length (4 bytes, of what follows), its kind (1 byte) and its body. A large one is received where it
stays: asyncio's own streams copy each byte three times, which takes 120 ms of CPU time for the images of one request
(67 MB) in place of 20.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, NoReturn, cast

import msgspec

from serve_app.protocol.paced_reads import PacedReads

HEAD_BYTES: Final = 5
LENGTH_BYTES: Final = 4

_LENGTH: Final = struct.Struct(">I")

SCRATCH_BYTES: Final = 1 << 16
"""Messages that fit are received together, several at a time; a larger one gets memory of its own."""

MAX_MESSAGE_BYTES: Final = 1 << 30
"""Our messages are shorter: a longer one is from something else."""

MAX_WAITING: Final = 64
"""More unread messages than this, and the other side has to wait."""

Receiver = Callable[[int, memoryview], None]
"""Gets kind and body of each message. The body is only there until it returns."""

CLOSED: Final = "the other side has closed the connection"

logger = logging.getLogger(__name__)

_ENCODER = msgspec.msgpack.Encoder()


class MessageStream(asyncio.BufferedProtocol):
    """One end of a connection. `connected` is called with it when the connection is there.

    `longest` is the length of the longest message that is accepted, in bytes: what may be allocated for the other side.
    """

    def __init__(
        self, connected: Callable[[MessageStream], None] | None = None, longest: int = MAX_MESSAGE_BYTES
    ) -> None:
        self.longest = longest
        self._connected = connected
        self._transport: asyncio.Transport | None = None
        self._scratch = memoryview(bytearray(SCRATCH_BYTES))
        self._held = 0
        """Bytes in the scratch memory."""
        self._large: memoryview | None = None
        """The message that did not fit into it."""
        self._filled = 0
        self._waiting: deque[tuple[int, memoryview]] = deque()
        self._receiver: Receiver | None = None
        self._paced: socket.socket | None = None
        """The connection, while `PacedReads` looks at it."""
        self._is_receiving = False
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._ended: Exception | None = None

    # ---- what uses it ------------------------------------------------------------------------------------------------

    async def read(self) -> tuple[int, memoryview]:
        """Kind and body of the next message. Raises `EOFError` or `OSError` when there is none any more."""
        while not self._waiting:
            if self._ended is not None:
                raise self._ended
            self._readable.clear()
            await self._readable.wait()
        message = self._waiting.popleft()
        if len(self._waiting) == MAX_WAITING // 2:
            self._read_on(wanted=True)
        return message

    async def deliver(self, receiver: Receiver, reads: PacedReads) -> NoReturn:
        """Give `receiver` each message, in place of `read`, in the very moment in which `reads` has received it: a task
        that is woken for each costs as much again as a step's frame. Raises `EOFError` or `OSError` when there is none
        any more, or what `receiver` raised, which ends the connection."""
        self._receiver = receiver
        try:
            while self._waiting:
                self._give(receiver, *self._waiting.popleft())
            with self._received_by(reads):
                while self._ended is None:
                    self._readable.clear()
                    await self._readable.wait()
        finally:
            self._receiver = None
        raise self._ended

    def write(self, kind: int, body: object) -> None:
        """Send a message with this body, encoded. Does nothing on a connection that has ended."""
        message = bytearray(HEAD_BYTES)
        _ENCODER.encode_into(body, message, HEAD_BYTES)
        self._send(kind, message)

    def write_encoded(self, kind: int, body: bytes) -> None:
        """Send a message with a body that is encoded already."""
        self._send(kind, bytearray(HEAD_BYTES) + body)

    async def drain(self) -> None:
        """Wait while the other side does not read. Raises `ConnectionError` when the connection has ended."""
        await self._writable.wait()
        if self._ended is not None:
            raise ConnectionResetError("the connection has ended")

    def abort(self) -> None:
        """End the connection at once. What was received before can still be read, or is delivered."""
        if self._paced is not None:
            self._receive(self._paced)
        self._break_off(ConnectionAbortedError("this side has ended the connection"))

    def _send(self, kind: int, message: bytearray) -> None:
        message[:HEAD_BYTES] = (len(message) - LENGTH_BYTES).to_bytes(LENGTH_BYTES, "big") + bytes((kind,))
        if self._transport is not None and self._ended is None:
            self._transport.write(message)

    # ---- what asyncio calls ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.BaseProtocol`."""
        self._transport = cast("asyncio.Transport", transport)
        if self._connected is not None:
            self._connected(self)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  # asyncio's signature
        """See `asyncio.BufferedProtocol`."""
        if self._large is not None:
            return self._large[self._filled :]
        return self._scratch[self._held :] if self._held else self._scratch

    def buffer_updated(self, nbytes: int) -> None:
        """See `asyncio.BufferedProtocol`."""
        if self._large is None:
            self._held += nbytes
            self._take_messages()
            return
        self._filled += nbytes
        if self._filled == len(self._large):
            message, self._large = self._large, None
            self._put(message[0], message[1:])

    def eof_received(self) -> None:
        """See `asyncio.BufferedProtocol`."""
        self._end(EOFError(CLOSED))

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.BaseProtocol`."""
        self._end(ConnectionResetError(str(exc)) if exc is not None else EOFError("the connection has ended"))

    def pause_writing(self) -> None:
        """See `asyncio.BaseProtocol`."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """See `asyncio.BaseProtocol`."""
        self._writable.set()

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _take_messages(self) -> None:
        """All that are in the scratch memory; what is left of it moves to its front."""
        at, held = 0, self._held
        while held - at >= LENGTH_BYTES:
            (length,) = _LENGTH.unpack_from(self._scratch, at)
            if not 0 < length <= self.longest:
                self._break_off(ConnectionError(f"a message of {length} bytes"))
                return
            end = at + LENGTH_BYTES + length
            if end <= held:
                self._put(self._scratch[at + LENGTH_BYTES], self._scratch[at + HEAD_BYTES : end])
                at = end
            elif LENGTH_BYTES + length <= SCRATCH_BYTES:
                break
            else:
                self._filled = held - at - LENGTH_BYTES
                self._large = memoryview(bytearray(length))
                self._large[: self._filled] = self._scratch[at + LENGTH_BYTES : held]
                at = held
        self._held = held - at
        if at and self._held:
            self._scratch[: self._held] = bytes(self._scratch[at:held])

    def _put(self, kind: int, body: memoryview) -> None:
        if self._receiver is not None:
            self._give(self._receiver, kind, body)
            return
        self._waiting.append((kind, memoryview(bytes(body)) if body.obj is self._scratch.obj else body))
        self._readable.set()
        if len(self._waiting) > MAX_WAITING:
            self._read_on(wanted=False)

    def _give(self, receiver: Receiver, kind: int, body: memoryview) -> None:
        if self._ended is not None:
            return
        try:
            receiver(kind, body)
        except Exception as error:  # noqa: BLE001  # `deliver` raises it
            self._break_off(error)

    @contextlib.contextmanager
    def _received_by(self, reads: PacedReads) -> Iterator[None]:
        """`reads` receives in place of the event loop, unless the system has no room for that. Sending is left to the
        event loop."""
        transport = self._transport
        if transport is None or self._ended is not None or transport.is_closing():
            yield
            return
        with contextlib.ExitStack() as stack:
            try:
                connection = stack.enter_context(
                    socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
                )
                connection.setblocking(False)
                reads.add(connection, partial(self._receive, connection))
            except OSError as error:
                logger.warning(
                    "each message of an engine wakes the event loop: raise the limit of open files",
                    extra={"error": str(error)},
                )
                self._read_on(wanted=True)
            else:
                stack.callback(reads.remove, connection)
                transport.pause_reading()
                self._paced = connection
            try:
                yield
            finally:
                self._paced = None

    def _receive(self, connection: socket.socket) -> None:
        """All that is there. Does nothing while it is at it: what it gets may end the connection."""
        if self._is_receiving:
            return
        self._is_receiving = True
        try:
            self._receive_all(connection)
        except Exception as error:  # noqa: BLE001  # memory, for one; `deliver` raises it
            self._break_off(error)
        finally:
            self._is_receiving = False

    def _receive_all(self, connection: socket.socket) -> None:
        is_more = True
        while is_more and self._ended is None:
            buffer = self.get_buffer(-1)
            try:
                count = connection.recv_into(buffer)
            except BlockingIOError:
                return
            if not count:
                self._break_off(EOFError(CLOSED))
                return
            is_more = count == len(buffer)
            self.buffer_updated(count)

    def _read_on(self, *, wanted: bool) -> None:
        # uvloop raises on a connection that has ended. Otherwise to ask twice is the same as once.
        if self._transport is not None and self._ended is None:
            (self._transport.resume_reading if wanted else self._transport.pause_reading)()

    def _break_off(self, reason: Exception) -> None:
        """End the connection for this reason, unless there was one already."""
        self._end(reason)
        if self._transport is not None:
            self._transport.abort()

    def _end(self, reason: Exception) -> None:
        if self._ended is None:
            self._ended = reason
        self._readable.set()
        self._writable.set()
