"""`python -m bench.starvation --url http://127.0.0.1:8000`: what small streams see of long prompts beside them.

Rounds of the same streams without long prompts, with them, and without them again, for a busy machine slows both. Says
the gaps between the streams' events in either, their ratio, and the first tokens' waits; once, how long such a prompt
takes alone. The CPU seconds are those of all vLLM engines on this machine. Ends with 1 where the median ratio of the
99th percentiles is above `LIMIT`.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median

import psutil

from bench.cpu import ENGINE, role_of
from bench.prefill import SMALL, Seen, share, stream

LIMIT = 3.0
ALONE_S = 15.0
"""How long the streams run without long prompts, before them and after them."""
SMALL_ANSWER_TOKENS = 64


@dataclass(frozen=True)
class Target:
    """The service, and the long prompts that it gets: `longs` at a time, of `tokens` each."""

    url: str
    model: str
    tokens: int
    longs: int


@dataclass(frozen=True)
class Round:
    """`long_ttft_s` of each long prompt; what the streams saw without them and with them."""

    streams: int
    long_ttft_s: list[float]
    without: Seen
    beside: Seen

    @property
    def ratio(self) -> float:
        """Of the streams' 99th percentile gaps, with to without."""
        return percentile(self.beside.gap_s, 0.99) / percentile(self.without.gap_s, 0.99)


def percentile(values: list[float], part: float) -> float:
    """Of at least one value."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def one_round(target: Target, streams: int) -> Round:
    """The streams alone for `ALONE_S`, then until the last long prompt has its first token, then alone again."""
    without, beside = Seen(), Seen()
    with small_streams(target, streams, without):
        time.sleep(ALONE_S)
    with small_streams(target, streams, beside), ThreadPoolExecutor(target.longs) as pool:
        long_ttft_s = list(pool.map(lambda number: first_token_s(target, number), range(target.longs)))
    with small_streams(target, streams, without):
        time.sleep(ALONE_S)
    return Round(streams, long_ttft_s, without, beside)


@contextlib.contextmanager
def small_streams(target: Target, streams: int, seen: Seen) -> Iterator[None]:
    """So many small streams at a time, one behind the other, as long as the block runs. Keeps what they see in it."""
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            for number, wait_s in enumerate(stream(target.url, target.model, SMALL, SMALL_ANSWER_TOKENS)):
                if not over.is_set():
                    (seen.gap_s if number else seen.ttft_s).append(wait_s)

    with ThreadPoolExecutor(streams) as pool:
        crowd = [pool.submit(run) for _ in range(streams)]
        try:
            yield
        finally:
            over.set()
        for one in crowd:
            one.result()


def engine_cpu_s() -> float:
    """CPU seconds of the vLLM engines on this machine; 0 where the service runs elsewhere."""
    total = 0.0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if role_of(process) == ENGINE:
                times = process.cpu_times()
                total += times.user + times.system
    return total


def first_token_s(target: Target, number: int) -> float:
    """How long a long prompt waits. Digits are a token each for the demo; the time keeps it out of the cache."""
    prompt = (f"{number}{time.time_ns()}" + "1234567890" * (target.tokens // 10))[: target.tokens]
    return next(stream(target.url, target.model, prompt, 1))


def as_line(one: Round) -> str:
    """A round in a line; seconds."""
    longs = ", ".join(f"{wait_s:.1f}" for wait_s in sorted(one.long_ttft_s))
    gaps = " -> ".join(f"{share(seen.gap_s, 0.5)}/{share(seen.gap_s, 0.99)}" for seen in (one.without, one.beside))
    firsts = " -> ".join(f"{share(seen.ttft_s, 0.5)}/{share(seen.ttft_s, 1)}" for seen in (one.without, one.beside))
    return (
        f"{one.streams} streams: gaps p50/p99 {gaps} (p99 x{one.ratio:.1f}), first tokens p50/max {firsts}; "
        f"long prompts {longs}"
    )


def main() -> int:
    """0 where the streams' gaps stay within the limit."""
    parser = argparse.ArgumentParser(prog="python -m bench.starvation", description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", default="step3p7-flash")
    parser.add_argument("--tokens", type=int, default=100_000, help="of a long prompt (30000 for a quick run)")
    parser.add_argument("--longs", type=int, default=1, help="long prompts at a time")
    parser.add_argument("--streams", type=int, nargs="+", default=[16], help="small streams beside them")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--no-alone", action="store_true", help="do not run a long prompt alone first")
    options = parser.parse_args()
    target = Target(options.url, options.model, options.tokens, options.longs)
    ratios: dict[int, list[float]] = {streams: [] for streams in options.streams}
    if not options.no_alone:
        before_s = engine_cpu_s()
        took_s = first_token_s(target, 0)
        print(f"a long prompt alone: {took_s:.1f} s, {engine_cpu_s() - before_s:.1f} CPU s", flush=True)
    for _ in range(options.rounds):
        for streams in options.streams:
            before_s = engine_cpu_s()
            found = one_round(target, streams)
            ratios[streams].append(found.ratio)
            print(f"{as_line(found)}; {engine_cpu_s() - before_s:.0f} CPU s in all", flush=True)
    for streams, of_it in ratios.items():
        print(f"{streams} streams: p99 gap x{median(of_it):.1f} (median of {len(of_it)}; limit {LIMIT:.0f})")
    return 0 if all(median(of_it) <= LIMIT for of_it in ratios.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
