"""Connection pool for one address: one connection per request in flight, reused while it is fresh."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from time import perf_counter_ns

from loadtest.http.address import Address, tls_context
from loadtest.http.connection import HttpConnection

REUSE_WITHIN_S = 4.0
"""uvicorn closes connections that are idle for 5 s. A request written at that moment would fail, and sending it again
would be a hidden retry; so the client closes older connections itself."""


class ConnectFailed(Exception):
    """No connection; the text is for the user."""


@dataclass(frozen=True)
class Endpoint:
    """A resolved address and its TLS settings. It is picklable, for workers in other processes."""

    address: Address
    ip: str
    verify: bool = True
    ca_file: str | None = None


class Pool:
    """Owns all connections of one worker."""

    def __init__(self, endpoint: Endpoint, *, reuse: bool = True, connect_timeout_s: float = 30.0) -> None:
        self._endpoint = endpoint
        self._tls = tls_context(endpoint.address, verify=endpoint.verify, ca_file=endpoint.ca_file)
        self._reuse = reuse
        self._timeout_s = connect_timeout_s
        self._idle: list[HttpConnection] = []
        self._all: set[HttpConnection] = set()

    async def acquire(self) -> tuple[HttpConnection, int]:
        """An open connection, and the nanoseconds that opening it took (0 if it was idle). Raises ConnectFailed."""
        oldest_ns = perf_counter_ns() - int(REUSE_WITHIN_S * 1e9)
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed and connection.idle_since_ns >= oldest_ns:
                return connection, 0
            self._drop(connection)
        begin_ns = perf_counter_ns()
        return await self._open(), perf_counter_ns() - begin_ns

    def release(self, connection: HttpConnection) -> None:
        """Take a connection back after its exchange."""
        if connection.closed or not self._reuse:
            self._drop(connection)
        else:
            self._idle.append(connection)

    async def preconnect(self, count: int) -> None:
        """Open idle connections before the clock starts. Raises ConnectFailed."""
        for connection in await asyncio.gather(*(self._open() for _ in range(count))):
            self.release(connection)

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

    async def _connect(self) -> HttpConnection:
        endpoint = self._endpoint
        _, connection = await asyncio.get_running_loop().create_connection(
            HttpConnection,
            endpoint.ip,
            endpoint.address.port,
            ssl=self._tls,
            server_hostname=endpoint.address.host if self._tls else None,
        )
        return connection

    def _drop(self, connection: HttpConnection) -> None:
        self._all.discard(connection)
        connection.close()

    def close(self) -> None:
        """Close every connection, idle or not."""
        for connection in list(self._all):
            self._drop(connection)
        self._idle.clear()
