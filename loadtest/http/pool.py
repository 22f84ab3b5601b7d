"""Connections to one address: one per request in flight, reused while they are fresh."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from time import perf_counter_ns

from loadtest.http.address import Address, tls_context
from loadtest.http.connection import HttpConnection
from loadtest.http.socket_reader import SocketReader

REUSE_WITHIN_S = 4.0
"""uvicorn hangs up on connections idle for 5 s. A request written at that moment would be lost, and repeating it
unasked would be a silent retry; so older connections are closed from this side."""


class ConnectFailed(Exception):
    """No connection; the text is for the user."""


@dataclass(frozen=True)
class Endpoint:
    """An address that has been looked up, and how to speak TLS to it. It can cross to another process."""

    address: Address
    ip: str
    verify: bool = True
    ca_file: str | None = None


class Pool:
    """Owns all connections of one worker."""

    def __init__(
        self, endpoint: Endpoint, *, reuse: bool = True, connect_timeout_s: float = 30.0, measuring: bool = False
    ) -> None:
        """With `measuring`, plain connections are read by an ear, at a fraction of a transport's cost."""
        self._endpoint = endpoint
        self._tls = tls_context(endpoint.address, verify=endpoint.verify, ca_file=endpoint.ca_file)
        self._reuse = reuse
        self._timeout_s = connect_timeout_s
        self._idle: list[HttpConnection] = []
        self._all: set[HttpConnection] = set()
        self._measuring = measuring
        self._socket_reader: SocketReader | None = None

    async def acquire(self) -> tuple[HttpConnection, int]:
        """A live connection and the nanoseconds it took to open (0 if it was at hand)."""
        oldest = perf_counter_ns() - int(REUSE_WITHIN_S * 1e9)
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed and connection.idle_since_ns >= oldest:
                return connection, 0
            self._drop(connection)
        begin = perf_counter_ns()
        return await self._open(), perf_counter_ns() - begin

    async def _open(self) -> HttpConnection:
        try:
            async with asyncio.timeout(self._timeout_s):
                connection = await self._connect()
        except ssl.SSLCertVerificationError as bad:
            raise ConnectFailed(f"the server's certificate is not trusted: {bad.verify_message}") from bad
        except ssl.SSLError as bad:
            raise ConnectFailed(f"TLS failed: {bad.reason or bad}") from bad
        except TimeoutError as bad:
            raise ConnectFailed(f"no connection within {self._timeout_s:g} s") from bad
        except OSError as bad:
            raise ConnectFailed(bad.strerror or str(bad)) from bad
        self._all.add(connection)
        return connection

    @property
    def coarse_timestamps(self) -> bool:
        """Whether chunks came so often that they were read in steps, on a system that does not tell when they came."""
        return (
            self._socket_reader is not None
            and self._socket_reader.polling.ever_busy
            and not self._socket_reader.clock.exact
        )

    @property
    def end_detection_lag_ms(self) -> float:
        """How long after their last bytes responses were found to be over, on average; TLS is not counted."""
        late = self._socket_reader.end_detection_lag_ns if self._socket_reader is not None else []
        return sum(late) / len(late) / 1e6 if late else 0.0

    async def _connect(self) -> HttpConnection:
        endpoint = self._endpoint
        if self._measuring and self._tls is None:
            self._socket_reader = self._socket_reader or SocketReader()
            return await self._socket_reader.connect(endpoint.ip, endpoint.address.port)
        _, connection = await asyncio.get_running_loop().create_connection(
            HttpConnection,
            endpoint.ip,
            endpoint.address.port,
            ssl=self._tls,
            server_hostname=endpoint.address.host if self._tls else None,
        )
        return connection

    def flush(self) -> None:
        """Hand out what was read and not handed out yet, before exchanges are ended from this side."""
        if self._socket_reader is not None:
            self._socket_reader.flush()

    async def preconnect(self, count: int) -> None:
        """Open connections before the clock starts, as a client that has been running for a while would have."""
        for connection in await asyncio.gather(*(self._open() for _ in range(count))):
            self.release(connection)

    def release(self, connection: HttpConnection) -> None:
        """Take a connection back after its exchange."""
        if connection.closed or not self._reuse:
            self._drop(connection)
        else:
            self._idle.append(connection)

    def _drop(self, connection: HttpConnection) -> None:
        self._all.discard(connection)
        connection.close()

    def close(self) -> None:
        """Close every connection, idle or not."""
        for connection in list(self._all):
            self._drop(connection)
        self._idle.clear()
        if self._socket_reader is not None:
            self._socket_reader.close()
            self._socket_reader = None
