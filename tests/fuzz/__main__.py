"""`python -m tests.fuzz --requests 10000 --seed 1`: raw bytes against the whole service over a fake engine.

Every answer must be below 500, every error in its API's shape with a message for people, no traceback in the log, and
no engine touched by what was refused.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time

from tests.fuzz.run import run


def main() -> int:
    """The command. Returns a process exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--show", type=int, default=20, help="how many problems to print")
    options = parser.parse_args()
    started_s = time.monotonic()
    findings = asyncio.run(run(options.requests, options.seed))
    took_s = time.monotonic() - started_s
    for problem in findings.problems[: options.show]:
        print(problem)
    for traceback in findings.tracebacks[: options.show]:
        print("traceback:", traceback)
    statuses = ", ".join(f"{status}: {count}" for status, count in sorted(findings.statuses.items()))
    print(f"{options.requests} requests, seed {options.seed}, {took_s:.0f} s. By status: {statuses}")
    print(f"{len(findings.problems)} problems, {len(findings.tracebacks)} tracebacks")
    return 1 if findings.problems or findings.tracebacks else 0


if __name__ == "__main__":
    sys.exit(main())
