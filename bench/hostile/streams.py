"""Streams beside which hostile requests come: endless ones, of which only the gaps between events are kept.

`python -m bench.hostile.streams PORT MODEL COUNT` reads them, in a process of its own: the other looks at the memory of
all processes while a request is under way, and a stream would wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from bench.hostile.requests import COMPLETIONS, base

TOKENS: Final = 600
RETRY_S: Final = 0.5
"""After a stream that broke: the service may be without an engine."""


@dataclass
class Streams:
    """What the streams of the other process are like. Times are of the monotonic clock, which processes share."""

    port: int
    model: str
    gaps: list[tuple[float, float]] = field(default_factory=list)
    """Pairs: when an event came, and how long after the one before it, in seconds."""
    broken: int = 0
    """Streams that ended otherwise than with their last event."""

    @contextlib.asynccontextmanager
    async def run(self, count: int) -> AsyncIterator[None]:
        """So many run while in here."""
        command = (sys.executable, "-m", "bench.hostile.streams", str(self.port), self.model, str(count))
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        following = asyncio.create_task(self._follow(process))
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            await following

    def between(self, since_s: float, until_s: float) -> list[float]:
        """The gaps that ended in this time, in order of length."""
        return sorted(gap for when, gap in self.gaps if since_s <= when <= until_s)

    async def _follow(self, process: asyncio.subprocess.Process) -> None:
        if process.stdout is None:  # it was asked for
            return
        async for line in process.stdout:
            cells = line.split()
            if len(cells) == 2:
                self.gaps.append((float(cells[0]), float(cells[1])))
            else:
                self.broken += 1


@dataclass(frozen=True)
class _Reader:
    """Prints a line for each gap, and a single word for each stream that broke."""

    port: int
    model: str

    async def run(self, count: int) -> None:
        await asyncio.gather(*(self._repeat(number) for number in range(count)))

    async def _repeat(self, number: int) -> None:
        while True:
            try:
                finished = await self._one(number)
            except OSError:
                finished = False
            if not finished:
                print("broken", flush=True)
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
                        print(f"{now_s:.6f} {now_s - last_s:.6f}", flush=True)
                    last_s = now_s
            return False
        finally:
            writer.close()


def main(argv: Sequence[str]) -> None:
    """Read streams until killed."""
    port, model, count = argv
    asyncio.run(_Reader(int(port), model).run(int(count)))


if __name__ == "__main__":
    main(sys.argv[1:])
