"""Watchdog: tells a hung engine from a slow one by what its processes do, not by the clock alone.

A healthy engine with unfinished requests keeps completing steps. When no step comes, the watchdog reads what its
processes do:

working   steps come, or there is nothing to do
busy      no step yet, but something moves: CPU time of the engine's processes, their compilers, or a GPU
hung      no step and no movement for `hung_after_s`: stopped, deadlocked, blocked on an event that never arrives;
          it needs readings of every engine process for the whole time
stuck     no step for longer than any step can take, whatever moves: a loop that spins, a collective that waits

A slow engine is not dead: a first step of its kind compiles kernels (minutes, where a compiler runs), and a chunk of a
long prompt takes longer the longer its context is. So the limit for `stuck` grows with the slowest step that this
engine has made, and a running compiler has a limit of its own.

Time counts only between the watchdog's own observations (`protocol/liveness.py`), so a machine that was suspended does
not make an engine look hung.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from serve_app.protocol.liveness import SilenceClock

READ_AFTER_S = 2.0
"""After so long without a step the process table is read. Earlier, reading it would cost more than it tells."""

MOVING_CPU_RATIO = 0.02
"""Share of a core that a thread must use to count as moving: one that works but gets little of a crowded machine uses
more. A polling thread uses 0.1 to 0.5 % (measured), and there are many: Gloo has one per connection, 15 in a worker of
the demo, which wake every 10 ms. Together they use over 2 % of a core, in a hung engine too, so the shares are not
summed."""

MOVING_OVER_S = 4.0
"""The share is measured over at least so long. The process table counts in ticks of 10 ms: over half a second, the two
ticks that a waiting process takes now and then would be 4 % of a core, and no hung engine would ever look still."""

MOVING_SHARE = 0.25
"""Nor over more than this share of `hung_after_s`: a moving engine must be seen moving before it would be called
hung."""

SLOWEST_STEP_FACTOR = 3.0
"""An engine is stuck only when a step takes this many times as long as its slowest step so far."""


@dataclass(frozen=True)
class EngineActivity:
    """What the processes of an engine have done so far.

    `cpu_s`: CPU seconds since their start, by thread id; those of ended children are in their parent's main thread.
    `compiler_cpu_s`: the same of compilers below them, by process id. `gpu_busy_ratio`: the current utilization (0 to
    1) of the busiest GPU; None without one. `unseen_workers`: workers on other nodes that have not answered
    (`gang.py`); unseen does not mean still.
    """

    cpu_s: Mapping[int, float]
    compiler_cpu_s: Mapping[int, float] = field(default_factory=dict)
    gpu_busy_ratio: float | None = None
    unseen_workers: int = 0


class EngineState(StrEnum):
    """The state that the watchdog finds an engine in."""

    WORKING = "working"
    BUSY = "busy"
    HUNG = "hung"
    STUCK = "stuck"


@dataclass(frozen=True)
class WatchdogLimits:
    """Seconds without a step. `compile_limit_s` takes the place of `stuck_after_s` while a compiler runs."""

    hung_after_s: float = 20.0
    stuck_after_s: float = 100.0
    compile_limit_s: float = 900.0


@dataclass(frozen=True)
class Judgement:
    """A state and the evidence for it, in a sentence for the log. `silence_s`: since the last step, while busy."""

    state: EngineState
    silence_s: float
    evidence: str = ""


class Watchdog:
    """Judges one engine. Call `observe` about every `period_s`."""

    def __init__(self, limits: WatchdogLimits, period_s: float) -> None:
        self._limits = limits
        self._steps = -1
        self._silence = SilenceClock(period_s)
        self._silence_s = 0.0
        self._slowest_step_s = 0.0
        self._movements = 0
        self._stillness = SilenceClock(period_s)
        self._compilations = 0
        self._compiler_rest = SilenceClock(period_s)
        self._last: tuple[float, EngineActivity] | None = None
        self._moved = ""
        self._unseen = 0

    def observe(
        self, now_s: float, steps: int, read_activity: Callable[[], EngineActivity], *, busy: bool
    ) -> Judgement:
        """Judge the engine by its count of `steps` and, when a step is overdue, by its activity.

        `busy`: it has unfinished requests. `read_activity` is called only when a step is overdue.
        """
        if steps != self._steps or not busy:
            if busy:
                self._slowest_step_s = max(self._slowest_step_s, self._silence_s)
            self._steps, self._last, self._compilations = steps, None, 0
            self._movements += 1
        self._silence_s = self._silence.observe(now_s, steps, expected=busy)
        is_overdue = self._silence_s >= READ_AFTER_S
        if is_overdue:
            self._read(now_s, read_activity())
        still_s = self._stillness.observe(now_s, self._movements)
        rest_s = self._compiler_rest.observe(now_s, self._compilations)
        if not is_overdue:
            return Judgement(EngineState.WORKING, self._silence_s)
        # A compilation is many short runs of a compiler, with work of its caller between them.
        return self._judge(still_s, compiling=self._compilations > 0 and rest_s < self._limits.hung_after_s)

    def _read(self, now_s: float, activity: EngineActivity) -> None:
        moved = []
        self._unseen = activity.unseen_workers
        # A worker that was unseen before would add all its CPU time at once.
        if self._last is None or self._last[1].unseen_workers != activity.unseen_workers:
            self._last = (now_s, activity)
        elif now_s - self._last[0] >= min(MOVING_OVER_S, self._limits.hung_after_s * MOVING_SHARE):
            moved += self._compare(self._last, (now_s, activity))
            self._last = (now_s, activity)
        if activity.gpu_busy_ratio:
            moved.append(f"a GPU at {activity.gpu_busy_ratio:.0%}")
        if moved:
            self._moved = ", ".join(moved)
        if moved or activity.unseen_workers:  # unseen workers may be moving
            self._movements += 1

    def _compare(self, before: tuple[float, EngineActivity], now: tuple[float, EngineActivity]) -> list[str]:
        """The movements between two readings, in words."""
        elapsed_s = now[0] - before[0]
        moved = []
        compiled = _busiest(before[1].compiler_cpu_s, now[1].compiler_cpu_s) / elapsed_s
        if compiled >= MOVING_CPU_RATIO:
            self._compilations += 1
            moved.append(f"a compiler at {compiled:.0%} of a core")
        worked = _busiest(before[1].cpu_s, now[1].cpu_s) / elapsed_s
        if worked >= MOVING_CPU_RATIO:
            moved.append(f"its busiest thread at {worked:.0%} of a core")
        return moved

    def _judge(self, still_s: float, *, compiling: bool) -> Judgement:
        silence_s, limits = self._silence_s, self._limits
        if still_s >= limits.hung_after_s:
            evidence = f"no step for {silence_s:.0f} s, and no thread or GPU of it has moved for {still_s:.0f} s"
            return Judgement(EngineState.HUNG, silence_s, evidence)
        limit_s = max(limits.stuck_after_s, SLOWEST_STEP_FACTOR * self._slowest_step_s)
        if compiling:
            limit_s = max(limit_s, limits.compile_limit_s)
        evidence = f"no step for {silence_s:.0f} s, {self._moved or 'activity unknown yet'}"
        if self._unseen:
            evidence += f", {self._unseen} workers have not answered"
        if silence_s >= limit_s:
            evidence += (
                f"; no step of it may take longer than {limit_s:.0f} s (slowest yet {self._slowest_step_s:.0f} s)"
            )
            return Judgement(EngineState.STUCK, silence_s, evidence)
        return Judgement(EngineState.BUSY, silence_s, evidence)


def _busiest(before: Mapping[int, float], now: Mapping[int, float]) -> float:
    """CPU seconds of the thread or process that used most between two readings. A new one counts from its start."""
    return max((cpu_s - before.get(name, 0.0) for name, cpu_s in now.items()), default=0.0)
