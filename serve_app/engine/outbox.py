"""What waits to be sent to one ingress: tokens, and what has changed in the prefix cache. Steps that the connection
cannot take yet become one frame."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from serve_app.engine.cache_log import CacheLog
from serve_app.protocol.messages import CacheChanges, TokenDelta


class Outbox:
    """The next frame of one connection."""

    def __init__(self) -> None:
        self._deltas: list[TokenDelta] = []
        self._cache = CacheLog()
        self._ready = asyncio.Event()
        self.closed = False

    def __len__(self) -> int:
        return len(self._deltas)

    def put(self, deltas: Sequence[TokenDelta]) -> None:
        """Add deltas; they go out with the next frame."""
        self._deltas += deltas
        self._ready.set()

    def put_cache(self, changes: CacheChanges) -> None:
        """Add changes of the cache. They wait for a delta or a heartbeat: nobody waits for them."""
        self._cache.add(changes)

    def heartbeat(self) -> None:
        """Send a frame even if it has no deltas."""
        self._ready.set()

    def close(self) -> None:
        """End it after what waits has been sent."""
        self.closed = True
        self._ready.set()

    async def take(self) -> tuple[list[TokenDelta], CacheChanges | None]:
        """Everything that waits, as soon as there is a delta or a heartbeat is due."""
        await self._ready.wait()
        self._ready.clear()
        deltas, self._deltas = self._deltas, []
        return deltas, self._cache.take()
