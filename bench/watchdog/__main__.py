"""The command line: `python -m bench.watchdog --help`."""

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

from bench.servers import StartFailed
from bench.watchdog import engine, service
from bench.watchdog.outcome import CaseOutcome, WriteLine, table
from serve_app.ingress.metrics import log_to_stderr


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 if no slow engine was killed and every hang was found in time, else 1."""
    options = _parser().parse_args(argv)
    log_to_stderr()  # has the watchdog's messages
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: runs the `with` blocks' exits
    outcomes: list[CaseOutcome] = []
    failed = False
    try:
        for outcome in _cases(options, _write_line):
            outcomes.append(outcome)
            _write_line("  " + " | ".join(outcome.cells()[1:]))
            if options.json:
                options.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n")
    except StartFailed as error:
        print(f"error: {error}", file=sys.stderr)
        failed = True
    except KeyboardInterrupt:
        failed = True
    print(table(outcomes))
    return 1 if failed or not outcomes or not all(outcome.holds for outcome in outcomes) else 0


def _cases(options: argparse.Namespace, write_line: WriteLine) -> Iterator[CaseOutcome]:
    def wanted(name: str) -> bool:
        return not options.only or any(part.lower() in name.lower() for part in options.only)

    settings = service.CaseSettings(options.minutes, options.streams, options.beside, options.pause)
    if options.list:
        slow_or_hung = [*(case.name for case in engine.SLOW), *(case.name for case in engine.HANGS)]
        names = [*service.names(settings), *slow_or_hung]
        print("\n".join(names))
        sys.exit(0)
    for slow in engine.SLOW:
        if wanted(slow.name):
            write_line(slow.name)
            yield asyncio.run(engine.slow(slow, write_line))
    for hang in engine.HANGS:
        if wanted(hang.name):
            write_line(hang.name)
            yield asyncio.run(engine.hang(hang, write_line))
    yield from service.cases(settings, options.logs, wanted, write_line)


def _write_line(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {line}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.watchdog",
        description="Slow engines that must live, and hung ones that must be found: on real engines with empty caches.",
    )
    parser.add_argument(
        "--only", action="append", metavar="TEXT", help="only cases with TEXT in their name; may be repeated"
    )
    parser.add_argument("--list", action="store_true", help="list the cases and exit")
    parser.add_argument(
        "--minutes", type=float, default=30.0, help="duration of the streams at saturation (default 30)"
    )
    parser.add_argument("--streams", type=int, default=64, help="streams at saturation (default 64)")
    parser.add_argument("--beside", type=int, default=4, help="small streams beside a long prompt (default 4)")
    parser.add_argument(
        "--pause", type=float, default=15.0, help="seconds for which all processes are stopped (default 15)"
    )
    parser.add_argument("--logs", type=Path, default=Path("build"), help="folder for the services' logs")
    parser.add_argument("--json", type=Path, help="also write every outcome to this file, after each case")
    return parser


if __name__ == "__main__":
    sys.exit(main())
