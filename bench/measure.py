"""Rounds: every topology once, in turn, on the same prompts. Only figures of one round are compared.

All servers are up the whole time, but only the one that is measured runs: what the others burn idle on two cores would
be missing from its figures. Each round has its own seed, or the prefix cache would answer what an earlier round asked;
each topology has an engine and so a cache of its own.
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
WARM_UP = 32
"""Prompts before anything is counted: first steps of every kind, connections, and the processes' first imports."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Load:
    """What is asked of each topology in each round: 16 streams of 256 tokens in and 128 out."""

    prompts: int = 96
    rounds: int = 3
    streams: int = 16
    input_tokens: int = 256
    output_tokens: int = 128


@dataclass(frozen=True)
class Run:
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
        spent_s = sum(seconds for role, seconds in self.cpu_s.items() if role != ENGINE)
        return spent_s * 1000 / self.output_tokens


@dataclass(frozen=True)
class Result:
    """A whole benchmark. `idle_cores` is what each topology burns doing nothing, in cores, by role."""

    load: Load
    topologies: Sequence[Topology]
    idle_cores: dict[str, dict[str, float]]
    runs: Sequence[Run]


def measure(topologies: Sequence[Topology], load: Load, settings: Mapping[str, object], say: Say) -> Result:
    """Start every topology with these settings of the application, measure them in turn, take everything down."""
    with ExitStack() as stack:
        servers = stack.enter_context(Servers(LOGS, settings))
        started = []
        for topology in topologies:
            began_s = time.monotonic()
            started.append(servers.start(topology))
            say(f"{topology.name}: answers after {time.monotonic() - began_s:.0f} s")
        client = stack.enter_context(BenchClient(LOGS / "bench-client.log"))
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sb-result")))
        idle = {}
        for server in started:
            with servers.only(server):
                client.run(client_argv(server.port, load, prompts=WARM_UP, seed=FIRST_SEED - 1), scratch)
                idle[server.topology.name] = _idle_cores(server)
        runs = []
        for number in range(load.rounds):
            # Another one first each time: what follows a busy moment of the machine should not be always the same.
            turn = number % len(started)
            for server in started[turn:] + started[:turn]:
                with servers.only(server):
                    run = one_run(server, client, load, number, scratch)
                runs.append(run)
                say(
                    f"round {number + 1}, {run.topology}: {run.output_tok_per_s:,.0f} tok/s, "
                    f"{run.front_end_cpu_s_per_1k * 1000:.0f} ms CPU per 1,000 tokens"
                )
        return Result(load, topologies, idle, runs)


def one_run(server: Server, client: BenchClient, load: Load, number: int, scratch: Path) -> Run:
    """Measure one topology once."""
    with CpuClock(server.processes()) as clock:
        argv = client_argv(server.port, load, prompts=load.prompts, seed=FIRST_SEED + number)
        found: dict[str, Any] = client.run(argv, scratch)
    first_s = min(found["start_times"])
    return Run(
        topology=server.topology.name,
        round=number,
        output_tok_per_s=found["output_throughput"],
        median_ttft_ms=found["median_ttft_ms"],
        median_itl_ms=found["median_itl_ms"],
        output_tokens=found["total_output_tokens"],
        duration_s=found["duration"],
        cpu_s=clock.between(first_s, first_s + found["duration"]),
    )


def client_argv(port: int, load: Load, *, prompts: int, seed: int) -> list[str]:
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
    began_s = time.monotonic()
    with CpuClock(server.processes()) as clock:
        time.sleep(IDLE_S)
    spent = clock.between(began_s, began_s + IDLE_S)
    return {role: seconds / IDLE_S for role, seconds in spent.items()}
