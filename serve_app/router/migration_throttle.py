"""Resumed work goes first, but not all at once.

A replica's death makes everything that ran there prefill again elsewhere. All at once, that would stop the streams of
those who had the luck to run there: so only so many tokens of resumed prompts are on their way to their first new token
at a time. New requests wait until no resumed one waits: who has begun an answer comes before who has none.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

TOKENS_PER_REPLICA = 32_768
"""Tokens of resumed prompts that may prefill at a time per replica: four steps of 8,192, about half a second of a
B200 node at its published rates."""


def has_room(inside_tokens: int, asked_tokens: int, replicas: int) -> bool:
    """Whether a resumed prompt of `asked_tokens` may go beside those inside. One alone may always: it may be longer."""
    return inside_tokens == 0 or inside_tokens + asked_tokens <= TOKENS_PER_REPLICA * replicas


class MigrationThrottle:
    """First come, first served. `replicas` tells how many can take work now."""

    def __init__(self, replicas: Callable[[], int]) -> None:
        self._replicas = replicas
        self._inside: dict[object, int] = {}
        self._inside_tokens = 0
        self._queue: deque[tuple[object, int, asyncio.Future[None]]] = deque()
        self._nobody_waits = asyncio.Event()
        self._nobody_waits.set()

    async def enter(self, who: object, tokens: int) -> None:
        """Return when `who` may prefill this many tokens again. It must `leave`."""
        if not self._queue and has_room(self._inside_tokens, tokens, self._replicas()):
            self._let_in(who, tokens)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((who, tokens, turn))
        self._nobody_waits.clear()
        try:
            await turn
        except asyncio.CancelledError:
            self.leave(who)  # it may have been let in at the same moment
            raise

    def leave(self, who: object) -> None:
        """It has its first new token, or has given up. Leaving twice, or without having entered, does nothing."""
        self._inside_tokens -= self._inside.pop(who, 0)
        self.look()

    async def until_nobody_waits(self) -> None:
        """Return when no resumed request waits."""
        await self._nobody_waits.wait()

    def look(self) -> None:
        """Let in who has room now: after a leave, or when replicas came."""
        while self._queue:
            who, tokens, turn = self._queue[0]
            if not turn.done():
                if not has_room(self._inside_tokens, tokens, self._replicas()):
                    return
                self._let_in(who, tokens)
                turn.set_result(None)
            self._queue.popleft()
        self._nobody_waits.set()

    def _let_in(self, who: object, tokens: int) -> None:
        self._inside[who] = tokens
        self._inside_tokens += tokens
