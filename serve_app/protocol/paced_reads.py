"""Reads of many connections, at most every `PERIOD_S`: what keeps a token's cost flat as engines are added.

Each step of an engine is a message to an ingress. From one engine an ingress gets 20 to 60 a second, with all its
sequences; from 64 it gets 64 times as many, with few sequences each, and to wake up for one costs as much as a chunk of
a stream: the kernel, the event loop, and caches that are cold each time. So where there are more than
`FEW_CONNECTIONS`, their sockets are looked at together, once in a period: the first message after a pause of that
length is read at once, and later ones wait for the next look. Where there are few, each is read as it comes.

The sockets are in an epoll set of their own, which the event loop watches like one socket, or not at all.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable
from typing import Final

FEW_CONNECTIONS: Final = 24
"""Where messages are read at most every `PERIOD_S`, two steps of one engine may be read together, and are then one
chunk of a stream. Engines of this model take longer for a step, but for the few hundred GPUs that most have, nothing is
to depend on it."""

PERIOD_S: Final = 0.01
"""The longest that a message waits. An engine's step takes 10 to 50 ms."""


class PacedReads:
    """The connections of one event loop, by their sockets. `period_s` and `few_connections` as above."""

    def __init__(self, period_s: float = PERIOD_S, few_connections: int = FEW_CONNECTIONS) -> None:
        self._period_s = period_s
        self._few_connections = few_connections
        self._epoll = select.epoll()
        self._readers: dict[int, Callable[[], None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._is_watched = False

    def add(self, connection: socket.socket, read: Callable[[], None]) -> None:
        """Call `read` whenever there is something to receive, an error or an end. It must not block or raise. Raises
        `OSError` where the system has no room for it."""
        descriptor = connection.fileno()
        self._epoll.register(descriptor, select.EPOLLIN)
        self._readers[descriptor] = read
        if self._timer is None:
            self._watch()

    def remove(self, connection: socket.socket) -> None:
        """Look at this one no more. It must still be open."""
        del self._readers[connection.fileno()]
        self._epoll.unregister(connection.fileno())
        if not self._readers:
            self._unwatch()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _on_ready(self) -> None:
        self._read()
        if len(self._readers) > self._few_connections:
            self._unwatch()
            self._read_later()

    def _on_time(self) -> None:
        self._timer = None
        found = True
        try:
            found = self._read()
        finally:  # whatever becomes of one connection, the others are read
            if found and len(self._readers) > self._few_connections:
                self._read_later()
            elif self._readers:
                self._watch()

    def _read(self) -> bool:
        ready = self._epoll.poll(0)
        for descriptor, _ in ready:
            if (read := self._readers.get(descriptor)) is not None:  # the one before may have ended it
                read()
        return bool(ready)

    def _read_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._period_s, self._on_time)

    def _watch(self) -> None:
        if not self._is_watched:
            asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._on_ready)
            self._is_watched = True

    def _unwatch(self) -> None:
        if self._is_watched:
            asyncio.get_running_loop().remove_reader(self._epoll.fileno())
            self._is_watched = False
