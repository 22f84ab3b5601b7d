"""Tries each grammar once in a process beside the ingress, before an engine gets it.

Compiling is CPU work that may explode, so it runs neither on the event loop nor in an engine first (`vllm_worker.py`
bounds its time and memory). Results are cached. One grammar of a client is tried at a time, so that a client that sends
many bad ones delays others only by the one in progress.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import subprocess
import sys
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final, Self

import msgspec

from serve_app.ingress.grammars.jobs import GrammarVerdict, Job, WorkerSettings, encode
from serve_app.protocol.errors import Outcome, QueueFull, ServeError

logger = logging.getLogger(__name__)

KEPT_VERDICTS: Final = 1024

MAX_WAITING: Final = 32
"""Grammars of one client that may wait. Each may take seconds."""

ANSWER_TIMEOUT_S: Final = 120.0
"""Longest wait for one result of the worker, its start included: many times the CPU time that it allows, because on a
busy machine it is scheduled last. After that the worker is replaced."""


class CheckerBusy(ServeError):
    """A grammar could not be tried. It may be fine."""

    def __init__(self) -> None:
        super().__init__(
            "The request's grammar could not be checked in time. Please retry.",
            HTTPStatus.SERVICE_UNAVAILABLE,
            Outcome.NO_REPLICA,
            5.0,
        )


@dataclass(eq=False)
class _Client:
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0


@dataclass(frozen=True)
class _Worker:
    """The process. Its methods block, and are called in threads.

    It is started by `subprocess`, which uses vfork. uvloop, on which an ingress runs, forks, and a fork of a process
    with gRPC's threads may never reach its exec: the event loop then waits for it forever.
    """

    process: subprocess.Popen[bytes]

    @classmethod
    def start(cls) -> _Worker:
        """Returns at once. The first message to the worker must be its `WorkerSettings`; the answer says that it is
        ready."""
        command = (sys.executable, "-m", "serve_app.ingress.grammars.vllm_worker")
        environment = {
            **os.environ,
            # A fork with threads is not safe.
            "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": "1",
            # A compiler that explodes allocates by the hundred thousand. With an arena per thread, each grown by a page
            # at a time, its eight threads stop the machine for half a second.
            "MALLOC_ARENA_MAX": "1",
            "MALLOC_TOP_PAD_": str(16 << 20),
            # vLLM's own limit is of time on the clock, and on a busy machine good expressions would meet it.
            "VLLM_REGEX_COMPILATION_TIMEOUT_S": "0",
        }
        return cls(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment))

    def converse(self, message: bytes) -> bytes:
        """The body of the answer to `message`. Raises `EOFError` and `OSError` when the process has ended."""
        if self.process.stdin is None or self.process.stdout is None:  # they were asked for
            raise EOFError
        self.process.stdin.write(message)
        self.process.stdin.flush()
        head = self.process.stdout.read(4)
        body = self.process.stdout.read(int.from_bytes(head, "big"))
        if len(head) < 4 or not body:
            raise EOFError
        return body

    def end(self) -> None:
        """Kill it, and return when it has ended. A call of `converse` that waits ends with it."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):  # unwritten data cannot be flushed
                if pipe is not None:
                    pipe.close()


class GrammarChecker:
    """One worker process, started when it is first needed. Use as an async context manager: leaving it ends the
    process."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._worker: _Worker | None = None
        self._starting: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()
        self._clients: dict[str | None, _Client] = {}
        self._verdicts: OrderedDict[bytes, GrammarVerdict] = OrderedDict()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        async with self._turn:
            await self._stop()

    async def check(self, fields: Mapping[str, Any], client: str | None) -> GrammarVerdict:
        """The result for a grammar. Raises `QueueFull` when the client has too many waiting, `CheckerBusy` when there
        is no result, and `ValueError` and `RecursionError` for what is no JSON."""
        job = encode(Job(json.dumps(fields)))
        key = hashlib.blake2b(job, digest_size=16).digest()
        if (known := self._known(key)) is not None:
            return known
        mine = self._clients.setdefault(client, _Client())
        if mine.waiting >= MAX_WAITING:
            raise QueueFull(5, "too many of your grammars wait to be checked")
        mine.waiting += 1
        try:
            async with mine.turn, self._turn:
                return self._known(key) or await self._ask(job, key)
        finally:
            mine.waiting -= 1
            if not mine.waiting:
                self._clients.pop(client, None)

    def start(self) -> None:
        """Start the worker before it is needed, and return: that takes seconds."""
        self._starting = asyncio.get_running_loop().create_task(self._start(), name="grammar checker")

    async def _start(self) -> None:
        try:
            async with self._turn, self._answered():
                await self._running()
        except CheckerBusy:
            logger.warning("the grammar checker did not start; the first grammar starts it again", exc_info=True)

    def _known(self, key: bytes) -> GrammarVerdict | None:
        verdict = self._verdicts.get(key)
        if verdict is not None:
            self._verdicts.move_to_end(key)
        return verdict

    async def _ask(self, job: bytes, key: bytes) -> GrammarVerdict:
        async with self._answered():
            worker = await self._running()
            verdict = msgspec.msgpack.decode(await asyncio.to_thread(worker.converse, job), type=GrammarVerdict)
        self._verdicts[key] = verdict
        while len(self._verdicts) > KEPT_VERDICTS:
            self._verdicts.popitem(last=False)
        return verdict

    @contextlib.asynccontextmanager
    async def _answered(self) -> AsyncIterator[None]:
        """A complete exchange with the worker. One that is broken off ends the worker, or its answer would be taken for
        the next one's."""
        answered = False
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                yield
            answered = True
        except (OSError, EOFError, TimeoutError) as error:
            raise CheckerBusy from error
        finally:
            if not answered:  # also when the client disconnects
                await self._stop()

    async def _running(self) -> _Worker:
        if self._worker is None or self._worker.process.poll() is not None:
            await self._stop()
            self._worker = await asyncio.to_thread(_Worker.start)
            await asyncio.to_thread(self._worker.converse, encode(self._settings))
        return self._worker

    async def _stop(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            await asyncio.to_thread(worker.end)
