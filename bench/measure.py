"""Rounds: every topology once, in turn, on the same prompts. Only figures of the same round are compared.

All servers are up the whole time, but only the measured one runs: the idle CPU time of the others on two cores would
slow it down. Each round has its own seed, because the prefix cache would hold an earlier round's prompts. Each topology
has its own engine, and so its own cache.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.client import BenchClient
from bench.cpu import ENGINE, CpuClock
from bench.servers import Server, Servers, Topology
from serve_app.config import profile

LOGS = profile.ROOT / "build"
IDLE_S = 3.0
FIRST_SEED = 1000
WARM_UP_PROMPTS = 32
"""Before anything is counted: first steps of every kind, connections, and the processes' first imports."""

WriteLine = Callable[[str], None]


@dataclass(frozen=True)
class BenchLoad:
    """The load of each topology in each round."""

    prompts: int = 96
    rounds: int = 3
    streams: int = 16
    input_tokens: int = 256
    output_tokens: int = 128


@dataclass(frozen=True)
class BenchRun:
    """One topology in one round."""

    topology: str
    round: int
    output_tok_per_s: float
    median_ttft_ms: float
    median_itl_ms: float
    output_tokens: int
    duration_s: float
    cpu_s: dict[str, float]
    """CPU seconds by role, the engine's included."""

    @property
    def front_end_cpu_s_per_1k(self) -> float:
        """CPU seconds of everything but the engine for 1,000 output tokens."""
        cpu_s = sum(seconds for role, seconds in self.cpu_s.items() if role != ENGINE)
        return cpu_s * 1000 / self.output_tokens


@dataclass(frozen=True)
class BenchResult:
    """A whole benchmark."""

    load: BenchLoad
    topologies: Sequence[Topology]
    idle_cores: dict[str, dict[str, float]]
    """CPU time without load, in cores, by topology and role."""
    runs: Sequence[BenchRun]


def measure(
    topologies: Sequence[Topology], load: BenchLoad, settings: Mapping[str, object], write_line: WriteLine
) -> BenchResult:
    """Start every topology with these settings of the application, measure them in turn, and stop them."""
    with ExitStack() as stack:
        servers = stack.enter_context(Servers(LOGS, settings))
        started = []
        for topology in topologies:
            start_s = time.monotonic()
            started.append(servers.start(topology))
            write_line(f"{topology.name}: answers after {time.monotonic() - start_s:.0f} s")
        client = stack.enter_context(BenchClient(LOGS / "bench-client.log"))
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sb-result")))
        idle = {}
        for server in started:
            with servers.only(server):
                client.run(client_argv(server.port, load, prompts=WARM_UP_PROMPTS, seed=FIRST_SEED - 1), scratch)
                idle[server.topology.name] = _idle_cores(server)
        runs = []
        for number in range(load.rounds):
            # Each round starts with another topology: what delays the first one must not always delay the same.
            first = number % len(started)
            for server in started[first:] + started[:first]:
                with servers.only(server):
                    run = run_once(server, client, load, number, scratch)
                runs.append(run)
                write_line(
                    f"round {number + 1}, {run.topology}: {run.output_tok_per_s:,.0f} tok/s, "
                    f"{run.front_end_cpu_s_per_1k * 1000:.0f} ms CPU per 1,000 tokens"
                )
        return BenchResult(load, topologies, idle, runs)


def run_once(server: Server, client: BenchClient, load: BenchLoad, number: int, scratch: Path) -> BenchRun:
    """Measure one topology once."""
    with CpuClock(server.processes()) as clock:
        argv = client_argv(server.port, load, prompts=load.prompts, seed=FIRST_SEED + number)
        found: dict[str, Any] = client.run(argv, scratch)
    first_s = min(found["start_times"])
    return BenchRun(
        topology=server.topology.name,
        round=number,
        output_tok_per_s=found["output_throughput"],
        median_ttft_ms=found["median_ttft_ms"],
        median_itl_ms=found["median_itl_ms"],
        output_tokens=found["total_output_tokens"],
        duration_s=found["duration"],
        cpu_s=clock.between(first_s, first_s + found["duration"]),
    )


def client_argv(port: int, load: BenchLoad, *, prompts: int, seed: int) -> list[str]:
    """The options of `vllm bench serve`."""
    model = profile.ROOT / "models" / "step-tiny"
    return [
        "--backend=openai-chat",
        "--endpoint=/v1/chat/completions",
        f"--base-url=http://127.0.0.1:{port}",
        f"--tokenizer={model}",
        "--trust-remote-code",
        "--dataset-name=random",
        f"--random-input-len={load.input_tokens}",
        f"--random-output-len={load.output_tokens}",
        f"--num-prompts={prompts}",
        f"--max-concurrency={load.streams}",
        "--ignore-eos",
        "--temperature=0",
        f"--seed={seed}",
        "--disable-tqdm",
    ]


def _idle_cores(server: Server) -> dict[str, float]:
    start_s = time.monotonic()
    with CpuClock(server.processes()) as clock:
        time.sleep(IDLE_S)
    cpu_s = clock.between(start_s, start_s + IDLE_S)
    return {role: seconds / IDLE_S for role, seconds in cpu_s.items()}
