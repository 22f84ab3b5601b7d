"""When requests are sent: pure arithmetic from a shape to absolute times.

Closed loop: `max_inflight` requests at a time, the next when one ends; it hides stalls, since a slow server is asked
less. Open loop: every request has an intended time fixed beforehand, whatever the server does; latency counts from
there too. Times are absolute, so a late send never delays the ones after it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loadtest.errors import UsageError

Seconds = NDArray[np.float64]


@dataclass(frozen=True)
class Phase:
    """A stretch of constant or linearly changing rate. Infinite `seconds` lasts until the prompts run out."""

    seconds: float
    start_rate: float
    """Requests per second at its start."""
    end_rate: float

    def expected(self) -> float:
        """Requests it offers on average."""
        return self.seconds * (self.start_rate + self.end_rate) / 2


@dataclass(frozen=True)
class LoadSpec:
    """How hard."""

    concurrency: int | None = None
    rate: float = math.inf
    burstiness: float = 1.0
    phases: str | None = None
    trace: str | None = None
    trace_speed: float = 1.0
    duration_s: float = math.inf
    warmup: int = 0
    workers: int | None = None
    """Client processes; None: as many as the load needs."""

    @property
    def open_loop_asked(self) -> bool:
        """Whether any flag asks for intended times."""
        return self.rate < math.inf or bool(self.phases) or bool(self.trace)


def steady_times(count: int, rate: float, burstiness: float, rng: np.random.Generator) -> Seconds:
    """Intended times of `count` requests at `rate`: gamma gaps (1 is Poisson, inf is constant), as vLLM draws them.

    Unlike vLLM, the sum is not rescaled to count / rate: that would make the arrivals less random than Poisson.
    """
    if rate <= 0 or burstiness <= 0:
        raise UsageError("--request-rate and --burstiness must be above 0")
    if math.isinf(burstiness):
        gaps = np.full(count, 1.0 / rate)
    else:
        gaps = rng.gamma(shape=burstiness, scale=1.0 / (rate * burstiness), size=count)
    times: Seconds = np.cumsum(gaps) - gaps[0]
    return times


def phased_times(phases: list[Phase], burstiness: float, rng: np.random.Generator) -> Seconds:
    """Intended times through a list of phases: unit-rate arrivals, bent by the inverse of the expected count."""
    total = sum(phase.expected() for phase in phases)
    need = int(total + 6 * math.sqrt(total) + 10)
    unit = steady_times(need, 1.0, burstiness, rng)
    unit = unit + (0.0 if math.isinf(burstiness) else float(rng.exponential()))
    out: list[Seconds] = []
    done = begin = 0.0
    for phase in phases:
        expected = phase.expected()
        inside = unit[(unit >= done) & (unit < done + expected)] - done
        out.append(begin + _inverse(phase, inside))
        done += expected
        begin += phase.seconds
    return np.concatenate(out) if out else np.zeros(0)


def _inverse(phase: Phase, counts: Seconds) -> Seconds:
    """Time within a phase at which its expected count reaches each of `counts`."""
    slope = (phase.end_rate - phase.start_rate) / phase.seconds
    if abs(slope) < 1e-12:
        return counts / phase.start_rate if phase.start_rate > 0 else counts[:0]
    root = np.sqrt(np.maximum(phase.start_rate**2 + 2 * slope * counts, 0.0))
    return np.asarray((root - phase.start_rate) / slope, dtype=np.float64)


def parse_phases(text: str) -> list[Phase]:
    """`30s@2, 60s@2-8, 10s@20`: seconds at a rate or from one rate to another, in requests per second."""
    phases = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([\d.]+)(s|m)?\s*@\s*([\d.]+)(?:\s*-\s*([\d.]+))?\s*", part)
        if match is None:
            raise UsageError(f"not a phase: {part.strip()!r}", "Write e.g. --phases '30s@2,60s@2-8,30s@2'")
        seconds = float(match[1]) * (60 if match[2] == "m" else 1)
        start = float(match[3])
        if seconds <= 0:
            raise UsageError(f"a phase of no length: {part.strip()!r}", "Give it seconds, e.g. 30s@2")
        phases.append(Phase(seconds, start, float(match[4]) if match[4] else start))
    return phases


@dataclass(frozen=True)
class LoadSchedule:
    """What a run offers the server."""

    max_inflight: int | None
    """At most this many at a time; None lets an open loop grow as it must."""
    times_s: tuple[float, ...] | None = None
    """Intended times relative to the start; None is the closed loop."""
    rate: float = math.inf
    burstiness: float = 1.0
    phases: tuple[Phase, ...] = ()
    stop_after_s: float = math.inf
    """No request starts later than this."""

    @property
    def open_loop(self) -> bool:
        """Whether requests have intended times."""
        return self.times_s is not None
