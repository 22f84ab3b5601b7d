"""One hostile request beside streams: its status, its time, and what it cost the streams and the processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import httpx
import psutil

from bench.hostile.requests import HostileRequest
from bench.hostile.streams import Streams
from bench.servers import Server
from chaos.procs import is_engine_core

WINDOW_S: Final = 2.0
"""How long gaps are measured before the request, and at least how long beside it."""

TIMEOUT_S: Final = 120.0
SAMPLE_S: Final = 0.5
"""How often memory is sampled. Sampling ten times a second doubled the gaps, on two cores."""
INGRESS: Final = ":ingress"


@dataclass(frozen=True)
class Trial:
    """Memory is growth at most. The p99 are of the streams' gaps, before the request and beside it."""

    name: str
    path: str
    status: int
    message: str
    answer_s: float
    ingress_mib: int
    engine_mib: int
    before_p99_s: float
    p99_s: float
    longest_s: float
    deaths: int
    holds: bool
    """Whether it got a 4xx (or an allowed 200) and no engine died."""


class ProcessMonitor:
    """Memory and deaths of the service's processes. An ingress counts with its child, which tries grammars."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._engines = self._engine_cores()
        self._ingresses = [process for process in server.processes() if _title(process).count(INGRESS)]
        self._before = self._sizes_mib()
        self.growth_mib = (0, 0)

    def sample(self) -> None:
        """Update the largest growth of ingresses and engines."""
        growth = zip(self._sizes_mib(), self._before, self.growth_mib, strict=True)
        ingress, engine = (max(largest, now - before) for now, before, largest in growth)
        self.growth_mib = (ingress, engine)

    def deaths(self) -> int:
        """How many engines have ended."""
        return len({core.pid for core in self._engines} - {core.pid for core in self._engine_cores()})

    def _engine_cores(self) -> list[psutil.Process]:
        return [process for process in self._server.processes() if is_engine_core(process)]

    def _sizes_mib(self) -> tuple[int, int]:
        return _mib(self._ingresses), _mib(self._engines)


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error, IndexError):
        return str(process.cmdline()[0])
    return ""


def _mib(processes: Iterable[psutil.Process]) -> int:
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            total += sum(member.memory_info().rss for member in [process, *process.children(recursive=True)])
    return total >> 20


async def try_request(
    request: HostileRequest, server: Server, streams: Streams, http: httpx.AsyncClient, window_s: float = WINDOW_S
) -> Trial:
    """Send the request beside the running streams."""
    content = json.dumps({"model": streams.model, **request.body}).encode()
    before_s = time.monotonic()
    await asyncio.sleep(window_s)
    monitor = ProcessMonitor(server)
    sent_s = time.monotonic()
    sending = asyncio.create_task(_send(request, content, http))
    while not sending.done():
        await asyncio.wait([sending], timeout=SAMPLE_S)
        monitor.sample()
    answered_s = time.monotonic()
    await asyncio.sleep(max(sent_s + window_s - answered_s, 0))
    monitor.sample()
    status, message = sending.result()
    beside = streams.between(sent_s, time.monotonic())
    deaths = monitor.deaths()
    return Trial(
        name=request.name,
        path=request.path,
        status=status,
        message=message,
        answer_s=answered_s - sent_s,
        ingress_mib=monitor.growth_mib[0],
        engine_mib=monitor.growth_mib[1],
        before_p99_s=p99(streams.between(before_s, sent_s)),
        p99_s=p99(beside),
        longest_s=beside[-1] if beside else window_s,
        deaths=deaths,
        holds=deaths == 0 and (400 <= status < 500 or (status == 200 and request.may_be_served)),
    )


async def _send(request: HostileRequest, content: bytes, http: httpx.AsyncClient) -> tuple[int, str]:
    try:
        response = await http.post(request.path, content=content, headers={"content-type": "application/json"})
    except httpx.HTTPError as error:
        return 0, type(error).__name__
    if response.status_code == 200:
        return 200, ""
    return response.status_code, str(response.json().get("error", {}).get("message", ""))[:200]


def p99(gaps: Sequence[float]) -> float:
    """Of sorted values; 0 if there are none."""
    return gaps[int(len(gaps) * 0.99)] if gaps else 0.0
