"""The client: many event streams at once in a process of its own, which notes when each piece of them came.

It does not parse what it reads, because it shares the machine with what it measures: it looks for the blank lines that
end events. `python -m bench.front_end.streams` reads one `Job` per line (JSON) and answers each with a line: `Result`.
"""

from __future__ import annotations

import asyncio
import functools
import subprocess
import sys
import time
from array import array
from pathlib import Path
from types import TracebackType
from typing import Self, cast

import msgspec
import uvloop

from bench.client import RunFailed, use_realtime_priority

END_OF_EVENT = b"\n\n"
LATEST_END_S = 300.0
"""A stream that is not over by then has failed."""


class Job(msgspec.Struct):
    """`requests` requests with these bodies in turn, `concurrency` at a time."""

    port: int
    path: str
    bodies: list[str]
    requests: int
    concurrency: int


class Stream(msgspec.Struct):
    """One answer. `times_s` has the monotonic clock at each read in which an event ended."""

    started_s: float
    times_s: list[float]
    error: str = ""


class Result(msgspec.Struct):
    """All answers of a job."""

    streams: list[Stream]


class _Reader(asyncio.Protocol):
    def __init__(self, request: bytes) -> None:
        self._request = request
        self._head = b""
        self._last = b""
        self.started_s = time.monotonic()
        self.times_s = array("d")
        self.error = ""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.started_s = time.monotonic()
        cast("asyncio.Transport", transport).write(self._request)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        if not self._head:
            self._head = data[:200]
        # A chunk of the transfer encoding ends with its event: the blank line is in one read.
        if END_OF_EVENT in data:
            self.times_s.append(time.monotonic())
        self._last = data[-80:]

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        if not self._head.startswith(b"HTTP/1.1 200"):
            self.error = f"no answer: {self._head.decode('latin-1')!r}"
        elif not self._last.endswith(b"0\r\n\r\n"):
            self.error = f"the answer broke off: {self._last.decode('latin-1')!r}"
        if not self.done.done():
            self.done.set_result(None)

    def stream(self) -> Stream:
        return Stream(self.started_s, self.times_s.tolist(), self.error)


async def _run(job: Job) -> list[Stream]:
    loop = asyncio.get_running_loop()
    requests = [_request(job, body) for body in job.bodies]
    numbers = iter(range(job.requests))
    streams: list[Stream] = []

    async def worker() -> None:
        for number in numbers:
            make = functools.partial(_Reader, requests[number % len(requests)])
            transport, reader = await loop.create_connection(make, "127.0.0.1", job.port)
            try:
                async with asyncio.timeout(LATEST_END_S):
                    await reader.done
            except TimeoutError:
                reader.error = f"not over after {LATEST_END_S:.0f} s"
            transport.close()
            streams.append(reader.stream())

    await asyncio.gather(*(worker() for _ in range(job.concurrency)))
    return streams


def _request(job: Job, body: str) -> bytes:
    content = body.encode()
    head = (
        f"POST {job.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"anthropic-version: 2023-06-01\r\nConnection: close\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


class StreamClient:
    """Starts the client's process and sends it jobs. Use as a context manager."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.front_end.streams"],
            cwd=Path(__file__).resolve().parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def run(self, job: Job) -> Result:
        """Raises `RunFailed` where a stream failed."""
        if self._process.stdin is None or self._process.stdout is None:
            raise RunFailed("the client is not running")
        self._process.stdin.write(msgspec.json.encode(job) + b"\n")
        self._process.stdin.flush()
        reply = self._process.stdout.readline()
        if not reply:
            raise RunFailed("the client ended; see above")
        result = msgspec.json.decode(reply, type=Result)
        failed = [stream.error for stream in result.streams if stream.error]
        if failed:
            raise RunFailed(f"{len(failed)} of {len(result.streams)} streams failed, the first: {failed[0]}")
        return result


def serve() -> None:
    """Run the jobs from stdin until it ends."""
    use_realtime_priority()
    # With PYTHONUNBUFFERED, `sys.stdout.buffer` is the bare file: of a long line it may write a part only.
    with open(sys.stdout.fileno(), "wb", closefd=False) as output:
        for line in sys.stdin.buffer:
            streams = uvloop.run(_run(msgspec.json.decode(line, type=Job)))
            output.write(msgspec.json.encode(Result(streams)) + b"\n")
            output.flush()


if __name__ == "__main__":
    serve()
