"""Reads many plain sockets at little cost, and stamps nothing but what it has just read.

A transport of uvloop costs 11 to 13 us for every read: a wake-up, a callback and a system call for each socket by
itself. An ear keeps all sockets in one epoll set of its own, asks once which are ready and reads those with a bare
`recv`. Where reads are rare it is woken by the set itself, and nothing waits. Where they are many (`Pace`) it looks
every millisecond instead: a wake-up then serves several chunks, and a chunk is read, and so stamped, up to 1 to 2 ms
after it came. Gaps stay right on average, since both their ends are late alike.
"""

from __future__ import annotations

import asyncio
import select
import socket
from time import perf_counter_ns

from loadtest.wire import Wire

READ_BYTES = 64 * 1024
WINDOW_NS = 10_000_000
LOOK_EVERY_S = 0.001
"""The finest step of uvloop's timers."""
MANY, FEW = 20, 10
"""Reads in a window, 2,000 and 1,000 a second. Fewer, and a wake-up for each is cheaper than a thousand looks."""


class Pace:
    """Whether to look by the clock, from how many reads came of late. Pure."""

    def __init__(self, now_ns: int) -> None:
        self.by_clock = False
        self.ever_by_clock = False
        self._since_ns = now_ns
        self._reads = 0

    def note(self, reads: int, now_ns: int) -> bool:
        """Count reads; True where the way of looking is to change."""
        self._reads += reads
        if now_ns - self._since_ns < WINDOW_NS:
            return False
        # A window may be longer than planned: it ends with the first look after it.
        per_window = self._reads * WINDOW_NS / (now_ns - self._since_ns)
        self._since_ns, self._reads = now_ns, 0
        changed = per_window < FEW if self.by_clock else per_window >= MANY
        self.by_clock = self.by_clock != changed
        self.ever_by_clock = self.ever_by_clock or self.by_clock
        return changed


class Line:
    """A plain connection that an ear listens to; to a wire it is what a transport of asyncio is."""

    def __init__(self, ear: Ear, sock: socket.socket, wire: Wire) -> None:
        self._ear = ear
        self._socket = sock
        self._wire = wire
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
            self._lost(bad)

    def read(self) -> None:
        """Read what is there, once: more makes the epoll set ready again."""
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError as bad:
            self._lost(bad)
            return
        if data:
            self._wire.data_received(data)
        else:
            self._lost(None)

    def _lost(self, why: OSError | None) -> None:
        self.abort()
        self._wire.connection_lost(why)

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
        self.pace = Pace(perf_counter_ns())
        self._timer: asyncio.TimerHandle | None = None
        # An epoll set can itself be waited for: it is ready while any of its sockets is.
        self._loop.add_reader(self._set.fileno(), self._listen)

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
        self._set.unregister(fd)

    def _listen(self) -> None:
        lines = self._lines
        ready = self._set.poll(0)
        for fd, _ in ready:
            line = lines.get(fd)
            if line is not None:  # closed by one that was read before it
                line.read()
        if self.pace.note(len(ready), perf_counter_ns()):
            self._change()

    def _change(self) -> None:
        if self.pace.by_clock:
            self._loop.remove_reader(self._set.fileno())
            self._look_soon()
        else:
            self._stop_looking()
            self._loop.add_reader(self._set.fileno(), self._listen)

    def _look_soon(self) -> None:
        self._timer = self._loop.call_later(LOOK_EVERY_S, self._look)

    def _look(self) -> None:
        self._look_soon()  # before the reading, so that its time is part of the step
        self._listen()

    def _stop_looking(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        """Close all lines and the set."""
        for line in list(self._lines.values()):
            line.abort()
        self._stop_looking()
        self._loop.remove_reader(self._set.fileno())
        self._set.close()
