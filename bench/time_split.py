"""`python -m bench time-split --against TREE`: the CPU time that splitting a request's time costs, for each chunk.

Two versions of this repository serve the same streams in turn, each in a process of its own, in rounds of a second:
ours and TREE, a checkout of an older commit (`git worktree add TREE 1ebbb1d`: the last one without the split, without
records, traces and status page). Ingress and a fake engine run in one process, without sockets; a stream's chunks go
the whole way from the engine's step to the ASGI server. The order within a pair alternates, so a drift of the machine
falls on both. Without `--against`, TREE is ours: what comes out then is the noise.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench import time_split_parts

ROOT = Path(__file__).parents[1]
STREAMS, CHUNKS = 16, 250
"""At a time, and of each in a round."""


@dataclass
class Side:
    """A version: CPU microseconds for each chunk, by round."""

    name: str
    process: subprocess.Popen[str]
    us: list[float] = field(default_factory=list)

    def run(self, *, counts: bool) -> None:
        """One round."""
        if self.process.stdin is None or self.process.stdout is None:  # for mypy: both are pipes
            raise RuntimeError
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        spent_s, chunks = self.process.stdout.readline().split()
        if counts:
            self.us.append(float(spent_s) / int(chunks) * 1e6)


def main(argv: Sequence[str]) -> int:
    """Returns 0."""
    parser = argparse.ArgumentParser(prog="python -m bench time-split", description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, default=ROOT, help="a checkout of another version (default: this one)")
    parser.add_argument("--rounds", type=int, default=40, help="pairs of rounds (default: %(default)s)")
    parser.add_argument("--parts", action="store_true", help="only what the split itself does, in some seconds")
    options = parser.parse_args(argv)
    if options.parts:
        print(time_split_parts.measure())
        return 0
    with started("other", options.against) as other, started("ours", ROOT) as ours:
        for number in range(options.rounds + 2):  # the first two warm up
            for side in (other, ours) if number % 2 else (ours, other):
                side.run(counts=number >= 2)
    print(as_text(other, ours))
    return 0


@contextlib.contextmanager
def started(name: str, tree: Path) -> Iterator[Side]:
    """The service of that tree."""
    command = [sys.executable, str(Path(__file__).with_name("chunk_worker.py")), str(STREAMS), str(CHUNKS)]
    env = {**os.environ, "PYTHONPATH": str(tree.resolve()), "PYTHONHASHSEED": "0"}
    with subprocess.Popen(
        command, cwd=tree, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        if process.stdin is None or process.stdout is None:  # for mypy: both are pipes
            raise RuntimeError
        try:
            if not any(line.strip() == "ready" for line in process.stdout):
                raise RuntimeError(f"the service of {tree} did not start")
            yield Side(name, process)
        finally:
            process.stdin.close()


def as_text(other: Side, ours: Side) -> str:
    """Medians, and the ratio of the rounds of a pair: its median, quartiles, and the error of the median."""
    ratios = [one / before for one, before in zip(ours.us, other.us, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    error = 1.2533 * statistics.stdev(ratios) / len(ratios) ** 0.5
    return (
        f"CPU a chunk: {statistics.median(other.us):.1f} us ({other.name}), "
        f"{statistics.median(ours.us):.1f} us ({ours.name})\n"
        f"ratio of {len(ratios)} pairs: median {middle - 1:+.1%} (+- {error:.1%}), quartiles {low - 1:+.1%} to "
        f"{high - 1:+.1%}"
    )
