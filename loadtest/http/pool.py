"""Connections to one address: one per request in flight, reused while they are fresh."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from time import perf_counter_ns

from loadtest.http.address import Address, tls_context
from loadtest.http.connection import Wire
from loadtest.http.socket_reader import Ear

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
        self._idle: list[Wire] = []
        self._all: set[Wire] = set()
        self._measuring = measuring
        self._ear: Ear | None = None

    async def take(self) -> tuple[Wire, int]:
        """A live connection and the nanoseconds it took to open (0 if it was at hand)."""
        oldest = perf_counter_ns() - int(REUSE_WITHIN_S * 1e9)
        while self._idle:
            wire = self._idle.pop()
            if not wire.closed and wire.idle_since_ns >= oldest:
                return wire, 0
            self._drop(wire)
        begin = perf_counter_ns()
        return await self._open(), perf_counter_ns() - begin

    async def _open(self) -> Wire:
        try:
            async with asyncio.timeout(self._timeout_s):
                wire = await self._connect()
        except ssl.SSLCertVerificationError as bad:
            raise ConnectFailed(f"the server's certificate is not trusted: {bad.verify_message}") from bad
        except ssl.SSLError as bad:
            raise ConnectFailed(f"TLS failed: {bad.reason or bad}") from bad
        except TimeoutError as bad:
            raise ConnectFailed(f"no connection within {self._timeout_s:g} s") from bad
        except OSError as bad:
            raise ConnectFailed(bad.strerror or str(bad)) from bad
        self._all.add(wire)
        return wire

    @property
    def read_by_clock(self) -> bool:
        """Whether chunks came so often that they were read in steps, on a system that does not tell when they came."""
        return self._ear is not None and self._ear.pace.ever_many and not self._ear.clock.exact

    @property
    def ends_late_ms(self) -> float:
        """How long after their last bytes responses were found to be over, on average; TLS is not counted."""
        late = self._ear.ends_late_ns if self._ear is not None else []
        return sum(late) / len(late) / 1e6 if late else 0.0

    async def _connect(self) -> Wire:
        endpoint = self._endpoint
        if self._measuring and self._tls is None:
            self._ear = self._ear or Ear()
            return await self._ear.connect(endpoint.ip, endpoint.address.port)
        _, wire = await asyncio.get_running_loop().create_connection(
            Wire,
            endpoint.ip,
            endpoint.address.port,
            ssl=self._tls,
            server_hostname=endpoint.address.host if self._tls else None,
        )
        return wire

    def settle(self) -> None:
        """Hand out what was read and not handed out yet, before exchanges are ended from this side."""
        if self._ear is not None:
            self._ear.deliver()

    async def open_ahead(self, count: int) -> None:
        """Open connections before the clock starts, as a client that has been running for a while would have."""
        for wire in await asyncio.gather(*(self._open() for _ in range(count))):
            self.give(wire)

    def give(self, wire: Wire) -> None:
        """Take a connection back after its exchange."""
        if wire.closed or not self._reuse:
            self._drop(wire)
        else:
            self._idle.append(wire)

    def _drop(self, wire: Wire) -> None:
        self._all.discard(wire)
        wire.close()

    def close(self) -> None:
        """Close every connection, idle or not."""
        for wire in list(self._all):
            self._drop(wire)
        self._idle.clear()
        if self._ear is not None:
            self._ear.close()
            self._ear = None
