"""CPU time of a topology's processes, sampled while a run goes on.

The client stamps its requests with the clock that is read here too (`CLOCK_MONOTONIC`), so that afterwards exactly the
time between the first request and the last token is counted, without the client's own preparations.
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
"""The kernel counts in hundredths; reading thirty processes ten times a second takes half a hundredth of a core."""

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
"""What a process is, by the first of these words in its command line. All else is Ray's daemons."""


def role_of(process: psutil.Process) -> str:
    """What the process does in its topology."""
    with contextlib.suppress(psutil.Error):
        command = " ".join(process.cmdline())
        for word, role in ROLES:
            if word in command:
                return role
        if any("VLLM::EngineCore" in " ".join(parent.cmdline()) for parent in process.parents()):
            return ENGINE
    return "Ray"


@dataclass(frozen=True)
class Sample:
    """CPU seconds since their start of all processes, by role, at `time.monotonic()`."""

    at_s: float
    cpu_s: dict[str, float]


class CpuClock:
    """Samples while its `with` block runs. The processes are those of its beginning."""

    def __init__(self, processes: Sequence[psutil.Process]) -> None:
        self._processes = [(process, role_of(process)) for process in processes]
        self._samples: list[Sample] = []
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
        """CPU seconds by role between two stamps of the monotonic clock, on the nearest samples outside them."""
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

    def _sample(self) -> Sample:
        cpu_s: dict[str, float] = {}
        for process, role in self._processes:
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                cpu_s[role] = cpu_s.get(role, 0.0) + times.user + times.system
        return Sample(time.monotonic(), cpu_s)
