"""One worker: sends what it is given when it is due, and turns each exchange into a record.

A request's life: its body is ready before its clock starts; a connection is taken; the bytes are written; the wire
collects; when the response has ended the connection goes back and the record is decoded in slices, in turn with the
other records, so that running streams are never held up by more than one slice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from time import perf_counter_ns, time
from typing import NamedTuple, Protocol

from loadtest.api.record import Record
from loadtest.api.requests import PATHS, READERS, BodyRules, encode_body, new_messages
from loadtest.api.responses import read_answer
from loadtest.data.prompt import Json, Prompt
from loadtest.errors import RequestOutcome
from loadtest.http.address import head
from loadtest.http.connection import Exchange, HttpConnection
from loadtest.http.pool import ConnectFailed, Endpoint, Pool
from loadtest.load.schedule import LoadSchedule
from loadtest.load.self_check import LoopWatch, SelfCheck, gc_paused

MAX_AHEAD = 1024
"""Connections opened before the clock starts."""
SWEEP_S = 0.5
"""How often requests are checked for having run out of time."""


@dataclass(frozen=True)
class Job:
    """All that a worker needs; it can cross to another process."""

    prompts: Sequence[Prompt]
    rules: BodyRules
    load: LoadSchedule
    headers: Mapping[str, str] = field(default_factory=dict)
    request_id_prefix: str = "loadtest-"
    session_header: str = "x-session-id"
    session_prefix: str = ""
    timeout_s: float = 6 * 3600.0
    """Longest a request may take in all. vLLM's client waits six hours."""
    reuse_connections: bool = True
    keep_text: bool = False


class WorkerResult(NamedTuple):
    """What a worker brings home."""

    records: list[Record]
    check: SelfCheck
    begin_ns: int
    end_ns: int


class NextSession(Protocol):
    """Hands out the index of the next session to run, or None when there is none left."""

    def __call__(self) -> int | None: ...


class RequestObserver(Protocol):
    """Is told of every start and end, for the live view and the fleet's time line."""

    def started(self) -> None: ...

    def finished(self, record: Record) -> None: ...


class Worker:
    """Runs a job's prompts over one pool on the running loop."""

    def __init__(self, job: Job, endpoint: Endpoint, observer: RequestObserver) -> None:
        self._job = job
        self._observer = observer
        self._pool = Pool(endpoint, reuse=job.reuse_connections, measuring=True)
        self._path = PATHS[job.rules.api]
        self._address = endpoint.address
        self._reader = READERS[job.rules.api]
        self._inflight: dict[HttpConnection, Exchange] = {}
        self._decoding: asyncio.Queue[tuple[Iterator[None], Record, asyncio.Future[None] | None]] = asyncio.Queue()
        self._records: list[Record] = []
        self._stopping = False
        self.waits = 0

    async def open_ahead(self, requests: int) -> None:
        """Open the connections of a closed loop before the clock starts."""
        slots = self._job.load.max_inflight
        if slots and self._job.reuse_connections:
            with suppress(ConnectFailed):  # the requests themselves will meet and record the failure
                await self._pool.open_ahead(min(slots, requests, MAX_AHEAD))

    async def run(
        self, sessions: Sequence[Sequence[int]], next_session: NextSession, begin_ns: int = 0
    ) -> WorkerResult:
        """Run sessions (lists of prompt indices) until `take` gives no more, and wait for the last answer.

        The clock starts at `begin_ns`, or at once.
        """
        watch = LoopWatch()
        decoder = asyncio.create_task(self._decode_forever())
        sweeper = asyncio.create_task(self._sweep_forever())
        try:
            with gc_paused():
                begin_ns = begin_ns or perf_counter_ns()
                await asyncio.sleep(max(0.0, (begin_ns - perf_counter_ns()) / 1e9))
                watch.start()
                runner = self._open_loop if self._job.load.open_loop else self._closed_loop
                await runner(sessions, next_session, begin_ns)
                end_ns = perf_counter_ns()
                pool = self._pool
                check = replace(
                    watch.stop(),
                    coarse_timestamps=pool.coarse_timestamps,
                    end_detection_lag_ms=pool.end_detection_lag_ms,
                )
                await self._decoding.join()
        finally:
            decoder.cancel()
            sweeper.cancel()
            self._pool.close()
            await asyncio.gather(decoder, sweeper, return_exceptions=True)
        return WorkerResult(sorted(self._records, key=lambda record: record.index), check, begin_ns, end_ns)

    def stop(self) -> None:
        """End early: nothing more starts, what runs is closed and recorded as interrupted."""
        self._stopping = True
        self._pool.flush()
        for connection in list(self._inflight):
            connection.abandon(RequestOutcome.INTERRUPTED, "interrupted by the user")

    async def _closed_loop(self, sessions: Sequence[Sequence[int]], next_session: NextSession, begin_ns: int) -> None:
        slots = min(self._job.load.max_inflight or len(sessions), len(sessions))

        async def slot() -> None:
            while not self._over(begin_ns) and (number := next_session()) is not None:
                await self._session(sessions[number], perf_counter_ns())

        await asyncio.gather(*(slot() for _ in range(slots)))

    async def _open_loop(self, sessions: Sequence[Sequence[int]], next_session: NextSession, begin_ns: int) -> None:
        times = self._job.load.times_s or ()
        room = asyncio.Semaphore(self._job.load.max_inflight or len(sessions) or 1)

        async def one(number: int, due_ns: int) -> None:
            async with room:
                if not self._stopping:
                    await self._session(sessions[number], due_ns)

        async with asyncio.TaskGroup() as group:
            while (number := next_session()) is not None:
                due_ns = begin_ns + int(times[number] * 1e9)
                await self._until(due_ns, begin_ns)
                if self._over(begin_ns):
                    break
                group.create_task(one(number, due_ns))

    async def _until(self, due_ns: int, begin_ns: int) -> None:
        """Wait for a moment, in steps short enough to notice the run's end."""
        while not self._over(begin_ns):
            wait_ns = due_ns - perf_counter_ns()
            if wait_ns <= 0:
                return
            await asyncio.sleep(min(wait_ns / 1e9, SWEEP_S))

    def _over(self, begin_ns: int) -> bool:
        return self._stopping or perf_counter_ns() - begin_ns > self._job.load.stop_after_s * 1e9

    async def _session(self, turns: Sequence[int], due_ns: int) -> None:
        """A session's turns one after the other, each with what was said before. A single request is one turn."""
        history: list[Mapping[str, Json]] = []
        for position, index in enumerate(turns):
            prompt = self._job.prompts[index]
            if position and prompt.think_s:
                await asyncio.sleep(prompt.think_s)
            if self._stopping:
                return
            more = position + 1 < len(turns)
            record = await self._request(index, prompt, history, due_ns if not position else 0, keep_text=more)
            if more:
                if not record.ok:
                    return  # the rest of a broken conversation would measure something else
                history += [*new_messages(prompt), {"role": "assistant", "content": record.text}]

    async def _request(
        self, index: int, prompt: Prompt, history: list[Mapping[str, Json]], due_ns: int, *, keep_text: bool
    ) -> Record:
        job = self._job
        body = encode_body(job.rules, prompt, history)
        request = head(self._address, "POST", self._path, self._headers(index, prompt), len(body)) + body
        record = Record(index=index, kind=prompt.kind, session=prompt.session, turn=prompt.turn)
        record.planned_prompt_tokens, record.planned_output_tokens = prompt.prompt_tokens, prompt.output_tokens
        self._observer.started()
        start_ns = perf_counter_ns()
        record.intended_ns, record.start_ns = due_ns or start_ns, start_ns
        try:
            connection, record.connect_ns = await self._pool.take()
        except ConnectFailed as failed:
            record.end_ns, record.error = perf_counter_ns(), str(failed)
            self._keep(record)
            return record
        exchange = connection.begin(request, start_ns)
        self._inflight[connection] = exchange
        try:
            await exchange.done
        finally:
            del self._inflight[connection]
            self._pool.give(connection)
        forced = job.rules.ignore_eos
        decoder = read_answer(record, exchange, self._reader, forced=forced, keep_text=keep_text or job.keep_text)
        decoded = asyncio.get_running_loop().create_future() if keep_text else None
        self._decoding.put_nowait((decoder, record, decoded))
        if decoded is not None:
            await decoded  # the next turn needs the text
        return record

    def _headers(self, index: int, prompt: Prompt) -> dict[str, str]:
        headers = {**self._job.headers, "x-request-id": f"{self._job.request_id_prefix}{index}"}
        if prompt.session >= 0 and self._job.session_header:
            headers[self._job.session_header] = f"{self._job.session_prefix}{prompt.session}"
        return headers

    async def _decode_forever(self) -> None:
        while True:
            decoder, record, decoded = await self._decoding.get()
            for _ in decoder:
                await asyncio.sleep(0)
            self._keep(record)
            self._decoding.task_done()
            if decoded is not None:
                decoded.set_result(None)

    def _keep(self, record: Record) -> None:
        self._records.append(record)
        self._observer.finished(record)

    async def _sweep_forever(self) -> None:
        limit_ns = int(self._job.timeout_s * 1e9)
        while True:
            await asyncio.sleep(SWEEP_S)
            late_ns = perf_counter_ns() - limit_ns
            late = [connection for connection, exchange in self._inflight.items() if exchange.start_ns < late_ns]
            if late:
                self._pool.flush()
            for connection in late:
                connection.abandon(RequestOutcome.TIMEOUT, f"no end within {self._job.timeout_s:g} s")


def in_order(count: int) -> NextSession:
    """The numbers 0 to count - 1, then None."""
    numbers = iter(range(count))
    return lambda: next(numbers, None)


def sessions_of(prompts: Sequence[Prompt]) -> list[list[int]]:
    """Prompt indices grouped by session, in order of first appearance; a prompt without a session is its own."""
    groups: list[list[int]] = []
    known: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        if prompt.session < 0:
            groups.append([index])
        elif prompt.session in known:
            known[prompt.session].append(index)
        else:
            known[prompt.session] = [index]
            groups.append(known[prompt.session])
    return groups


def wall_anchor(begin_ns: int) -> float:
    """Unix time at `begin_ns`."""
    return time() - (perf_counter_ns() - begin_ns) / 1e9
