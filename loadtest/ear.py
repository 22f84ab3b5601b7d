"""Reads many plain sockets at little cost, and stamps nothing but what it has just read.

A transport of uvloop costs 11 to 13 us for every read: a wake-up, a callback and a system call for each socket by
itself. An ear keeps all sockets in one epoll set of its own, asks once which are ready and reads those with a bare
`recv`. Where reads are rare it is woken by the set itself, and nothing waits. Where they are many (`Pace`) a wake-up,
which costs as much as five reads, serves several: the ear looks every millisecond instead, and a chunk is read, and so
stamped, up to 1 to 2 ms after it came. Gaps stay right on average, since both their ends are late alike.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
from time import perf_counter_ns

from loadtest.wire import Wire, may_be_last

READ_BYTES = 16 * 1024
"""More makes the epoll set ready again; much more costs an allocation that is nearly all given back."""
WINDOW_NS = 100_000_000
"""Several steps of an engine, which sends all its streams' tokens at once: shorter, and the pace would flutter."""
HEARD_AT_MOST = 256
"""Reads kept before they are handed out: about 0.1 ms of work."""
LOOK_EVERY_S = 0.001
"""The finest step of uvloop's timers."""
MANY, FEW = 200, 100
"""Reads in a window, 2,000 and 1,000 a second. Fewer, and a wake-up for each is no burden."""


class Pace:
    """Whether reads are many, from how many came of late. Pure."""

    def __init__(self, now_ns: int) -> None:
        self.many = False
        self.ever_many = False
        self._since_ns = now_ns
        self._reads = 0

    def note(self, reads: int, now_ns: int) -> None:
        """Count reads."""
        self._reads += reads
        if now_ns - self._since_ns < WINDOW_NS:
            return
        # A window may be longer than planned: it ends with the first look after it.
        per_window = self._reads * WINDOW_NS / (now_ns - self._since_ns)
        self._since_ns, self._reads = now_ns, 0
        self.many = per_window >= (FEW if self.many else MANY)
        self.ever_many = self.ever_many or self.many


class Line:
    """A plain connection that an ear listens to; to a wire it is what a transport of asyncio is."""

    def __init__(self, ear: Ear, sock: socket.socket, wire: Wire) -> None:
        self._ear = ear
        self._socket = sock
        self.wire = wire
        self._unsent = memoryview(b"")
        self.fd = sock.fileno()

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
        self._heard: list[tuple[int, int, bytes]] = []
        self._streaming: set[int] = set()
        self._errors: dict[int, OSError] = {}
        self.pace = Pace(perf_counter_ns())
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
        self._lines[line.fd] = line
        self._set.register(line.fd, select.EPOLLIN)
        wire.carried_by(line)
        return wire

    def forget(self, fd: int) -> None:
        """A line is about to close."""
        del self._lines[fd]
        self._streaming.discard(fd)
        self._set.unregister(fd)

    def _woken(self) -> None:
        self._listen()
        if self.pace.many:
            self._loop.remove_reader(self._set.fileno())
            self._timer = self._loop.call_later(LOOK_EVERY_S, self._look)

    def _look(self) -> None:
        self._listen()
        if self.pace.many:
            self._timer = self._loop.call_later(LOOK_EVERY_S, self._look)
        else:
            self._timer = None
            self._loop.add_reader(self._set.fileno(), self._woken)

    def _listen(self) -> None:
        """Read every socket that is ready."""
        ready = self._set.poll(0)
        heard, streaming = self._heard, self._streaming
        due: list[int] = []
        for fd, _ in ready:
            try:
                data = os.read(fd, READ_BYTES)
            except BlockingIOError:
                continue
            except OSError as bad:
                data, self._errors[fd] = b"", bad
            heard.append((fd, perf_counter_ns(), data))
            if fd not in streaming or may_be_last(data):
                due.append(fd)
        if due or len(heard) >= HEARD_AT_MOST:
            self.deliver()
        for fd in due:
            if fd in self._lines and self._lines[fd].wire.streaming:
                streaming.add(fd)
            else:
                streaming.discard(fd)
        self.pace.note(len(ready), perf_counter_ns())

    def deliver(self) -> None:
        """Hand what was heard to the wires."""
        heard, self._heard = self._heard, []
        lines = self._lines
        for fd, now_ns, data in heard:
            line = lines.get(fd)
            if line is None:  # closed by what came before
                continue
            if data:
                line.wire.received(data, now_ns)
            else:
                line.lost(self._errors.pop(fd, None))

    def close(self) -> None:
        """Close all lines and the set."""
        for line in list(self._lines.values()):
            line.abort()
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._set.fileno())
        self._set.close()
