"""`python -m chaos`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from chaos import command, options


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status of `command.run`."""
    about = "Injects faults into engine replicas under load, and checks every client's answer."
    parser = argparse.ArgumentParser(prog="python -m chaos", description=about)
    options.add_flags(parser)
    return command.run(parser.parse_args(argv), _write_line)


def _write_line(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
