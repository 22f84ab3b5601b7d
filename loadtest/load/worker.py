"""One worker: sends requests when they are due, and turns each exchange into a record.

The steps of a request: encode its body; start its clock; acquire a connection; write the bytes; collect the response's
reads; release the connection; parse the reads into the record. Parsing runs in slices, one record at a time, so that
running streams are delayed by at most one slice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from time import perf_counter_ns, time
from typing import NamedTuple, Protocol

from loadtest.api.record import Record
from loadtest.api.requests import PARSERS, PATHS, BodySpec, encode_body, new_messages
from loadtest.api.responses import parse_response
from loadtest.data.prompt import Json, Prompt
from loadtest.errors import RequestOutcome
from loadtest.http.address import request_head
from loadtest.http.connection import Exchange, HttpConnection
from loadtest.http.pool import ConnectFailed, Endpoint, Pool
from loadtest.load.schedule import LoadSchedule
from loadtest.load.self_check import LoopLagMonitor, SelfCheck, gc_paused

MAX_PRECONNECTED = 1024
"""Connections that are opened before the clock starts, at most."""
TIMEOUT_CHECK_S = 0.5
"""Interval between checks for requests past their timeout."""


@dataclass(frozen=True)
class WorkerJob:
    """The specification of a worker's run. It is picklable, for workers in other processes."""

    prompts: Sequence[Prompt]
    body_spec: BodySpec
    load: LoadSchedule
    headers: Mapping[str, str] = field(default_factory=dict)
    request_id_prefix: str = "loadtest-"
    session_header: str = "x-session-id"
    session_prefix: str = ""
    resend_reasoning: bool = False
    """Send an answer's thinking back in later turns, as coding agents do."""
    timeout_s: float = 6 * 3600.0
    """Longest duration of a request. vLLM's client has the same six hours."""
    reuse_connections: bool = True
    keep_text: bool = False


class WorkerResult(NamedTuple):
    """What a worker measured."""

    records: list[Record]
    check: SelfCheck
    begin_ns: int
    end_ns: int


class NextSession(Protocol):
    """Returns the index of the next session to run; None when there is none left."""

    def __call__(self) -> int | None: ...


class RequestObserver(Protocol):
    """Called at the start and end of every request, for the live view and the early stop of a search."""

    def request_started(self) -> None: ...

    def request_finished(self, record: Record) -> None: ...


class Worker:
    """Runs a job's prompts over one pool on the running loop."""

    def __init__(self, job: WorkerJob, endpoint: Endpoint, observer: RequestObserver) -> None:
        self._job = job
        self._observer = observer
        self._pool = Pool(endpoint, reuse=job.reuse_connections)
        self._path = PATHS[job.body_spec.api]
        self._address = endpoint.address
        self._parser = PARSERS[job.body_spec.api]
        self._inflight: dict[HttpConnection, Exchange] = {}
        self._to_parse: asyncio.Queue[tuple[Iterator[None], Record, asyncio.Future[None] | None]] = asyncio.Queue()
        self._records: list[Record] = []
        self._stopping = False

    async def preconnect(self, requests: int) -> None:
        """Open the connections of a closed loop before the clock starts."""
        slots = self._job.load.max_inflight
        if slots and self._job.reuse_connections:
            with suppress(ConnectFailed):  # the requests fail in the same way, and their records have the reason
                await self._pool.preconnect(min(slots, requests, MAX_PRECONNECTED))

    async def run(
        self, sessions: Sequence[Sequence[int]], next_session: NextSession, begin_ns: int = 0
    ) -> WorkerResult:
        """Run sessions (lists of prompt indices) until `next_session` returns None, and wait for the last response.

        The clock starts at `begin_ns`, or at once.
        """
        loop_lag = LoopLagMonitor()
        tasks = [asyncio.create_task(self._parse_forever()), asyncio.create_task(self._check_timeouts_forever())]
        try:
            with gc_paused():
                begin_ns = begin_ns or perf_counter_ns()
                await self._wait_until(begin_ns, begin_ns)  # uvloop's timers count milliseconds, and may end early
                loop_lag.start()
                runner = self._open_loop if self._job.load.open_loop else self._closed_loop
                await runner(sessions, next_session, begin_ns)
                end_ns = perf_counter_ns()
                check = loop_lag.stop()
                await self._to_parse.join()
        finally:
            for task in tasks:
                task.cancel()
            self._pool.close()
            await asyncio.gather(*tasks, return_exceptions=True)
        return WorkerResult(sorted(self._records, key=lambda record: record.index), check, begin_ns, end_ns)

    def stop(self) -> None:
        """End the run early: no request starts any more, and those in flight are recorded as interrupted."""
        self._stopping = True
        for connection in list(self._inflight):
            connection.abandon(RequestOutcome.INTERRUPTED, "interrupted by the user")

    async def _closed_loop(self, sessions: Sequence[Sequence[int]], next_session: NextSession, begin_ns: int) -> None:
        slots = min(self._job.load.max_inflight or len(sessions), len(sessions))

        async def slot() -> None:
            while not self._is_over(begin_ns) and (index := next_session()) is not None:
                await self._run_session(sessions[index], perf_counter_ns(), begin_ns)

        await asyncio.gather(*(slot() for _ in range(slots)))

    async def _open_loop(self, sessions: Sequence[Sequence[int]], next_session: NextSession, begin_ns: int) -> None:
        times = self._job.load.times_s or ()
        slots = asyncio.Semaphore(self._job.load.max_inflight or len(sessions) or 1)

        async def run_when_free(index: int, due_ns: int) -> None:
            async with slots:
                if not self._stopping:
                    await self._run_session(sessions[index], due_ns, begin_ns)

        async with asyncio.TaskGroup() as group:
            while (index := next_session()) is not None:
                due_ns = begin_ns + int(times[index] * 1e9)
                await self._wait_until(due_ns, begin_ns)
                if self._is_over(begin_ns):
                    break
                group.create_task(run_when_free(index, due_ns))

    async def _wait_until(self, due_ns: int, begin_ns: int) -> None:
        """Wait until `due_ns` or the end of the run, which is checked every `TIMEOUT_CHECK_S`."""
        while not self._is_over(begin_ns):
            wait_ns = due_ns - perf_counter_ns()
            if wait_ns <= 0:
                return
            await asyncio.sleep(min(wait_ns / 1e9, TIMEOUT_CHECK_S))

    def _is_over(self, begin_ns: int) -> bool:
        return self._stopping or perf_counter_ns() - begin_ns > self._job.load.stop_after_s * 1e9

    async def _run_session(self, turns: Sequence[int], due_ns: int, begin_ns: int) -> None:
        """Send turns in sequence, each with its session's conversation before it. A single request is one turn.

        A session within the sequence that has a parent begins with its parent's conversation so far.
        """
        histories: dict[int, list[Mapping[str, Json]] | None] = {}
        for position, index in enumerate(turns):
            prompt = self._job.prompts[index]
            if prompt.session not in histories:
                before = histories[prompt.parent] if prompt.parent >= 0 else []
                histories[prompt.session] = None if before is None else [*before]
            history = histories[prompt.session]
            if history is None:
                continue  # a turn before has failed: the prompt would lack a message, and be shorter than planned
            pause_s = prompt.think_s if position else prompt.start_after_s
            if pause_s:
                await self._wait_until(perf_counter_ns() + int(pause_s * 1e9), begin_ns)
            if self._stopping or (position and self._is_over(begin_ns)):
                return
            has_next = position + 1 < len(turns)
            record = await self._run_request(index, prompt, history, 0 if pause_s else due_ns, keep_text=has_next)
            due_ns = 0
            if record.ok:
                history += [*new_messages(prompt), self._answer_of(record)]
            else:
                histories[prompt.session] = None

    def _answer_of(self, record: Record) -> dict[str, Json]:
        """The answer as a message of the turns after it."""
        answer: dict[str, Json] = {"role": "assistant", "content": record.text}
        if self._job.resend_reasoning and record.reasoning:
            answer["reasoning"] = record.reasoning
        return answer

    async def _run_request(
        self, index: int, prompt: Prompt, history: list[Mapping[str, Json]], due_ns: int, *, keep_text: bool
    ) -> Record:
        job = self._job
        body = encode_body(job.body_spec, prompt, history)
        request = request_head(self._address, "POST", self._path, self._headers(index, prompt), len(body)) + body
        record = Record(index=index, kind=prompt.kind, session=prompt.session, turn=prompt.turn)
        record.planned_prompt_tokens, record.planned_output_tokens = prompt.prompt_tokens, prompt.output_tokens
        self._observer.request_started()
        start_ns = perf_counter_ns()
        record.intended_ns, record.start_ns = due_ns or start_ns, start_ns
        try:
            connection, record.connect_ns = await self._pool.acquire()
        except ConnectFailed as failed:
            record.end_ns, record.error = perf_counter_ns(), str(failed)
            self._finish(record)
            return record
        exchange = connection.send_request(request, start_ns)
        self._inflight[connection] = exchange
        try:
            await exchange.done
        finally:
            del self._inflight[connection]
            self._pool.release(connection)
        slices = parse_response(
            record,
            exchange,
            self._parser,
            forced_length=job.body_spec.ignore_eos,
            keep_text=keep_text or job.keep_text,
        )
        parsed = asyncio.get_running_loop().create_future() if keep_text else None
        self._to_parse.put_nowait((slices, record, parsed))
        if parsed is not None:
            await parsed  # the next turn needs the text
        return record

    def _headers(self, index: int, prompt: Prompt) -> dict[str, str]:
        headers = {**self._job.headers, **prompt.headers, "x-request-id": f"{self._job.request_id_prefix}{index}"}
        if prompt.session >= 0 and self._job.session_header:
            headers[self._job.session_header] = f"{self._job.session_prefix}{prompt.session}"
        return headers

    async def _parse_forever(self) -> None:
        while True:
            slices, record, parsed = await self._to_parse.get()
            for _ in slices:
                await asyncio.sleep(0)
            self._finish(record)
            self._to_parse.task_done()
            if parsed is not None:
                parsed.set_result(None)

    def _finish(self, record: Record) -> None:
        self._records.append(record)
        self._observer.request_finished(record)

    async def _check_timeouts_forever(self) -> None:
        limit_ns = int(self._job.timeout_s * 1e9)
        while True:
            await asyncio.sleep(TIMEOUT_CHECK_S)
            oldest_ns = perf_counter_ns() - limit_ns
            overdue = [connection for connection, exchange in self._inflight.items() if exchange.start_ns < oldest_ns]
            for connection in overdue:
                connection.abandon(RequestOutcome.TIMEOUT, f"no end within {self._job.timeout_s:g} s")


def in_order(count: int) -> NextSession:
    """The indices 0 to count - 1, then None."""
    indices = iter(range(count))
    return lambda: next(indices, None)


def sessions_of(prompts: Sequence[Prompt]) -> list[list[int]]:
    """Prompt indices grouped by session, in order of first appearance; a prompt without one is a group of its own.

    A session that has a parent is in its parent's group.
    """
    groups: list[list[int]] = []
    known: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        if prompt.session < 0:
            groups.append([index])
        elif prompt.session in known:
            known[prompt.session].append(index)
        elif prompt.parent in known:
            known[prompt.session] = known[prompt.parent]
            known[prompt.session].append(index)
        else:
            known[prompt.session] = [index]
            groups.append(known[prompt.session])
    return groups


def unix_time_at(begin_ns: int) -> float:
    """Unix time at `begin_ns`."""
    return time() - (perf_counter_ns() - begin_ns) / 1e9
