"""Reads many plain sockets at little cost, each chunk with the time at which the kernel got it.

A transport of uvloop costs 11 to 13 us for every read: a wake-up, a callback and a system call for each socket by
itself. An ear keeps all sockets in one epoll set of its own, asks once which are ready and reads those with a bare
`recvmsg`, which also tells when the bytes came in (`http/arrival_clock.py`). So a chunk's time does not depend on when
it is read. Where reads are rare the ear is woken by the set itself. Where they are many (`http/polling_interval.py`) a
wake-up, which costs as much as five reads, serves several: the ear looks every few milliseconds instead. Only the end
of a response is then noticed later, and with it the next request of a closed loop sent.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable
from time import perf_counter_ns

from loadtest.http.arrival_clock import ANCILLARY_BYTES, ArrivalClock, Stamp, Told, ask_for_arrivals, stamp_of
from loadtest.http.connection import ENDING, Wire
from loadtest.http.polling_interval import Pace

READ_BYTES = 16 * 1024
"""More makes the epoll set ready again; much more costs an allocation that is nearly all given back."""
Read = Callable[[int, int], tuple[bytes, Told, int, object]]
Stream = tuple[Read, Callable[[bytes], None], Callable[[Stamp], None], list[bytes], list[Stamp]]
"""A body in the middle of which a line is. Bytes are kept until a read may be the last: how to read, how to keep bytes
and their stamp, and where both are."""


class Line:
    """A plain connection that an ear listens to; to a wire it is what a transport of asyncio is."""

    def __init__(self, ear: Ear, sock: socket.socket, wire: Wire) -> None:
        self._ear = ear
        self._socket = sock
        self.wire = wire
        self._unsent = memoryview(b"")
        self.fd = sock.fileno()
        self.read: Read = sock.recvmsg

    def write(self, data: bytes) -> None:
        """Send as much as fits at once, the rest when there is room."""
        self._unsent = memoryview(data)
        self._send()
        if self._unsent:
            asyncio.get_running_loop().add_writer(self.fd, self._send_more)

    def _send_more(self) -> None:
        self._send()
        if not self._unsent and self.fd >= 0:
            asyncio.get_running_loop().remove_writer(self.fd)

    def _send(self) -> None:
        try:
            self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except BlockingIOError:
            pass
        except OSError as bad:
            self.lost(bad)

    def lost(self, why: OSError | None) -> None:
        """The connection has ended, by the server's will where there is no error."""
        self.abort()
        self.wire.connection_lost(why)

    def abort(self) -> None:
        """Close at once; harmless when repeated."""
        if self.fd < 0:
            return
        if self._unsent:
            asyncio.get_running_loop().remove_writer(self.fd)
            self._unsent = memoryview(b"")
        self._ear.forget(self.fd)
        self.fd = -1
        self._socket.close()


class Ear:
    """Owns the epoll set of one loop's lines."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._set = select.epoll()
        self._lines: dict[int, Line] = {}
        self._streams: dict[int, Stream] = {}
        self.clock = ArrivalClock()
        self.pace = Pace(perf_counter_ns())
        self.ends_late_ns: list[int] = []
        """From when the last bytes of a response came to when that was noticed."""
        self._timer: asyncio.TimerHandle | None = None
        # An epoll set can itself be waited for: it is ready while any of its sockets is.
        self._loop.add_reader(self._set.fileno(), self._woken)

    async def connect(self, ip: str, port: int) -> Wire:
        """A wire to an address. Raises OSError."""
        sock = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.sock_connect(sock, (ip, port))
        except BaseException:
            sock.close()
            raise
        return self.listen_to(sock)

    def listen_to(self, sock: socket.socket) -> Wire:
        """A wire over a connected socket, which is the ear's from now on."""
        wire = Wire()
        line = Line(self, sock, wire)
        ask_for_arrivals(sock)
        self._lines[line.fd] = line
        self._set.register(line.fd, select.EPOLLIN)
        wire.carried_by(line)
        return wire

    def forget(self, fd: int) -> None:
        """A line is about to close."""
        del self._lines[fd]
        self._streams.pop(fd, None)
        self._set.unregister(fd)

    def _woken(self) -> None:
        self._listen()
        if self.pace.many:
            self._loop.remove_reader(self._set.fileno())
            self._timer = self._loop.call_later(self.pace.look_every_s, self._look)

    def _look(self) -> None:
        self._listen()
        if self.pace.many:
            self._timer = self._loop.call_later(self.pace.look_every_s, self._look)
        else:
            self._timer = None
            self._loop.add_reader(self._set.fileno(), self._woken)

    def _listen(self) -> None:
        """Read every socket that is ready. The loop's body runs for every chunk of a run."""
        if self.clock.stepped():
            self.deliver()
            self.clock.set()
        ready = self._set.poll(0)
        streams, ending, shortest = self._streams, ENDING, len(ENDING)
        due: list[int] = []
        for fd, _ in ready:
            stream = streams.get(fd)
            if stream is None:
                due.append(fd)
                continue
            read, keep, keep_stamp, _, _ = stream
            try:
                data, told, _, _ = read(READ_BYTES, ANCILLARY_BYTES)
            except OSError:
                due.append(fd)  # reading it once more tells why
                continue
            keep(data)
            # Sixteen bytes are kept, as they are: what is let go of at once is used again while still in the cache.
            keep_stamp(told[0][2] if told else perf_counter_ns())
            if data.endswith(ending) or len(data) < shortest:  # `may_be_last`, without a call for each chunk
                self._hand_over(fd)
                if not data:
                    due.append(fd)
        for fd in due:
            self._read_alone(fd)
        self.pace.note(len(ready), len(streams), perf_counter_ns(), exact=self.clock.exact)

    def _read_alone(self, fd: int) -> None:
        """Read a line that is not within a stream, and hand that out at once."""
        line = self._lines.get(fd)
        if line is None:  # closed by what came before
            return
        self._hand_over(fd)
        try:
            data, told, _, _ = line.read(READ_BYTES, ANCILLARY_BYTES)
        except BlockingIOError:
            return
        except OSError as bad:
            line.lost(bad)
            return
        if not data:
            line.lost(None)
            return
        self._hear(line, [data], self.clock.times([stamp_of(told)]))

    def _hand_over(self, fd: int) -> None:
        """What was kept of a line's stream goes to its wire."""
        stream = self._streams.pop(fd, None)
        if stream is None:
            return
        _, _, _, reads, stamps = stream
        if reads and not reads[-1]:  # the end of the connection is no read
            reads.pop()
            stamps.pop()
        if reads:
            self._hear(self._lines[fd], reads, self.clock.times(stamps))

    def _hear(self, line: Line, reads: list[bytes], times: list[int]) -> None:
        """All but the last read belong to a running stream; the last may be anything."""
        last_ns = times.pop()
        last = reads.pop()
        line.wire.kept(reads, times)
        line.wire.received(last, last_ns)
        if line.wire.streaming and line.fd in self._lines:
            kept: list[bytes] = []
            stamps: list[Stamp] = []
            self._streams[line.fd] = line.read, kept.append, stamps.append, kept, stamps
        else:
            self.ends_late_ns.append(perf_counter_ns() - last_ns)

    def deliver(self) -> None:
        """Hand what was read to the wires."""
        for fd in list(self._streams):
            self._hand_over(fd)

    def close(self) -> None:
        """Close all lines and the set."""
        for line in list(self._lines.values()):
            line.abort()
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._set.fileno())
        self._set.close()
