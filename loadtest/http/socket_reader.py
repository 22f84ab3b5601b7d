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

from loadtest.http.arrival_clock import ANCILLARY_BYTES, Ancillary, ArrivalClock, Stamp, ask_for_arrivals, stamp_of
from loadtest.http.connection import ENDING, HttpConnection
from loadtest.http.polling_interval import PollingInterval

READ_BYTES = 16 * 1024
"""More makes the epoll set ready again; much more costs an allocation that is nearly all given back."""
Read = Callable[[int, int], tuple[bytes, Ancillary, int, object]]
Stream = tuple[Read, Callable[[bytes], None], Callable[[Stamp], None], list[bytes], list[Stamp]]
"""A body in the middle of which a line is. Bytes are kept until a read may be the last: how to read, how to keep bytes
and their stamp, and where both are."""


class SocketTransport:
    """A plain connection that an ear listens to; to a wire it is what a transport of asyncio is."""

    def __init__(self, reader: SocketReader, sock: socket.socket, connection: HttpConnection) -> None:
        self._reader = reader
        self._socket = sock
        self.connection = connection
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
        self.connection.connection_lost(why)

    def abort(self) -> None:
        """Close at once; harmless when repeated."""
        if self.fd < 0:
            return
        if self._unsent:
            asyncio.get_running_loop().remove_writer(self.fd)
            self._unsent = memoryview(b"")
        self._reader.forget(self.fd)
        self.fd = -1
        self._socket.close()


class SocketReader:
    """Owns the epoll set of one loop's lines."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._set = select.epoll()
        self._transports: dict[int, SocketTransport] = {}
        self._streams: dict[int, Stream] = {}
        self.clock = ArrivalClock()
        self.polling = PollingInterval(perf_counter_ns())
        self.end_detection_lag_ns: list[int] = []
        """From when the last bytes of a response came to when that was noticed."""
        self._timer: asyncio.TimerHandle | None = None
        # An epoll set can itself be waited for: it is ready while any of its sockets is.
        self._loop.add_reader(self._set.fileno(), self._on_ready)

    async def connect(self, ip: str, port: int) -> HttpConnection:
        """A wire to an address. Raises OSError."""
        sock = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.sock_connect(sock, (ip, port))
        except BaseException:
            sock.close()
            raise
        return self.adopt(sock)

    def adopt(self, sock: socket.socket) -> HttpConnection:
        """A wire over a connected socket, which is the ear's from now on."""
        connection = HttpConnection()
        transport = SocketTransport(self, sock, connection)
        ask_for_arrivals(sock)
        self._transports[transport.fd] = transport
        self._set.register(transport.fd, select.EPOLLIN)
        connection.attach_transport(transport)
        return connection

    def forget(self, fd: int) -> None:
        """A line is about to close."""
        del self._transports[fd]
        self._streams.pop(fd, None)
        self._set.unregister(fd)

    def _on_ready(self) -> None:
        self._read_ready()
        if self.polling.busy:
            self._loop.remove_reader(self._set.fileno())
            self._timer = self._loop.call_later(self.polling.interval_s, self._poll)

    def _poll(self) -> None:
        self._read_ready()
        if self.polling.busy:
            self._timer = self._loop.call_later(self.polling.interval_s, self._poll)
        else:
            self._timer = None
            self._loop.add_reader(self._set.fileno(), self._on_ready)

    def _read_ready(self) -> None:
        """Read every socket that is ready. The loop's body runs for every chunk of a run."""
        if self.clock.stepped():
            self.flush()
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
                data, ancillary, _, _ = read(READ_BYTES, ANCILLARY_BYTES)
            except OSError:
                due.append(fd)  # reading it once more tells why
                continue
            keep(data)
            # Sixteen bytes are kept, as they are: what is let go of at once is used again while still in the cache.
            keep_stamp(ancillary[0][2] if ancillary else perf_counter_ns())
            if data.endswith(ending) or len(data) < shortest:  # `may_be_last`, without a call for each chunk
                self._flush_one(fd)
                if not data:
                    due.append(fd)
        for fd in due:
            self._read_one(fd)
        self.polling.note(len(ready), len(streams), perf_counter_ns(), exact=self.clock.exact)

    def _read_one(self, fd: int) -> None:
        """Read a line that is not within a stream, and hand that out at once."""
        transport = self._transports.get(fd)
        if transport is None:  # closed by what came before
            return
        self._flush_one(fd)
        try:
            data, ancillary, _, _ = transport.read(READ_BYTES, ANCILLARY_BYTES)
        except BlockingIOError:
            return
        except OSError as bad:
            transport.lost(bad)
            return
        if not data:
            transport.lost(None)
            return
        self._deliver(transport, [data], self.clock.times([stamp_of(ancillary)]))

    def _flush_one(self, fd: int) -> None:
        """What was kept of a line's stream goes to its wire."""
        stream = self._streams.pop(fd, None)
        if stream is None:
            return
        _, _, _, reads, stamps = stream
        if reads and not reads[-1]:  # the end of the connection is no read
            reads.pop()
            stamps.pop()
        if reads:
            self._deliver(self._transports[fd], reads, self.clock.times(stamps))

    def _deliver(self, transport: SocketTransport, reads: list[bytes], times: list[int]) -> None:
        """All but the last read belong to a running stream; the last may be anything."""
        last_ns = times.pop()
        last = reads.pop()
        transport.connection.append_reads(reads, times)
        transport.connection.received(last, last_ns)
        if transport.connection.streaming and transport.fd in self._transports:
            append_reads: list[bytes] = []
            stamps: list[Stamp] = []
            self._streams[transport.fd] = transport.read, append_reads.append, stamps.append, append_reads, stamps
        else:
            self.end_detection_lag_ns.append(perf_counter_ns() - last_ns)

    def flush(self) -> None:
        """Hand what was read to the wires."""
        for fd in list(self._streams):
            self._flush_one(fd)

    def close(self) -> None:
        """Close all lines and the set."""
        for transport in list(self._transports.values()):
            transport.abort()
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._set.fileno())
        self._set.close()
