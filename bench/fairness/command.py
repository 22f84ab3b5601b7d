"""`python -m bench fairness`: one client floods the service; two keys of different weight want all of it; and everybody
asks ten times what there is (`bench/fairness/overload.py`)."""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

from bench.fairness.overload import Overload, OverloadRun
from bench.fairness.weights import SHARES, Weights, WeightsRun
from bench.routing import virtual_time
from bench.routing.fleet import Fleet, FleetSize
from serve_app.protocol.errors import QueueFull
from serve_app.router.routing import RoutingPolicy

FLOOD = "flood"

SDK_TRIES = 3
"""How often the vendors' SDKs send a request that is refused."""

UNTIL_SERVED = 1_000_000

Result = TypeVar("Result")


@dataclass(frozen=True)
class Load:
    """`clients` ask `asked_ratio` of what the engines can do, together. One more asks `flood_ratio` times an equal
    share. Requests are alike: so many new prompt tokens and answer tokens, at full size."""

    clients: int = 8
    asked_ratio: float = 0.4
    flood_ratio: float = 50.0
    prompt_tokens: int = 6_000
    output_tokens: int = 300
    duration_s: float = 600.0
    warm_up_s: float = 60.0
    seed: int = 0
    scale: float = 0.25
    """All token counts are multiplied with this; the engines' rates, too."""

    def capacity_per_s(self, size: FleetSize) -> float:
        """About how many requests the engines can finish in a second: they compute prompts most of the time."""
        step_s = size.step_s + size.max_num_batched_tokens / size.prefill_tokens_per_s
        return size.replicas * size.max_num_batched_tokens / step_s / self.prompt_tokens


@dataclass(frozen=True)
class Mode:
    """A line of the table. Without `is_fair` nobody knows whose request it is."""

    name: str
    has_flood: bool
    is_fair: bool


MODES = (
    Mode("no flood", False, True),
    Mode("flood, in order of arrival", True, False),
    Mode("flood, fair", True, True),
)


@dataclass(frozen=True)
class Outcome:
    """What the clients other than the flood had, and all of them together."""

    ttft_p50_s: float
    ttft_p95_s: float
    refused_ratio: float
    jain: float
    finished_per_s: float


def jain(shares: Sequence[float]) -> float:
    """Jain's index of fairness: 1 where all have the same, 1/n where one has all."""
    return sum(shares) ** 2 / (len(shares) * sum(one * one for one in shares))


class Run:
    """One mode."""

    def __init__(self, mode: Mode, load: Load, size: FleetSize) -> None:
        self._mode = mode
        self._load = load
        self._size = size
        self._fleet = Fleet(size, load.scale, RoutingPolicy.COST, max_queued_requests=512)
        self._random = random.Random(load.seed)
        self._asked: Counter[str] = Counter()
        self._finished: Counter[str] = Counter()
        self._ttft_s: list[float] = []
        self._ended = 0

    async def __call__(self) -> Outcome:
        """Run it."""
        load = self._load
        capacity = load.capacity_per_s(self._size)
        rates = {f"client-{number}": capacity * load.asked_ratio / load.clients for number in range(load.clients)}
        if self._mode.has_flood:
            rates[FLOOD] = load.flood_ratio * capacity / (load.clients + 1)
        async with self._fleet, asyncio.TaskGroup() as tasks:
            for client, rate in rates.items():
                tasks.create_task(self._client(client, rate, tasks))
        others = [client for client in rates if client != FLOOD]
        asked, finished = (sum(counts[name] for name in others) for counts in (self._asked, self._finished))
        ttft_s = sorted(self._ttft_s)
        return Outcome(
            statistics.median(ttft_s),
            ttft_s[int(0.95 * len(ttft_s))],
            1 - finished / asked,
            jain([self._finished[name] / self._asked[name] for name in others]),
            self._ended / (load.duration_s - load.warm_up_s),
        )

    async def _client(self, client: str, rate: float, tasks: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() < self._load.duration_s:
            await asyncio.sleep(self._random.expovariate(rate))
            tasks.create_task(self._ask(client))

    async def _ask(self, client: str) -> None:
        loop, load = asyncio.get_running_loop(), self._load
        started_s = loop.time()
        counts = load.warm_up_s <= started_s < load.duration_s
        self._asked[client] += counts
        prompt = [self._random.randrange(1 << 17) for _ in range(int(load.prompt_tokens * load.scale))]
        try:
            answer = await self._fleet.generate(
                prompt, int(load.output_tokens * load.scale), None, client if self._mode.is_fair else ""
            )
        except QueueFull:
            return
        self._ended += load.warm_up_s <= answer.ended_s < load.duration_s
        if not counts:
            return
        self._finished[client] += 1
        if client != FLOOD and answer.trace.first_token_s is not None:
            self._ttft_s.append(answer.trace.first_token_s - started_s)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 when every mode was run."""
    parser = argparse.ArgumentParser(
        prog="python -m bench fairness",
        description="What clients notice of each other under load. Fake engines, in virtual time.",
    )
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--flood", type=float, default=50.0, help="what the flood asks, in equal shares (default 50)")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--duration-s", type=float, default=600.0, help="virtual seconds (default 600)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=0.25, help="of the flood's token counts (default %(default)s)")
    parser.add_argument("--step-tokens", type=int, default=8192, help="the engines' max-num-batched-tokens")
    parser.add_argument("--only", choices=("flood", "weights", "overload"), help="one of the three (default: all)")
    options = parser.parse_args(argv)
    load = Load(
        options.clients,
        flood_ratio=options.flood,
        duration_s=options.duration_s,
        seed=options.seed,
        scale=options.scale,
    )
    size = FleetSize(replicas=options.replicas, max_num_batched_tokens=options.step_tokens)
    tables = {"flood": _flood, "weights": _weights, "overload": _overload}
    for name, table in tables.items():
        if options.only in (None, name):
            Console(width=120).print(table(load, size))
    return 0


def _flood(load: Load, size: FleetSize) -> Table:
    table = Table("", title=f"One client asks {load.flood_ratio:.0f} times its share")
    for heading in ("others' TTFT p50", "p95", "others refused", "Jain", "all finished/s"):
        table.add_column(heading, justify="right")
    for mode in MODES:
        found = _run(mode.name, Run(mode, load, size)())
        table.add_row(
            mode.name,
            f"{found.ttft_p50_s:.2f} s",
            f"{found.ttft_p95_s:.2f} s",
            f"{found.refused_ratio:.1%}",
            f"{found.jain:.3f}",
            f"{found.finished_per_s:.2f}",
        )
    return table


def _weights(load: Load, size: FleetSize) -> Table:
    table = Table("key", "class", "weight", "share of the tokens", title="Three keys want everything")
    shares = _run("weights", WeightsRun(Weights(duration_s=load.duration_s, seed=load.seed), size)())
    for key, share in SHARES.items():
        table.add_row(key, share.service_class.word, str(share.weight), f"{shares[key]:.1%}")
    return table


def _overload(load: Load, size: FleetSize) -> Table:
    table = Table("", title="Everybody asks more than there is")
    for heading in ("finished/s", "refused", "after headers", "Retry-After's error, median", "of"):
        table.add_column(heading, justify="right")
    capacity = load.capacity_per_s(size)
    for name, factor, asking_s, tries in (
        ("1.2 times as much, for long", 1.2, load.duration_s / 2, SDK_TRIES),
        ("10 times as much, for long", 10.0, load.duration_s / 2, SDK_TRIES),
        ("10 times as much, for 20 s; all come back", 10.0, 20.0, UNTIL_SERVED),
    ):
        found = _run(name, OverloadRun(Overload(factor, asking_s, tries, capacity, seed=load.seed), size)())
        error = "" if found.retry_error_ratio is None else f"{found.retry_error_ratio:.0%}"
        table.add_row(
            name, f"{found.finished_per_s:.2f}", str(found.refused), str(found.refused_late), error, str(found.compared)
        )
    return table


def _run(name: str, run: Coroutine[Any, Any, Result]) -> Result:
    began_s = time.monotonic()
    found = virtual_time.run(run)
    print(f"{name}: {time.monotonic() - began_s:.0f} s", file=sys.stderr, flush=True)
    return found
