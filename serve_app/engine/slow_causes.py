"""What has slowed a replica's steps: others' prompts, kernels that were compiled, and want of a CPU.

Told to an attempt's ingress as durations (`EngineTiming`): with its first token what its time before it went to, and
later what has come since. Parts never overlap: what a compilation took is left out of the queue and of the prefill.

A compilation is seen in two ways. Compilers (`nvcc`, `ptxas`, `gcc`, TorchInductor's workers) that use CPU time below
the engine while a step is overdue: the process table is read with heartbeats, so one that takes less than a second or
two is missed. And what the engine announces itself (vLLM's monitor of kernels that are compiled while it serves): then
what the step took longer than usual was the compilation, however short.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from serve_app.engine.stalls import PrefillStalls
from serve_app.engine.watchdog import MOVING_CPU_RATIO
from serve_app.protocol.messages import EngineTiming, TokenDelta

TOLD_STALL_S = 0.05
"""An ingress is told of stalls once they are so long, and at an attempt's end: not with every step of a long prompt."""

STARVED_RATIO = 0.1
"""A process that waits for a CPU for less than this share of the time is not short of it: every process waits at
times."""

READ_AGAIN_S = 0.05
"""How old the last reading of waits for a CPU may be at the first token of an attempt that was slow."""

SLOW_S = 0.5
"""An attempt without a token for so long is slow: then it is worth a reading."""

KEPT = 256
"""So many intervals are kept: two minutes of heartbeats."""

CpuSeconds = Mapping[int, float]
"""Seconds by process id; each only grows."""


@dataclass(frozen=True)
class _Interval:
    """`seconds` of the time from `begun_s` to `ended_s`, spread evenly."""

    begun_s: float
    ended_s: float
    seconds: float


class Intervals:
    """Stretches of time in which something slowed the engine. `total_s` only grows."""

    def __init__(self) -> None:
        self.total_s = 0.0
        self._kept: deque[_Interval] = deque(maxlen=KEPT)

    def add(self, begun_s: float, ended_s: float, seconds: float) -> None:
        """Something slowed the engine for `seconds` of this stretch."""
        self.total_s += seconds
        self._kept.append(_Interval(begun_s, ended_s, seconds))

    def within(self, begun_s: float, ended_s: float) -> float:
        """For how many seconds of this stretch. Of the last `KEPT` ones."""
        found = 0.0
        for one in reversed(self._kept):
            if one.ended_s <= begun_s:
                break
            overlap_s = min(one.ended_s, ended_s) - max(one.begun_s, begun_s)
            if overlap_s > 0:
                found += one.seconds * overlap_s / (one.ended_s - one.begun_s)
        return found


class Compilations(Intervals):
    """When kernels were compiled while the engine had work. Steps are counted by the engine."""

    def __init__(self) -> None:
        super().__init__()
        self._steps = -1
        self._begun_s = 0.0
        self._last: tuple[float, CpuSeconds] | None = None
        self._seen: tuple[float, float] | None = None
        """From when until when compilers have been seen at work during this step."""
        self._compiles = False
        self._announced = 0

    @property
    def compiles(self) -> bool:
        """Whether a compiler was at work when it was last looked."""
        return self._compiles

    def observe(self, now_s: float, steps: int, *, busy: bool, compilers: Callable[[], CpuSeconds]) -> None:
        """Look at the engine. `compilers` is called only when it has made no step since the last look."""
        if not busy or steps != self._steps:
            self._steps = steps
            self._begin(now_s)
            return
        cpu_s = compilers()
        if self._last is not None:
            before_s, before = self._last
            used_s = sum(seconds - before.get(pid, 0.0) for pid, seconds in cpu_s.items())
            self._compiles = used_s >= MOVING_CPU_RATIO * (now_s - before_s)
            if self._compiles:
                begun_s = self._seen[0] if self._seen is not None else self._begun_s
                self._seen = (begun_s, now_s)
            elif self._seen is None:
                self._begun_s = now_s  # it was something else until now
        self._last = (now_s, cpu_s)

    def step(self, now_s: float, announced: int, usual_s: float | None) -> float:
        """A step has ended; the engine has announced so many compilations since its start. Returns for how long of the
        step it compiled."""
        begun_s, seen = self._begun_s, self._seen
        if seen is not None:
            ended_s = now_s if self._compiles else seen[1]
            seconds = ended_s - seen[0]
            self.add(seen[0], ended_s, seconds)
        elif announced > self._announced and now_s - begun_s > (usual_s or 0.0):
            seconds = now_s - begun_s - (usual_s or 0.0)
            self.add(begun_s, now_s, seconds)
        else:
            seconds = 0.0
        self._announced = announced
        self._begin(now_s)
        return seconds

    def _begin(self, now_s: float) -> None:
        self._begun_s, self._last, self._seen, self._compiles = now_s, None, None, False


class CpuWaits(Intervals):
    """When the processes of a replica were ready to run and had no CPU: other work on the node took it."""

    def __init__(self) -> None:
        super().__init__()
        self._last: tuple[float, CpuSeconds] | None = None

    def observe(self, now_s: float, waited_s: CpuSeconds) -> None:
        """Each process has waited so long since its start. The one that waited the most since the last look counts:
        others waited at the same time."""
        if self._last is not None and now_s > (before_s := self._last[0]):
            before = self._last[1]
            most_s = max((seconds - before[pid] for pid, seconds in waited_s.items() if pid in before), default=0.0)
            if most_s >= STARVED_RATIO * (now_s - before_s):
                self.add(before_s, now_s, min(most_s, now_s - before_s))
        self._last = (now_s, waited_s)

    def is_older_than(self, age_s: float, now_s: float) -> bool:
        """Whether the last look was before that."""
        return self._last is None or now_s - self._last[0] > age_s


@dataclass
class Told:
    """How far the sums had come when an attempt's ingress was last told."""

    prefill_s: float = 0.0
    compile_s: float = 0.0
    cpu_wait_s: float = 0.0
    seen_s: float = 0.0
    """How far all sums together had come when it was last looked whether there is something to tell."""


class SlowCauses:
    """Of one replica. `compilers` gives the CPU time of compilers below the engine, `cpu_wait` how long processes have
    waited for a CPU."""

    def __init__(self, compilers: Callable[[], CpuSeconds], cpu_wait: Callable[[], CpuSeconds]) -> None:
        self._read_compilers = compilers
        self._read_cpu_wait = cpu_wait
        self._prefills = PrefillStalls()
        self._compilations = Compilations()
        self._cpu_waits = CpuWaits()

    @property
    def compiles(self) -> bool:
        """Whether a kernel is being compiled, as far as that is known."""
        return self._compilations.compiles

    @property
    def total_s(self) -> float:
        """All sums together. Where it is what an attempt has `seen_s`, there is nothing to tell."""
        return self._prefills.total_s + self._compilations.total_s + self._cpu_waits.total_s

    def observe(self, now_s: float, steps: int, *, busy: bool) -> None:
        """Call it with each heartbeat."""
        self._compilations.observe(now_s, steps, busy=busy, compilers=self._read_compilers)
        self._cpu_waits.observe(now_s, self._read_cpu_wait())

    def step(self, now_s: float, announced: int, *, prefilling: bool, decoding: bool) -> float:
        """A step has ended (`PrefillStalls.step`). Returns how much longer it took than usual because of a prompt."""
        compile_s = self._compilations.step(now_s, announced, self._prefills.usual_s)
        return self._prefills.step(now_s, prefilling=prefilling, decoding=decoding, compile_s=compile_s)

    def first_token(self, timing: EngineTiming, now_s: float) -> Told:
        """An attempt has its first token: take out of the parts of its time what was compilation, or want of a CPU."""
        before_s = timing.prefill_s + timing.engine_queue_s + timing.replica_queue_s
        if before_s > SLOW_S and self._cpu_waits.is_older_than(READ_AGAIN_S, now_s):
            self._cpu_waits.observe(now_s, self._read_cpu_wait())
        timing.prefill_s, now_s = self._without(timing, now_s, timing.prefill_s)
        timing.engine_queue_s, now_s = self._without(timing, now_s, timing.engine_queue_s)
        timing.replica_queue_s, _ = self._without(timing, now_s, timing.replica_queue_s)
        return Told(self._prefills.total_s, self._compilations.total_s, self._cpu_waits.total_s, self.total_s)

    def _without(self, timing: EngineTiming, ended_s: float, lasted_s: float) -> tuple[float, float]:
        """What is left of a part that has ended then, and when it began."""
        begun_s = ended_s - lasted_s
        compile_s = min(self._compilations.within(begun_s, ended_s), lasted_s)
        cpu_wait_s = min(self._cpu_waits.within(begun_s, ended_s), lasted_s - compile_s)
        timing.compile_s += compile_s
        timing.cpu_wait_s += cpu_wait_s
        return lasted_s - compile_s - cpu_wait_s, begun_s

    def tell(self, told: Told, delta: TokenDelta) -> None:
        """Put into a later delta of an attempt what has slowed it since `told`, if it is worth it."""
        prefill_s = self._prefills.total_s - told.prefill_s
        compile_s = self._compilations.total_s - told.compile_s
        cpu_wait_s = self._cpu_waits.total_s - told.cpu_wait_s
        stalled_s = prefill_s + compile_s + cpu_wait_s
        told.seen_s = self.total_s
        if stalled_s > TOLD_STALL_S or (stalled_s > 0 and delta.finish_reason is not None):
            told.prefill_s += prefill_s
            told.compile_s += compile_s
            told.cpu_wait_s += cpu_wait_s
            timing = delta.timing = delta.timing or EngineTiming()
            timing.neighbour_prefill_s, timing.compile_s, timing.cpu_wait_s = prefill_s, compile_s, cpu_wait_s
