"""CPU time of a topology's processes, sampled during a run.

The client stamps its requests with the same clock (`CLOCK_MONOTONIC`). So exactly the time between the first request
and the last token is counted, without the client's preparations.
"""

from __future__ import annotations

import bisect
import contextlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import psutil

PERIOD_S = 0.1
"""The kernel counts hundredths of a second. Reading thirty processes ten times a second takes 0.5 % of a core."""

ENGINE = "engine"
ROLES = (
    ("VLLM::", ENGINE),
    ("haproxy", "HAProxy"),
    (":ingress", "ingress"),
    (":engine", "engine replica"),
    ("ServeController", "controller"),
    ("HAProxyManager", "proxy manager"),
    ("ProxyActor", "proxy"),
    ("vllm.entrypoints", "API server"),
)
"""A process' role by the first of these words in its command line. All others are Ray's daemons."""


def role_of(process: psutil.Process) -> str:
    """The role of the process in its topology."""
    with contextlib.suppress(psutil.Error):
        command = " ".join(process.cmdline())
        for word, role in ROLES:
            if word in command:
                return role
        if any("VLLM::EngineCore" in " ".join(parent.cmdline()) for parent in process.parents()):
            return ENGINE
    return "Ray"


@dataclass(frozen=True)
class CpuSample:
    """CPU seconds of all processes since their start, by role, at a `time.monotonic()`."""

    at_s: float
    cpu_s: dict[str, float]


class CpuClock:
    """Samples while its `with` block runs, the processes that ran at its start."""

    def __init__(self, processes: Sequence[psutil.Process]) -> None:
        self._processes = [(process, role_of(process)) for process in processes]
        self._samples: list[CpuSample] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cpu-clock", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def between(self, from_s: float, to_s: float) -> dict[str, float]:
        """CPU seconds by role between two times of the monotonic clock, from the nearest samples outside them."""
        stamps = [sample.at_s for sample in self._samples]
        first = self._samples[max(0, bisect.bisect_right(stamps, from_s) - 1)].cpu_s
        last = self._samples[min(len(stamps) - 1, bisect.bisect_left(stamps, to_s))].cpu_s
        return {role: last[role] - first.get(role, 0.0) for role in last}

    def _run(self) -> None:
        while True:
            self._samples.append(self._sample())
            if self._end.wait(PERIOD_S):
                self._samples.append(self._sample())
                return

    def _sample(self) -> CpuSample:
        cpu_s: dict[str, float] = {}
        for process, role in self._processes:
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                cpu_s[role] = cpu_s.get(role, 0.0) + times.user + times.system
        return CpuSample(time.monotonic(), cpu_s)
