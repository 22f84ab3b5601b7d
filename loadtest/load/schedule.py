"""Request schedules: compute when each request is meant to start. Pure.

Closed loop: `max_inflight` requests at a time, the next one when one ends. It hides stalls, because a slow server gets
fewer requests. Open loop: every request has an intended time that does not depend on the server; latency is also
reported from there. Times are absolute, so a late start does not delay the requests after it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loadtest.errors import UsageError

Seconds = NDArray[np.float64]
NUMBER = r"\d+(?:\.\d*)?|\.\d+"


@dataclass(frozen=True)
class Phase:
    """A period of constant or linearly changing rate."""

    seconds: float
    start_rate: float
    """Requests per second at its start."""
    end_rate: float

    def expected(self) -> float:
        """Expected number of requests."""
        return self.seconds * (self.start_rate + self.end_rate) / 2


@dataclass(frozen=True)
class LoadSpec:
    """The load as the user specifies it: a closed loop of `concurrency`, or an open loop by rate, phases or trace."""

    concurrency: int | None = None
    rate: float = math.inf
    """Requests per second of an open loop; infinite for a closed loop."""
    burstiness: float = 1.0
    """Shape of the gamma distribution of gaps: 1 is Poisson, inf is constant."""
    phases: str | None = None
    trace: str | None = None
    trace_speed: float = 1.0
    duration_s: float = math.inf
    warmup: int = 0
    workers: int | None = None
    """Client processes; None: as many as the load needs."""

    @property
    def open_loop(self) -> bool:
        """Whether requests have intended times."""
        return self.rate < math.inf or bool(self.phases) or bool(self.trace)


def steady_times(count: int, rate: float, burstiness: float, rng: np.random.Generator) -> Seconds:
    """Intended times in s of `count` requests at `rate` per s, with gaps from vLLM's gamma distribution.

    The first is at 0. vLLM rescales the sum of the gaps to count / rate, which makes arrivals less random than Poisson;
    that is not done here.
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
    """Intended times in s through a list of phases.

    Arrivals at rate 1 are drawn on the axis of the expected number of requests, and mapped to time by its inverse.
    """
    total = sum(phase.expected() for phase in phases)
    count = int(total + 6 * math.sqrt(total) + 10)  # six standard deviations: too few are very unlikely
    arrivals = steady_times(count, 1.0, burstiness, rng)
    arrivals = arrivals + (0.0 if math.isinf(burstiness) else float(rng.exponential()))
    times: list[Seconds] = []
    expected_before = begin_s = 0.0
    for phase in phases:
        expected = phase.expected()
        inside = arrivals[(arrivals >= expected_before) & (arrivals < expected_before + expected)] - expected_before
        times.append(begin_s + _inverse(phase, inside))
        expected_before += expected
        begin_s += phase.seconds
    return np.concatenate(times) if times else np.zeros(0)


def _inverse(phase: Phase, counts: Seconds) -> Seconds:
    """Time in s within a phase at which the expected number of requests reaches each of `counts`."""
    slope = (phase.end_rate - phase.start_rate) / phase.seconds
    if abs(slope) < 1e-12:
        return counts / phase.start_rate if phase.start_rate > 0 else counts[:0]
    root = np.sqrt(np.maximum(phase.start_rate**2 + 2 * slope * counts, 0.0))
    return np.asarray((root - phase.start_rate) / slope, dtype=np.float64)


def parse_phases(text: str) -> list[Phase]:
    """`30s@2, 60s@2-8, 10s@20`: seconds at a rate or from one rate to another, in requests per second."""
    phases = []
    for part in text.split(","):
        match = re.fullmatch(rf"\s*({NUMBER})(s|m)?\s*@\s*({NUMBER})(?:\s*-\s*({NUMBER}))?\s*", part)
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
    """When a run's requests start."""

    max_inflight: int | None
    """At most this many at a time; None: no limit (open loop only)."""
    times_s: tuple[float, ...] | None = None
    """Intended times relative to the start; None is the closed loop."""
    stop_after_s: float = math.inf
    """No request starts later than this."""

    @property
    def open_loop(self) -> bool:
        """Whether requests have intended times."""
        return self.times_s is not None
