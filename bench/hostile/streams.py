"""Streams that run beside hostile requests, and the gaps between their events.

`python -m bench.hostile.streams PORT MODEL COUNT` reads them, in a process of its own: the main process samples the
memory of all the service's processes, and would read the streams late meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from bench.hostile.requests import COMPLETIONS, harmless_body
from bench.response_lines import DATA, DONE, RequestFailed, response_lines

TOKENS: Final = 600
TIMEOUT_S: Final = 600.0
RETRY_S: Final = 0.5
"""After a broken stream: the service may be without an engine."""


@dataclass
class Streams:
    """The gaps of the streams that the other process reads, on the monotonic clock, which processes share."""

    port: int
    model: str
    gaps: list[tuple[float, float]] = field(default_factory=list)
    """(arrival of an event, seconds since the event before it)."""
    broken: int = 0
    """Streams that did not end with their last event."""

    @contextlib.asynccontextmanager
    async def run(self, count: int) -> AsyncIterator[None]:
        """Run this many streams while the block runs."""
        command = (sys.executable, "-m", "bench.hostile.streams", str(self.port), self.model, str(count))
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        reading = asyncio.create_task(self._read_gaps(process))
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            await reading

    def between(self, since_s: float, until_s: float) -> list[float]:
        """The gaps that ended in this time, sorted."""
        return sorted(gap_s for at_s, gap_s in self.gaps if since_s <= at_s <= until_s)

    async def _read_gaps(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None  # noqa: S101  # it is a pipe
        async for line in process.stdout:
            words = line.split()
            if len(words) == 2:
                self.gaps.append((float(words[0]), float(words[1])))
            else:
                self.broken += 1


def run_client(url: str, model: str, number: int, over: threading.Event) -> None:
    """Read one stream after another; write a line for each gap, and `broken` for each stream that broke."""
    while not over.is_set():
        try:
            finished = read_stream(url, model, number)
        except RequestFailed:
            finished = False
        if not finished:
            _write("broken")
            over.wait(RETRY_S)


def read_stream(url: str, model: str, number: int) -> bool:
    """Whether the stream ended with its end marker. Raises `RequestFailed`."""
    # Completions with special tokens: each token is an event. A chat's parsers hold back text that may be a tool call.
    every_token = {"stream": True, "ignore_eos": True, "skip_special_tokens": False}
    body = harmless_body(COMPLETIONS, f"Count from {number}.", TOKENS) | {"model": model, **every_token}
    last_s = None
    for line in response_lines(url, COMPLETIONS, body, TIMEOUT_S):
        if line.startswith(DONE):
            return True
        if line.startswith(DATA):
            now_s = time.monotonic()
            if last_s is not None:
                _write(f"{now_s:.6f} {now_s - last_s:.6f}")
            last_s = now_s
    return False


def _write(line: str) -> None:
    sys.stdout.write(f"{line}\n")  # one write: several threads share it
    sys.stdout.flush()


def main(argv: Sequence[str]) -> None:
    """Read streams until killed."""
    port, model, count = argv
    over = threading.Event()
    with ThreadPoolExecutor(int(count)) as pool:
        for number in range(int(count)):
            pool.submit(run_client, f"http://127.0.0.1:{port}", model, number, over)


if __name__ == "__main__":
    main(sys.argv[1:])
