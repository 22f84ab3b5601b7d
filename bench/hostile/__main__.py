"""The command line: `python -m bench.hostile --help`."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

import httpx

from bench.hostile.requests import HostileRequest, hostile_requests
from bench.hostile.streams import Streams
from bench.hostile.trial import TIMEOUT_S, Trial, try_request
from bench.servers import Server, Servers, StartFailed, ours

MODEL = "step3p7-flash"


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 if every request was refused or served and no engine died, else 1."""
    options = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: runs the `with` blocks' exits
    if options.list:
        print("\n".join(f"{request.path}: {request.name}" for request in _chosen(options)))
        return 0
    trials: list[Trial] = []
    failed = False
    try:
        with Servers(options.logs, {}) as servers:
            server = servers.start(ours("hostile"))
            asyncio.run(_run(options, server, trials))
    except StartFailed as error:
        print(f"error: {error}", file=sys.stderr)
        failed = True
    except KeyboardInterrupt:
        failed = True
    if options.json:
        options.json.write_text(json.dumps([asdict(trial) for trial in trials], indent=1) + "\n", encoding="utf-8")
    print(report(trials))
    return 1 if failed or not trials or not all(trial.holds for trial in trials) else 0


async def _run(options: argparse.Namespace, server: Server, trials: list[Trial]) -> None:
    streams = Streams(server.port, MODEL)
    url = f"http://127.0.0.1:{server.port}"
    async with (
        streams.run(options.streams),
        httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, trust_env=False) as http,
    ):
        for request in _chosen(options):
            trial = await try_request(request, server, streams, http)
            trials.append(trial)
            print(f"{time.strftime('%H:%M:%S')}  {row(trial)}", file=sys.stderr, flush=True)
    print(f"{streams.broken} streams broke", file=sys.stderr)


def _chosen(options: argparse.Namespace) -> Iterator[HostileRequest]:
    seen = set()
    for request in hostile_requests():
        wanted = not options.only or any(part.lower() in request.name.lower() for part in options.only)
        if wanted and (options.every_api or request.name not in seen):
            seen.add(request.name)
            yield request


def row(trial: Trial) -> str:
    """One line of the table."""
    cells = [
        trial.name,
        trial.status,
        f"{trial.answer_s:.2f}",
        trial.ingress_mib,
        trial.engine_mib,
        f"{trial.before_p99_s * 1000:.0f}",
        f"{trial.p99_s * 1000:.0f}",
        f"{trial.longest_s * 1000:.0f}",
        trial.deaths,
    ]
    return "| " + " | ".join(map(str, cells)) + " |" + ("" if trial.holds else " <-- does not hold")


def report(trials: Sequence[Trial]) -> str:
    """The table, and the medians of the streams' gaps."""
    head = [
        "| request | status | answer s | ingress MiB | engine MiB | p99 before | p99 during | longest ms | deaths |",
        "| --- " * 9 + "|",
    ]
    if not trials:
        return "no request was sent"
    before, beside = (
        median(trial.before_p99_s for trial in trials),
        median(trial.p99_s for trial in trials),
    )
    held = sum(trial.holds for trial in trials)
    end = (
        f"{held} of {len(trials)} hold; p99 gap of the streams, median over all: {before * 1000:.0f} ms before, "
        f"{beside * 1000:.0f} ms during"
    )
    return "\n".join([*head, *map(row, trials), "", end])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.hostile",
        description="Sends every kind of hostile request beside streams, on a real engine (the demo).",
    )
    parser.add_argument(
        "--only", action="append", metavar="TEXT", help="only kinds with TEXT in their name; may be repeated"
    )
    parser.add_argument("--list", action="store_true", help="list the kinds and exit")
    parser.add_argument("--every-api", action="store_true", help="each kind on each API (default: on its first)")
    parser.add_argument("--streams", type=int, default=16, help="streams beside them (default 16)")
    parser.add_argument("--logs", type=Path, default=Path("build"), help="folder for the service's log")
    parser.add_argument("--json", type=Path, help="also write every trial to this file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
