"""`python -m bench many`: what more engines cost an ingress, at the same load.

One ingress, complete from HTTP to its data channels, has the same streams over 1, 4, 16 and 64 engines in turn, in
rounds. Beside it stand further ingresses that are connected to every engine and have no requests. The engines compute
nothing and share a process. CPU seconds are the kernel's, of the ingress' process alone; with the machine's noise only
the ratios of one run can be compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from bench.client import RunFailed
from bench.front_end import model
from bench.front_end.command import steady_time
from bench.front_end.streams import Job, Result, StreamClient
from bench.many import fleet
from bench.many.child import Child, Command
from bench.many.ingress import MODEL, NAME
from bench.servers import StartFailed

MAX_GROWTH = 1.10
"""How much more a token may cost with the most engines than with the fewest."""
PERIOD_S = 0.05


@dataclass(frozen=True)
class Measured:
    """One run. CPU of the ingress: milliseconds for 1,000 chunks of streams, and of a second without requests."""

    engines: int
    chunks: int
    cpu_ms: float
    frames_per_s: float
    idle_cpu_ms: float
    idle_frames_per_s: float
    engines_idle_cpu_ms: float
    """Of the process of the engines, in a second without requests."""
    memory_bytes: int


class CpuSamples:
    """CPU seconds and frames of a process, sampled while the `with` block runs."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._samples: list[tuple[float, float]] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cpu", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def between(self, from_s: float, to_s: float) -> float:
        """CPU seconds between two times of the monotonic clock, by the share of the samples around them."""
        return self._at(to_s) - self._at(from_s)

    def _at(self, time_s: float) -> float:
        before = [one for one in self._samples if one[0] <= time_s] or self._samples[:1]
        after = [one for one in self._samples if one[0] > time_s] or self._samples[-1:]
        (from_s, used_s), (to_s, later_s) = before[-1], after[0]
        share = (time_s - from_s) / (to_s - from_s) if to_s > from_s else 0.0
        return used_s + share * (later_s - used_s)

    def _run(self) -> None:
        while not self._end.wait(PERIOD_S):
            self._samples.append((time.monotonic(), self._child.cpu_s()))


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 where a token costs the same with the most engines as with the fewest, within `MAX_GROWTH`."""
    options = _parser().parse_args(argv)
    try:
        if options.serve:
            return fleet.run(options.serve, options.idle_s)
        found = list(measure(options))
    except (RunFailed, StartFailed, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n", encoding="utf-8")
    print(as_text(found))
    return 0 if growth(found) <= MAX_GROWTH else 1


def measure(options: argparse.Namespace) -> Iterator[Measured]:
    """Every number of engines in turn, in each round in the other direction. Raises `RunFailed`."""
    with ExitStack() as stack:
        words = ("--step-s", str(options.step_s), "--think-end", str(model.token_id(MODEL, "</think>")))
        engines = stack.enter_context(Child("bench.many.engines", *words))
        ingress = stack.enter_context(Child("bench.many.ingress"))
        others = stack.enter_context(Child("bench.many.ingress", "--others", str(options.ingresses - 1)))
        client = stack.enter_context(StreamClient())
        _connect(1, engines, ingress, others)
        client.run(_job(_port(ingress), 8, 40))
        for number in range(options.rounds):
            for count in sorted(options.engines, reverse=number % 2 == 1):
                _connect(count, engines, ingress, others)
                found = _run(count, engines, ingress, client, options)
                print(f"{count} engines: {found.cpu_ms:.1f} ms per 1,000 chunks", file=sys.stderr, flush=True)
                yield found


def _port(ingress: Child) -> int:
    return ingress.ask(Command()).port


def _connect(count: int, engines: Child, *ingresses: Child) -> None:
    replicas = engines.ask(Command(engines=count)).replicas
    for ingress in ingresses:
        ingress.ask(Command(replicas=replicas))


def _run(count: int, engines: Child, ingress: Child, client: StreamClient, options: argparse.Namespace) -> Measured:
    idle_s, idle_frames, engines_s = _idle(engines, ingress, options.idle_s)
    job = _job(_port(ingress), options.streams, int(options.seconds / options.step_s))
    frames, begun_s = ingress.ask(Command()).frames, time.monotonic()
    with CpuSamples(ingress) as samples:
        result = client.run(job)
    frames_per_s = (ingress.ask(Command()).frames - frames) / (time.monotonic() - begun_s)
    from_s, to_s = steady_time(result)
    chunks = _chunks(result, from_s, to_s)
    return Measured(
        engines=count,
        chunks=chunks,
        cpu_ms=1e6 * samples.between(from_s, to_s) / chunks,
        frames_per_s=frames_per_s,
        idle_cpu_ms=1000 * idle_s / options.idle_s,
        idle_frames_per_s=idle_frames / options.idle_s,
        engines_idle_cpu_ms=1000 * engines_s / options.idle_s,
        memory_bytes=ingress.memory_bytes(),
    )


def _idle(engines: Child, ingress: Child, seconds: float) -> tuple[float, int, float]:
    """CPU seconds and received frames of the ingress without requests, and the CPU seconds of the engines."""
    frames, used_s, engines_s = ingress.ask(Command()).frames, ingress.cpu_s(), engines.cpu_s()
    time.sleep(seconds)
    used_s, engines_s = ingress.cpu_s() - used_s, engines.cpu_s() - engines_s
    return used_s, ingress.ask(Command()).frames - frames, engines_s


def _chunks(result: Result, from_s: float, to_s: float) -> int:
    return sum(from_s <= at_s < to_s for one in result.streams for at_s in one.times_s)


def _job(port: int, streams: int, tokens: int) -> Job:
    def body(number: int) -> str:
        messages = [{"role": "user", "content": f"{number}: on and on"}]
        asked = {"max_tokens": tokens, "ignore_eos": True, "stream": True}
        return json.dumps({"model": NAME, "messages": messages, **asked})

    return Job(port, "/v1/chat/completions", [body(number) for number in range(streams)], streams, streams)


def growth(found: Sequence[Measured]) -> float:
    """The cost of a chunk with the most engines, by that with the fewest."""
    counts = _counts(found)
    return _cost(found, counts[-1]) / _cost(found, counts[0])


def _cost(found: Sequence[Measured], engines: int) -> float:
    """Of the cheapest round: whatever else runs on the machine makes caches cold, and only adds."""
    return min(one.cpu_ms for one in found if one.engines == engines)


def _counts(found: Sequence[Measured]) -> list[int]:
    return sorted({one.engines for one in found})


def _median(found: Sequence[Measured], engines: int, name: str) -> float:
    return float(statistics.median(getattr(one, name) for one in found if one.engines == engines))


def as_text(found: Sequence[Measured]) -> str:
    """A table: for each number of engines the cheapest round and the range of the costs, and medians of the rest."""
    head = f"{'engines':>8}{'CPU ms per 1,000 chunks':>25}{'ratio':>7}{'frames/s':>10}"
    lines = [head + f"{'idle: CPU ms/s':>16}{'frames/s':>10}{'engines ms/s':>14}{'memory MB':>11}"]
    counts = _counts(found)
    first = _cost(found, counts[0])
    for count in counts:
        costs = [one.cpu_ms for one in found if one.engines == count]
        cost = _cost(found, count)
        spread = f"{cost:,.1f} ({min(costs):,.1f}-{max(costs):,.1f})"
        line = f"{count:8}{spread:>25}{cost / first:7.2f}{_median(found, count, 'frames_per_s'):10,.0f}"
        line += f"{_median(found, count, 'idle_cpu_ms'):16.1f}{_median(found, count, 'idle_frames_per_s'):10,.0f}"
        line += f"{_median(found, count, 'engines_idle_cpu_ms'):14.1f}"
        lines.append(line + f"{_median(found, count, 'memory_bytes') / 1e6:11,.1f}")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench many", description=__doc__)
    parser.add_argument("--engines", nargs="+", type=int, default=(1, 4, 16, 64), help="numbers of engines")
    parser.add_argument("--ingresses", type=int, default=8, help="how many are connected to each engine (default 8)")
    parser.add_argument("--streams", type=int, default=128, help="streams at a time at the one measured (default 128)")
    parser.add_argument("--step-s", type=float, default=0.05, help="of the engines, in seconds (default 0.05)")
    parser.add_argument("--seconds", type=float, default=15.0, help="how long each stream lasts (default 15)")
    parser.add_argument("--idle-s", type=float, default=4.0, help="how long it is watched without requests")
    parser.add_argument("--rounds", type=int, default=3, help="each number of engines is measured once per round")
    help_serve = "instead: real replicas of Ray Serve, so many, and what they cost without requests"
    parser.add_argument("--serve", nargs="+", type=int, metavar="ENGINES", help=help_serve)
    parser.add_argument("--json", type=Path, help="also write every figure to this file")
    return parser
