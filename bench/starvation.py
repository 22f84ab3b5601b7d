"""`python -m bench.starvation --url http://127.0.0.1:8000`: how much long prompts slow down small streams.

Each round runs small streams alone, then beside long prompts, then alone again, because other work on the machine may
slow either part. Prints the gaps between the streams' events in both, their ratio, and the times to first token. Before
the rounds, one long prompt runs alone. CPU seconds are those of all vLLM engines on this machine. Exits with 1 if the
median ratio of the 99th percentiles is above `LIMIT`.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from statistics import median

import psutil

from bench.cpu import ENGINE, role_of
from bench.response_lines import DATA, response_lines

LIMIT = 3.0
ALONE_S = 15.0
"""How long the streams run without long prompts, before them and after them."""
SMALL_PROMPT, SMALL_ANSWER_TOKENS = "Count from 3 to 30.", 64
TIMEOUT_S = 600.0


@dataclass(frozen=True)
class LongPrompts:
    """The service, and the long prompts that it gets: `count` at a time, of `tokens` each."""

    url: str
    model: str
    tokens: int
    count: int


@dataclass
class StreamTimes:
    """Times of the small streams, in seconds."""

    ttft_s: list[float] = field(default_factory=list)
    gap_s: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class StarvationRound:
    """The small streams' times without and beside long prompts, and the time to first token of each long prompt."""

    streams: int
    long_ttft_s: list[float]
    alone: StreamTimes
    beside: StreamTimes

    @property
    def ratio(self) -> float:
        """99th percentile of the gaps beside long prompts, over that of the gaps alone."""
        return percentile(self.beside.gap_s, 0.99) / percentile(self.alone.gap_s, 0.99)


def percentile(values: list[float], part: float) -> float:
    """Of at least one value."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def event_gaps_s(prompts: LongPrompts, prompt: str, max_tokens: int) -> Iterator[float]:
    """Seconds between the events of a streamed completion, the first from the request. Raises `RequestFailed`."""
    body = {"model": prompts.model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "stream": True}
    last_s = time.monotonic()
    for line in response_lines(prompts.url, "/v1/completions", body, TIMEOUT_S):
        if line.startswith(DATA):
            now_s = time.monotonic()
            yield now_s - last_s
            last_s = now_s


def run_round(prompts: LongPrompts, streams: int) -> StarvationRound:
    """Streams alone for `ALONE_S`, beside long prompts until each of those has its first token, then alone again."""
    alone, beside = StreamTimes(), StreamTimes()
    with small_streams(prompts, streams, alone):
        time.sleep(ALONE_S)
    with small_streams(prompts, streams, beside), ThreadPoolExecutor(prompts.count) as pool:
        long_ttft_s = list(pool.map(lambda number: long_prompt_ttft_s(prompts, number), range(prompts.count)))
    with small_streams(prompts, streams, alone):
        time.sleep(ALONE_S)
    return StarvationRound(streams, long_ttft_s, alone, beside)


@contextlib.contextmanager
def small_streams(prompts: LongPrompts, streams: int, times: StreamTimes) -> Iterator[None]:
    """This many clients, each with one small stream after another, while the block runs. Adds to `times`."""
    over = threading.Event()

    def run_client() -> None:
        while not over.is_set():
            for number, gap_s in enumerate(event_gaps_s(prompts, SMALL_PROMPT, SMALL_ANSWER_TOKENS)):
                if not over.is_set():
                    (times.gap_s if number else times.ttft_s).append(gap_s)

    with ThreadPoolExecutor(streams) as pool:
        clients = [pool.submit(run_client) for _ in range(streams)]
        try:
            yield
        finally:
            over.set()
        for client in clients:
            client.result()


def engine_cpu_s() -> float:
    """CPU seconds of the vLLM engines on this machine; 0 if the service runs elsewhere."""
    total_s = 0.0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if role_of(process) == ENGINE:
                times = process.cpu_times()
                total_s += times.user + times.system
    return total_s


def long_prompt_ttft_s(prompts: LongPrompts, number: int) -> float:
    """Time to first token of a long prompt. Each digit is a token of the demo's; the time keeps it out of the cache."""
    prompt = (f"{number}{time.time_ns()}" + "1234567890" * (prompts.tokens // 10))[: prompts.tokens]
    return next(event_gaps_s(prompts, prompt, 1))


def as_line(found: StarvationRound) -> str:
    """A round as a line of text."""
    parts = (found.alone, found.beside)
    longs = ", ".join(f"{ttft_s:.1f}" for ttft_s in sorted(found.long_ttft_s))
    gaps = " -> ".join(f"{_text(times.gap_s, 0.5)}/{_text(times.gap_s, 0.99)}" for times in parts)
    firsts = " -> ".join(f"{_text(times.ttft_s, 0.5)}/{_text(times.ttft_s, 1)}" for times in parts)
    return (
        f"{found.streams} streams: gaps p50/p99 {gaps} (p99 x{found.ratio:.1f}), first tokens p50/max {firsts}; "
        f"long prompts {longs}"
    )


def _text(values: list[float], part: float) -> str:
    return f"{percentile(values, part):.2f}" if values else "-"


def main() -> int:
    """Returns 0 if the streams' gaps stay within the limit, else 1."""
    parser = argparse.ArgumentParser(prog="python -m bench.starvation", description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", default="step3p7-flash")
    parser.add_argument("--tokens", type=int, default=100_000, help="of a long prompt (30000 for a quick run)")
    parser.add_argument("--longs", type=int, default=1, help="long prompts at a time")
    parser.add_argument("--streams", type=int, nargs="+", default=[16], help="small streams beside them")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--no-alone", action="store_true", help="do not run a long prompt alone first")
    options = parser.parse_args()
    prompts = LongPrompts(options.url, options.model, options.tokens, options.longs)
    ratios: dict[int, list[float]] = {streams: [] for streams in options.streams}
    if not options.no_alone:
        before_s = engine_cpu_s()
        ttft_s = long_prompt_ttft_s(prompts, 0)
        print(f"a long prompt alone: {ttft_s:.1f} s, {engine_cpu_s() - before_s:.1f} CPU s", flush=True)
    for _ in range(options.rounds):
        for streams in options.streams:
            before_s = engine_cpu_s()
            found = run_round(prompts, streams)
            ratios[streams].append(found.ratio)
            print(f"{as_line(found)}; {engine_cpu_s() - before_s:.0f} CPU s in total", flush=True)
    for streams, found_ratios in ratios.items():
        ratio, rounds = median(found_ratios), len(found_ratios)
        print(f"{streams} streams: p99 gap x{ratio:.1f} (median of {rounds}; limit {LIMIT:.0f})")
    return 0 if all(median(found_ratios) <= LIMIT for found_ratios in ratios.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
