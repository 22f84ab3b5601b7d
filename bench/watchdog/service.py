"""Cases with the whole service (`serve run`: HAProxy, ingress, engine), started with empty compile caches.

It starts once without warm-up requests, so that everything compiles at its first request, and once as configured.
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
from bench.watchdog import clients
from bench.watchdog.clients import ClientRequest, Endpoint
from bench.watchdog.outcome import CaseOutcome, WriteLine
from chaos.procs import is_engine_core

MODEL = "step3p7-flash"
LONG_PROMPTS = (8_000, 52_000, 200_000)
START_TIMEOUT_S = 900.0
DEADLINE_S = 3600.0
"""Long enough for the first token of a prompt of 200,000 tokens on two cores."""
PAUSED_STREAMS = 16
SETTLE_S = 30.0
PROGRESS_S = 60.0
KILLED = "the engine is killed"
"""A replica's log message when its watchdog kills the engine."""

Wanted = Callable[[str], bool]


@dataclass(frozen=True)
class CaseSettings:
    """Durations and sizes of the cases."""

    minutes: float
    streams: int
    beside: int
    """Small streams beside a long prompt."""
    pause_s: float
    """How long the whole service is stopped."""


@dataclass(frozen=True)
class ServiceStart:
    """How the service is started."""

    name: str
    warms_up: bool


STARTS = (ServiceStart("cold", warms_up=False), ServiceStart("warmed up", warms_up=True))


def names(settings: CaseSettings) -> list[str]:
    """All cases, in order."""
    return [name for start in STARTS for name in _cases_of(start, settings)]


def cases(settings: CaseSettings, logs: Path, wanted: Wanted, write_line: WriteLine) -> Iterator[CaseOutcome]:
    """Run the wanted cases. The service is started if one of its cases is wanted."""
    for start in STARTS:
        chosen = {name: run for name, run in _cases_of(start, settings).items() if wanted(name)}
        if chosen:
            yield from _run(start, chosen, logs, write_line)


class ServiceCase:
    """One case with a running service: its clients, and the engine cores from before it."""

    def __init__(self, name: str, server: Server, write_line: WriteLine) -> None:
        self.name = name
        self.server = server
        self.write_line = write_line
        self.endpoint = Endpoint(server.port)
        self.notes: list[str] = []
        self._cores = cores(server)
        self._killed = len(_kills(server.log))

    def outcome(self, first_s: float | None) -> CaseOutcome:
        """The result."""
        kills = _kills(self.server.log)[self._killed :]
        ended = len(self._cores - cores(self.server))
        failures = self.endpoint.failures
        return CaseOutcome(
            self.name,
            len(kills),
            max(ended - len(kills), 0),
            len(failures),
            self.endpoint.silence.longest_s,
            first_s,
            note="; ".join([*self.notes, *failures[:1], *kills[:1]]),
        )


RunCase = Callable[[ServiceCase], float | None]


def _cases_of(start: ServiceStart, settings: CaseSettings) -> Mapping[str, RunCase]:
    found: dict[str, RunCase] = {}
    for name, request in clients.first_uses(MODEL).items():
        found[f"{start.name}: {name}"] = _send(request, beside=0)
    if not start.warms_up:
        *shorter, longest = LONG_PROMPTS
        for tokens in shorter:
            found[f"{start.name}: a prompt of {tokens:,} tokens"] = _long(tokens, settings.beside)
        found[f"{start.name}: SIGSTOP of everything for {settings.pause_s:g} s"] = _pause(settings.pause_s)
        found[f"{start.name}: {settings.streams} streams for {settings.minutes:g} min"] = _saturate(settings)
        found[f"{start.name}: a prompt of {longest:,} tokens"] = _long(longest, settings.beside)
    return found


def _run(
    start: ServiceStart, chosen: Mapping[str, RunCase], logs: Path, write_line: WriteLine
) -> Iterator[CaseOutcome]:
    with contextlib.ExitStack() as stack:
        caches = stack.enter_context(tempfile.TemporaryDirectory(prefix="watchdog-"))
        settings = {
            "engine": {"warm_up": start.warms_up, "compile_cache_dir": caches, "env": clients.COMPILES},
            "ingress": {"request_deadline_s": DEADLINE_S},
        }
        servers = stack.enter_context(Servers(logs, settings, START_TIMEOUT_S))
        write_line(f"starting the service, {start.name}, with empty compile caches")
        start_s = time.monotonic()
        server = servers.start(ours(f"watchdog-{start.name}"))
        yield CaseOutcome(f"{start.name}: start", note=f"up after {time.monotonic() - start_s:.0f} s")
        for name, run in chosen.items():
            write_line(name)
            _wait_until_it_answers(server)
            case = ServiceCase(name, server, write_line)
            yield case.outcome(run(case))


def _wait_until_it_answers(server: Server) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while not server.answers() and time.monotonic() < deadline_s:
        time.sleep(1.0)


def cores(server: Server) -> set[int]:
    """Process ids of the service's engine cores."""
    return {process.pid for process in server.processes() if is_engine_core(process)}


def _kills(log: Path) -> list[str]:
    return [line[-400:] for line in log.read_text(errors="replace").splitlines() if KILLED in line]


# ---- the cases -------------------------------------------------------------------------------------------------------


def _send(request: ClientRequest, beside: int) -> RunCase:
    def run(case: ServiceCase) -> float | None:
        with case.endpoint.clients([clients.completion(MODEL, max_tokens=64)], beside):
            return case.endpoint.try_send(request)

    return run


def _long(tokens: int, beside: int) -> RunCase:
    def run(case: ServiceCase) -> float | None:
        with _progress(case, "prefill"):
            return _send(clients.long_prompt(MODEL, tokens), beside)(case)

    return run


def _pause(pause_s: float) -> RunCase:
    def run(case: ServiceCase) -> float | None:
        with case.endpoint.clients([clients.completion(MODEL, max_tokens=400)], PAUSED_STREAMS) as running:
            time.sleep(5.0)
            stopped = case.server.processes()
            for process in stopped:
                process.suspend()
            case.write_line(f"  {len(stopped)} processes stopped")
            time.sleep(pause_s)
            for process in stopped:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.resume()
            time.sleep(SETTLE_S)
        case.notes.append(f"{len(stopped)} processes; {sum(client.result() for client in running)} requests finished")
        return None

    return run


def _saturate(settings: CaseSettings) -> RunCase:
    def run(case: ServiceCase) -> float | None:
        with _progress(case, "streams"), case.endpoint.clients(clients.saturation(MODEL), settings.streams) as running:
            time.sleep(settings.minutes * 60)
        case.notes.append(f"{sum(client.result() for client in running):,} requests finished")
        return None

    return run


@contextlib.contextmanager
def _progress(case: ServiceCase, what: str) -> Iterator[None]:
    """Print the progress once a minute."""
    over, start_s = threading.Event(), time.monotonic()

    def print_progress() -> None:
        while not over.wait(PROGRESS_S):
            minutes = (time.monotonic() - start_s) / 60
            silence_s, failed = case.endpoint.silence.longest_s, len(case.endpoint.failures)
            case.write_line(f"  {what}: {minutes:.0f} min, longest silence {silence_s:.1f} s, {failed} requests failed")

    printer = threading.Thread(target=print_progress, daemon=True)
    printer.start()
    try:
        yield
    finally:
        over.set()
        printer.join()
