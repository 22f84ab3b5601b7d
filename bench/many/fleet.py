"""`python -m bench many --serve 2 8`: what each engine replica costs while nobody asks, as real replicas of Ray Serve.

Serve's controller asks each for its health, each ingress lists them once a second, and each sends every ingress a frame
twice a second. The engines compute nothing.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psutil

from bench.cpu import role_of
from bench.measure import LOGS
from bench.servers import Servers, ours

SETTLE_S = 15.0
"""After the start, until Ray's and Serve's first rounds are over."""
INGRESSES = 2
SMALL = 0.01
"""CPUs of a replica, as Ray counts them: all of them fit one machine."""


@dataclass(frozen=True)
class Idle:
    """A service without requests. By role: how many processes, CPU milliseconds a second, and bytes of memory that no
    other process shares."""

    engines: int
    count: Mapping[str, int]
    cpu_ms: Mapping[str, float]
    memory_bytes: Mapping[str, int]


def settings() -> dict[str, object]:
    """Of the application, in addition to the demo's profile."""
    size = {"min_replicas": INGRESSES, "max_replicas": INGRESSES, "cpus_per_replica": SMALL}
    return {"engine": {"kind": "fake"}, "ingress": size, "replicas": {"cpus_per_replica": SMALL}}


def measure(engines: int, seconds: float) -> Idle:
    """One start of the service with so many engines. Raises `StartFailed`."""
    with Servers(LOGS, settings(), start_timeout_s=600.0) as servers:
        server = servers.start(ours(f"many-{engines}", replicas=engines))
        time.sleep(SETTLE_S)
        processes = [(one, role_of(one)) for one in server.processes()]
        count: dict[str, int] = defaultdict(int)
        memory: dict[str, int] = defaultdict(int)
        for process, role in processes:
            count[role] += 1
            memory[role] += process.memory_full_info().uss
        before = [_cpu_s(process) for process, _ in processes]
        time.sleep(seconds)
        used: dict[str, float] = defaultdict(float)
        for (process, role), then_s in zip(processes, before, strict=True):
            used[role] += 1000 * (_cpu_s(process) - then_s) / seconds
    return Idle(engines, dict(count), dict(used), dict(memory))


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def as_text(found: Sequence[Idle]) -> str:
    """A table: a line for each role and number of engines."""
    lines = [f"{'':16}{'engines':>8}{'processes':>11}{'CPU ms/s':>10}{'memory MB':>11}"]
    for role in dict.fromkeys(role for one in found for role in one.count):
        lines += [
            f"{role:16}{one.engines:8}{one.count.get(role, 0):11}{one.cpu_ms.get(role, 0.0):10.1f}"
            f"{one.memory_bytes.get(role, 0) / 1e6:11,.0f}"
            for one in found
        ]
    return "\n".join(lines)


def run(engines: Sequence[int], seconds: float) -> int:
    """Measure each number of engines and print the table. Returns 0."""
    found = []
    for count in engines:
        found.append(measure(count, seconds))
        print(f"{count} engines: measured", file=sys.stderr, flush=True)
    print(as_text(found))
    return 0
