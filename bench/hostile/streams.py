"""Streams beside which hostile requests come: endless ones, of which only the gaps between events are kept."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Final

from bench.hostile.kinds import COMPLETIONS, base

TOKENS: Final = 600
RETRY_S: Final = 0.5
"""After a stream that broke: the service may be without an engine."""


@dataclass
class Streams:
    """`gaps` are pairs: when an event came, and how long after the one before it, in seconds."""

    port: int
    model: str
    gaps: list[tuple[float, float]] = field(default_factory=list)
    broken: int = 0
    """Streams that ended otherwise than with their last event."""

    @contextlib.asynccontextmanager
    async def run(self, count: int) -> AsyncIterator[None]:
        """So many run while in here."""
        tasks = [asyncio.create_task(self._repeat(number)) for number in range(count)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def between(self, since_s: float, until_s: float) -> list[float]:
        """The gaps that ended in this time, in order of length."""
        return sorted(gap for when, gap in self.gaps if since_s <= when <= until_s)

    async def _repeat(self, number: int) -> None:
        while True:
            try:
                finished = await self._one(number)
            except OSError:
                finished = False
            if not finished:
                self.broken += 1
                await asyncio.sleep(RETRY_S)

    async def _one(self, number: int) -> bool:
        # Each token is an event: a chat's parsers keep back what may be a call, and special tokens have no text.
        every = {"stream": True, "ignore_eos": True, "skip_special_tokens": False}
        body = base(COMPLETIONS, f"Count from {number}.", TOKENS) | {"model": self.model, **every}
        content = json.dumps(body).encode()
        head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\nContent-Type: application/json\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
            last_s = None
            async for line in reader:  # the framing of chunks has lines of its own, which begin otherwise
                if line.startswith(b"data: [DONE]"):
                    return True
                if line.startswith(b"data: {"):
                    now_s = time.monotonic()
                    if last_s is not None:
                        self.gaps.append((now_s, now_s - last_s))
                    last_s = now_s
            return False
        finally:
            writer.close()
