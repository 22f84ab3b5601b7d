"""`python -m bench front-end`: our whole path and vLLM's API server over the same engine core, in turn."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.client import RunFailed
from bench.cpu import ENGINE, CpuClock
from bench.front_end import cases, model, pace
from bench.front_end.cases import Case
from bench.front_end.streams import Result, StreamClient
from bench.measure import LOGS
from bench.servers import BARE, OURS, Server, Servers, StartFailed

FOLDER = LOGS / "front-end"
CONTEXT = 163_840
SETTLE_S = 1.0
"""After the last stream has its first token, until the count of CPU time begins."""
ON_THE_PATH = ("API server", "ingress", "engine replica", "HAProxy")
"""The processes that a chunk passes. Others (Ray's daemons, Serve's controller) burn the same without load."""


@dataclass(frozen=True)
class Measured:
    """One case on one server. CPU milliseconds are without the engine core's."""

    case: str
    server: str
    cpu_ms: dict[str, float]
    """By role: for 1,000 chunks of a stream, or for one request."""
    per: str
    ttft_ms: float
    """Median."""
    ttft_worst_ms: float
    late_p50_ms: float
    """From the end of the engine's step until the client had its chunk."""
    late_p99_ms: float
    gap_p99_ms: float
    chunks_per_s: float

    @property
    def total_ms(self) -> float:
        """CPU of the processes on the path."""
        return sum(ms for role, ms in self.cpu_ms.items() if role in ON_THE_PATH)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 when everything was measured."""
    options = _parser().parse_args(argv)
    try:
        found = list(measure(options))
    except (StartFailed, RunFailed, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n", encoding="utf-8")
    print(as_text(found))
    return 0


def measure(options: argparse.Namespace) -> Iterator[Measured]:
    """Every case on both servers, one after the other."""
    folder = model.prepare(FOLDER, _say)
    with ExitStack() as stack:
        servers = stack.enter_context(Servers(LOGS, settings(folder)))
        started = []
        for topology in (BARE, OURS):
            if topology.name in options.servers:
                start_s = time.monotonic()
                started.append(servers.start(topology))
                _say(f"{topology.name}: answers after {time.monotonic() - start_s:.0f} s")
        client = stack.enter_context(StreamClient())
        for server in started:
            with servers.only(server):
                for api in cases.APIS:
                    client.run(cases.streams(api, 8, 1.0).job(server.port))
        for number, case in enumerate(_cases(options)):
            for server in started if number % 2 == 0 else reversed(started):
                with servers.only(server):
                    found = run(server, client, case)
                _say(f"{case.name}, {found.server}: {found.total_ms:,.1f} ms CPU per {found.per}")
                yield found


def settings(folder: Path) -> dict[str, Any]:
    """Of the application, in addition to the demo's profile: an engine core that computes nothing."""
    paced = {pace.STEPS_PER_S: cases.STEPS_PER_S, pace.THINK_END: model.token_id(folder, "</think>")}
    flags = {
        "worker-cls": pace.WORKER,
        "additional-config": paced,
        "load-format": "dummy",
        "max-model-len": CONTEXT,
        "max-num-seqs": 1024,
        "max-num-batched-tokens": CONTEXT,
        "long-prefill-token-threshold": None,
        "speculative-config": None,
        "async-scheduling": False,
    }
    return {
        "model": {"source": str(folder), "served_name": cases.MODEL},
        "engine": {"flags": flags, "warm_up": False},
        "ingress": {"max_replicas": 1, "max_ongoing_requests": 2048},
    }


def _cases(options: argparse.Namespace) -> Iterator[Case]:
    kinds = options.only
    if "streams" in kinds:
        apis = [api for api in cases.APIS if api.name in options.apis]
        for api in apis:
            for count in options.streams if api is cases.CHAT else (64,):
                yield cases.streams(api, count, options.seconds)
    if "requests" in kinds:
        yield cases.short_requests(200)
        yield cases.short_requests(200, tools=True)
    if "prompts" in kinds:
        for tokens in (1_000, 32_000, 140_000):
            for seed in range(options.rounds):
                yield from cases.conversation(tokens, seed)
    if "images" in kinds:
        for seed in range(options.rounds):
            yield from cases.pictures(seed)


def run(server: Server, client: StreamClient, case: Case) -> Measured:
    """One case on one server. Raises `RunFailed`."""
    with CpuClock(server.processes()) as clock:
        time.sleep(0.2)  # a sample before the first request
        result = client.run(case.job(server.port))
        time.sleep(0.3)  # and one when what a request leaves behind is done
    in_streams = case.steps > cases.SHORT_STEPS
    from_s, to_s = steady_time(result) if in_streams else (0.0, time.monotonic())
    chunks = sum(from_s <= at_s < to_s for one in result.streams for at_s in one.times_s)
    cpu_s = clock.between(from_s, to_s)
    unit = chunks / 1000 if in_streams else len(result.streams)
    late_ms, gaps_ms = _timing(result, from_s, to_s)
    ttfts_ms = [1000 * (one.times_s[0] - one.started_s) for one in result.streams]
    return Measured(
        case=case.name,
        server=server.topology.name,
        cpu_ms={role: 1000 * seconds / unit for role, seconds in cpu_s.items() if role != ENGINE},
        per="1,000 chunks" if in_streams else "request",
        ttft_ms=statistics.median(ttfts_ms),
        ttft_worst_ms=max(ttfts_ms),
        late_p50_ms=float(np.percentile(late_ms, 50)),
        late_p99_ms=float(np.percentile(late_ms, 99)),
        gap_p99_ms=float(np.percentile(gaps_ms, 99)),
        chunks_per_s=chunks / (to_s - from_s) if in_streams else 0.0,
    )


def steady_time(result: Result) -> tuple[float, float]:
    """From when all streams have begun until the first one ends; where they began too late for that, the middle third
    of the run."""
    from_s = max(one.times_s[0] for one in result.streams) + SETTLE_S
    to_s = min(one.times_s[-1] for one in result.streams)
    if to_s - from_s >= SETTLE_S:
        return from_s, to_s
    first_s = min(one.times_s[0] for one in result.streams)
    third_s = (max(one.times_s[-1] for one in result.streams) - first_s) / 3
    return first_s + third_s, first_s + 2 * third_s


def _timing(result: Result, from_s: float, to_s: float) -> tuple[Any, Any]:
    """How late chunks were after the engine's step, and the gaps between them, in milliseconds."""
    period_s = 1.0 / cases.STEPS_PER_S
    late, gaps = [], []
    for one in result.streams:
        times_s = np.array(one.times_s)
        within = times_s[(times_s >= from_s) & (times_s < to_s)]
        late.append(within % period_s)
        gaps.append(np.diff(within))
    return 1000 * np.concatenate(late), 1000 * np.concatenate(gaps)


def as_text(found: Sequence[Measured]) -> str:
    """A table: each case of both servers, medians where it was repeated."""
    head = f"{'':28}{'CPU ms':>9}{'ratio':>7}  {'of that':42}{'TTFT ms':>9}{'worst':>8}{'late p50':>9}{'p99':>7}"
    lines = [head + f"{'gap p99':>9}{'chunks/s':>10}"]
    for case in dict.fromkeys(one.case for one in found):
        runs = [one for one in found if one.case == case]
        bare = [one.total_ms for one in runs if one.server == BARE.name]
        lines.append(f"{case} (per {runs[0].per})")
        servers = sorted({one.server for one in runs})
        lines += [_line([one for one in runs if one.server == name], bare) for name in servers]
    return "\n".join(lines)


def _line(runs: Sequence[Measured], bare: Sequence[float]) -> str:
    def median(name: str) -> float:
        return float(statistics.median(getattr(one, name) for one in runs))

    total = median("total_ms")
    ratio = f"{total / statistics.median(bare):7.2f}" if bare else f"{'':7}"
    parts = ", ".join(f"{role} {ms:,.1f}" for role, ms in _by_role(runs).items() if ms >= 0.05 * total)
    return (
        f"  {runs[0].server:26}{total:9,.1f}{ratio}  {parts:42}{median('ttft_ms'):9,.1f}{median('ttft_worst_ms'):8,.0f}"
        f"{median('late_p50_ms'):9.1f}{median('late_p99_ms'):7.1f}{median('gap_p99_ms'):9.1f}{median('chunks_per_s'):10,.0f}"
    )


def _by_role(runs: Sequence[Measured]) -> Mapping[str, float]:
    roles = {role: statistics.median(one.cpu_ms.get(role, 0.0) for one in runs) for one in runs for role in one.cpu_ms}
    return dict(sorted(roles.items(), key=lambda item: -item[1]))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    kinds = ("streams", "requests", "prompts", "images")
    parser = argparse.ArgumentParser(prog="python -m bench front-end", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=kinds, default=kinds, help="some kinds of cases")
    parser.add_argument("--servers", nargs="+", default=(BARE.name, OURS.name), help="`bare`, `ours` (default: both)")
    parser.add_argument(
        "--streams", nargs="+", type=int, default=(16, 64, 256, 512, 1024), help="numbers of chat streams"
    )
    names = [api.name for api in cases.APIS]
    parser.add_argument("--apis", nargs="+", choices=names, default=names, help="of the streams (default: all)")
    parser.add_argument("--seconds", type=float, default=6.0, help="how long each stream lasts (default 6)")
    parser.add_argument("--rounds", type=int, default=3, help="conversations of each size (default 3)")
    parser.add_argument("--json", type=Path, help="also write every figure to this file")
    return parser
