"""Migrated requests go first, but not all at once.

After the death of a replica, everything that ran there prefills again elsewhere. All at once, that would stall the
streams that already run there. So the tokens of migrated prompts that prefill at the same time are limited. New
requests wait while a migrated one waits: a client that has begun to receive an answer comes before one that has not.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

TOKENS_PER_REPLICA = 32_768
"""Tokens of migrated prompts that may prefill at a time per replica: four steps of 8,192, about half a second of a B200
node at its published rates."""


def has_room(inside_tokens: int, asked_tokens: int, replicas: int) -> bool:
    """Whether a migrated prompt of `asked_tokens` may prefill beside those inside. A single one always may: it may be
    longer."""
    return inside_tokens == 0 or inside_tokens + asked_tokens <= TOKENS_PER_REPLICA * replicas


class MigrationThrottle:
    """First come, first served. `replicas` returns how many take work now."""

    def __init__(self, replicas: Callable[[], int]) -> None:
        self._replicas = replicas
        self._inside: dict[object, int] = {}
        self._inside_tokens = 0
        self._queue: deque[tuple[object, int, asyncio.Future[None]]] = deque()
        self._nobody_waits = asyncio.Event()
        self._nobody_waits.set()

    async def enter(self, who: object, tokens: int) -> None:
        """Return when `who` may prefill this many tokens again. Call `leave` afterwards."""
        if not self._queue and has_room(self._inside_tokens, tokens, self._replicas()):
            self._admit(who, tokens)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((who, tokens, turn))
        self._nobody_waits.clear()
        try:
            await turn
        except asyncio.CancelledError:
            self.leave(who)  # it may have been admitted at the same moment
            raise

    def leave(self, who: object) -> None:
        """`who` has its first new token, or has given up. A second call, or one without `enter`, does nothing."""
        self._inside_tokens -= self._inside.pop(who, 0)
        self.admit_waiting()

    async def until_nobody_waits(self) -> None:
        """Return when no migrated request waits."""
        await self._nobody_waits.wait()

    def admit_waiting(self) -> None:
        """Admit waiting requests that fit now: after `leave`, or when replicas came."""
        while self._queue:
            who, tokens, turn = self._queue[0]
            if not turn.done():
                if not has_room(self._inside_tokens, tokens, self._replicas()):
                    return
                self._admit(who, tokens)
                turn.set_result(None)
            self._queue.popleft()
        self._nobody_waits.set()

    def _admit(self, who: object, tokens: int) -> None:
        self._inside[who] = tokens
        self._inside_tokens += tokens
