"""Cases over the whole service (`serve run`: HAProxy, ingress, engine), started with empty compile caches.

Once without warm-up requests, so that everything compiles under its first request; once as it is configured.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.servers import Server, Servers, ours
from bench.watchdog import kinds
from bench.watchdog.clients import Ask, Endpoint
from bench.watchdog.outcome import CaseOutcome, Say

MODEL = "step3p7-flash"
ENGINE_CORE = "::EngineCore"
LONG_PROMPTS = (8_000, 52_000, 200_000)
START_TIMEOUT_S = 900.0
DEADLINE_S = 3600.0
"""For a first token: a prompt of 200,000 tokens takes its time on two cores."""
PAUSED_STREAMS = 16
SETTLE_S = 30.0
TOLD_EVERY_S = 60.0
KILLED = "the engine is killed"
"""What a replica logs when its watchdog gives the engine up."""

Wanted = Callable[[str], bool]


@dataclass(frozen=True)
class Settings:
    """How long and how many. `pause_s`: for how long the whole service is stopped."""

    minutes: float
    streams: int
    beside: int
    pause_s: float


@dataclass(frozen=True)
class Start:
    """One way to start the service."""

    name: str
    warms_up: bool


STARTS = (Start("cold", warms_up=False), Start("warmed up", warms_up=True))


def names(settings: Settings) -> list[str]:
    """Every case, in order."""
    return [name for start in STARTS for name in _cases_of(start, settings)]


def cases(settings: Settings, logs: Path, wanted: Wanted, say: Say) -> Iterator[CaseOutcome]:
    """Run those that are wanted. A service is started where one of its cases is."""
    for start in STARTS:
        chosen = {name: run for name, run in _cases_of(start, settings).items() if wanted(name)}
        if chosen:
            yield from _run(start, chosen, logs, say)


class Case:
    """One case at a running service: its clients, and the engine cores before it."""

    def __init__(self, name: str, server: Server, say: Say) -> None:
        self.name = name
        self.server = server
        self.say = say
        self.endpoint = Endpoint(server.port)
        self.notes: list[str] = []
        self._cores = cores(server)
        self._killed = len(_kills(server.log))

    def outcome(self, first_s: float | None) -> CaseOutcome:
        """What became of it."""
        kills = _kills(self.server.log)[self._killed :]
        gone = len(self._cores - cores(self.server))
        lost = self.endpoint.lost
        return CaseOutcome(
            self.name,
            len(kills),
            max(gone - len(kills), 0),
            len(lost),
            self.endpoint.pulse.longest_s,
            first_s,
            note="; ".join([*self.notes, *lost[:1], *kills[:1]]),
        )


Run = Callable[[Case], float | None]


def _cases_of(start: Start, settings: Settings) -> Mapping[str, Run]:
    found: dict[str, Run] = {}
    for name, ask in kinds.first_uses(MODEL).items():
        found[f"{start.name}: {name}"] = _one(ask, beside=0)
    if not start.warms_up:
        *shorter, longest = LONG_PROMPTS
        for tokens in shorter:
            found[f"{start.name}: a prompt of {tokens:,} tokens"] = _long(tokens, settings.beside)
        found[f"{start.name}: SIGSTOP of everything for {settings.pause_s:g} s"] = _pause(settings.pause_s)
        found[f"{start.name}: {settings.streams} streams for {settings.minutes:g} min"] = _saturate(settings)
        found[f"{start.name}: a prompt of {longest:,} tokens"] = _long(longest, settings.beside)
    return found


def _run(start: Start, chosen: Mapping[str, Run], logs: Path, say: Say) -> Iterator[CaseOutcome]:
    with contextlib.ExitStack() as stack:
        caches = stack.enter_context(tempfile.TemporaryDirectory(prefix="watchdog-"))
        settings = {
            "engine": {"warm_up": start.warms_up, "compile_cache_dir": caches},
            "ingress": {"request_deadline_s": DEADLINE_S},
        }
        servers = stack.enter_context(Servers(logs, settings, START_TIMEOUT_S))
        say(f"starting the service, {start.name}, with empty compile caches")
        began_s = time.monotonic()
        server = servers.start(ours(f"watchdog-{start.name}"))
        yield CaseOutcome(f"{start.name}: start", note=f"up after {time.monotonic() - began_s:.0f} s")
        for name, run in chosen.items():
            say(name)
            _wait_until_it_answers(server)
            case = Case(name, server, say)
            yield case.outcome(run(case))


def _wait_until_it_answers(server: Server) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while not server.answers() and time.monotonic() < deadline_s:
        time.sleep(1.0)


def cores(server: Server) -> set[int]:
    """The engine cores of the service that live now, by process id."""
    found = set()
    for process in server.processes():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            if words and ENGINE_CORE in words[0]:
                found.add(process.pid)
    return found


def _kills(log: Path) -> list[str]:
    return [line[-400:] for line in log.read_text(errors="replace").splitlines() if KILLED in line]


# ---- what a case does ------------------------------------------------------------------------------------------------


def _one(ask: Ask, beside: int) -> Run:
    def run(case: Case) -> float | None:
        with case.endpoint.crowd([kinds.text(MODEL, max_tokens=64)], beside):
            return case.endpoint.try_ask(ask)

    return run


def _long(tokens: int, beside: int) -> Run:
    def run(case: Case) -> float | None:
        with _telling(case, "its prompt is read"):
            return _one(kinds.long_prompt(MODEL, tokens), beside)(case)

    return run


def _pause(pause_s: float) -> Run:
    def run(case: Case) -> float | None:
        with case.endpoint.crowd([kinds.text(MODEL, max_tokens=400)], PAUSED_STREAMS) as clients:
            time.sleep(5.0)
            stopped = case.server.processes()
            for process in stopped:
                process.suspend()
            case.say(f"  {len(stopped)} processes are stopped")
            time.sleep(pause_s)
            for process in stopped:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.resume()
            time.sleep(SETTLE_S)
        case.notes.append(f"{len(stopped)} processes; {sum(one.result() for one in clients)} requests finished")
        return None

    return run


def _saturate(settings: Settings) -> Run:
    def run(case: Case) -> float | None:
        with _telling(case, "streams"), case.endpoint.crowd(kinds.saturation(MODEL), settings.streams) as clients:
            time.sleep(settings.minutes * 60)
        case.notes.append(f"{sum(one.result() for one in clients):,} requests finished")
        return None

    return run


@contextlib.contextmanager
def _telling(case: Case, what: str) -> Iterator[None]:
    """Say once a minute how it is."""
    over, began_s = threading.Event(), time.monotonic()

    def tell() -> None:
        while not over.wait(TOLD_EVERY_S):
            minutes = (time.monotonic() - began_s) / 60
            silence_s, lost = case.endpoint.pulse.longest_s, len(case.endpoint.lost)
            case.say(f"  {what}: {minutes:.0f} min, longest silence {silence_s:.1f} s, {lost} requests lost")

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()
