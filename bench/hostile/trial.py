"""One hostile request beside streams: what it got, when, and what it cost the others."""

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

from bench.hostile.requests import Kind
from bench.hostile.streams import Streams
from bench.servers import Server

WINDOW_S: Final = 2.0
"""How long gaps are looked at without the request, and at least with it."""

TIMEOUT_S: Final = 120.0
SAMPLE_S: Final = 0.5
"""How often memory is looked at. Ten times a second the looking itself doubled the gaps, on two cores."""
ENGINE_CORE: Final = "::EngineCore"
INGRESS: Final = ":ingress"


@dataclass(frozen=True)
class Trial:
    """Times in seconds, memory in MiB. The p99 are of the gaps of the streams beside it, `quiet` of those before it."""

    name: str
    path: str
    status: int
    says: str
    answer_s: float
    ingress_mib: int
    engine_mib: int
    quiet_p99_s: float
    p99_s: float
    longest_s: float
    deaths: int
    holds: bool
    """It got a 4xx (or a 200, where it may), and no engine died."""


class Watch:
    """The service's processes, with their children: the ingress' has the one that tries grammars."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.engines = self._named(ENGINE_CORE)
        self._ingresses = self._named(INGRESS)
        self.before = self._sizes()
        self.grown = (0, 0)

    def look(self) -> None:
        """Keep how much they have grown, at most."""
        ingress, engine = self._sizes()
        self.grown = (max(self.grown[0], ingress - self.before[0]), max(self.grown[1], engine - self.before[1]))

    def deaths(self) -> int:
        """How many engines are gone."""
        return len({one.pid for one in self.engines} - {one.pid for one in self._named(ENGINE_CORE)})

    def _named(self, name: str) -> list[psutil.Process]:
        found = []
        for process in self._server.processes():
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                if words and name in words[0]:
                    found.append(process)
        return found

    def _sizes(self) -> tuple[int, int]:
        return _mib(self._ingresses), _mib(self.engines)


def _mib(processes: Iterable[psutil.Process]) -> int:
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            total += sum(one.memory_info().rss for one in [process, *process.children(recursive=True)])
    return total >> 20


async def attempt(kind: Kind, server: Server, streams: Streams, http: httpx.AsyncClient) -> Trial:
    """Send it beside the streams, which run."""
    content = json.dumps({"model": streams.model, **kind.body}).encode()
    quiet_s = time.monotonic()
    await asyncio.sleep(WINDOW_S)
    watch = Watch(server)
    began_s = time.monotonic()
    asked = asyncio.create_task(_ask(kind, content, http))
    while not asked.done():
        await asyncio.wait([asked], timeout=SAMPLE_S)
        watch.look()
    answered_s = time.monotonic()
    await asyncio.sleep(max(began_s + WINDOW_S - answered_s, 0))
    watch.look()
    status, says = asked.result()
    beside = streams.between(began_s, time.monotonic())
    deaths = watch.deaths()
    return Trial(
        name=kind.name,
        path=kind.path,
        status=status,
        says=says,
        answer_s=answered_s - began_s,
        ingress_mib=watch.grown[0],
        engine_mib=watch.grown[1],
        quiet_p99_s=p99(streams.between(quiet_s, began_s)),
        p99_s=p99(beside),
        longest_s=beside[-1] if beside else WINDOW_S,
        deaths=deaths,
        holds=deaths == 0 and (400 <= status < 500 or (status == 200 and kind.served)),
    )


async def _ask(kind: Kind, content: bytes, http: httpx.AsyncClient) -> tuple[int, str]:
    try:
        answer = await http.post(kind.path, content=content, headers={"content-type": "application/json"})
    except httpx.HTTPError as error:
        return 0, type(error).__name__
    if answer.status_code == 200:
        return 200, ""
    says = answer.json().get("error", {})
    return answer.status_code, str(says.get("message", ""))[:200]


def p99(gaps: Sequence[float]) -> float:
    """Of sorted values; 0 of none."""
    return gaps[int(len(gaps) * 0.99)] if gaps else 0.0
