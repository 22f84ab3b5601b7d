"""The measurements of a rehearsal, and how they are read from the output of `serve` and vLLM's log. No judgement
here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

GIB = 1024**3
GB = 1_000_000_000

STAMPED = re.compile(r"^\s*(?P<at_s>\d+\.\d) s  (?P<text>.*)$")
ENGINE_PHASE = re.compile(r"^engine\s+(?P<words>[a-z].*?) \(\d+ s\)$")
DASHBOARD = re.compile(r"Ray dashboard\s+(https?://\S+)")
ANSWERS = "answers"

VLLMS_LINES = {
    "weights_bytes": (re.compile(r"Model loading took ([\d.]+) GiB"), GIB),
    "loading_s": (re.compile(r"Model loading took [\d.]+ GiB memory and ([\d.]+) seconds"), 1),
    "cache_bytes": (re.compile(r"Available KV cache memory: ([\d.]+) GiB"), GIB),
    "cache_tokens": (re.compile(r"[GC]PU KV cache size: ([\d,]+) tokens"), 1),
    "concurrency": (re.compile(r"Maximum concurrency for [\d,]+ tokens per request: ([\d.]+)x"), 1),
    "longest_tokens": (re.compile(r"Maximum concurrency for ([\d,]+) tokens per request"), 1),
    "graphs_bytes": (re.compile(r"Graph capturing finished in .* took ([\d.]+) GiB"), GIB),
    "graphs_s": (re.compile(r"Graph capturing finished in ([\d.]+) secs"), 1),
    "compile_s": (re.compile(r"torch\.compile took ([\d.]+) s"), 1),
    "init_s": (re.compile(r"init engine \(.*?\) took ([\d.]+) s"), 1),
}
"""Figures in vLLM's log of an engine, by our names, with the unit. A line that a version words differently is left
out."""


@dataclass(frozen=True)
class Phase:
    """A phase of the start."""

    name: str
    seconds: float


@dataclass
class GpuMemory:
    """Memory of one GPU in bytes; of several GPUs the fullest. None: unknown."""

    planned_weights: float | None = None
    planned_cache: float | None = None
    planned_tokens: int | None = None
    gpu: int | None = None
    used_before: int | None = None
    used_started: int | None = None
    used_loaded: int | None = None
    used_after: int | None = None
    vllm: dict[str, float] = field(default_factory=dict)
    """`VLLMS_LINES`; of several workers the largest figure, of the caches the smallest."""


@dataclass(frozen=True)
class TrialRequest:
    """One request of a kind."""

    kind: str
    ok: bool
    seconds: float
    said: str
    """The answer in short, or what went wrong."""
    is_proven: bool = True
    """Whether the answer ended and could be checked: random output may run to its limit."""


@dataclass(frozen=True)
class LoadResult:
    """The load test's main figures. Rates in tokens a second, times in ms."""

    requests: int
    failed: int
    seconds: float
    output_rate: float
    ttft_mean: float
    ttft_p99: float
    tpot_mean: float
    tokens_per_step: float | None
    published_rate: float | None
    """The published rate of the same machine; None where there is none."""
    first_failure: str = ""


@dataclass(frozen=True)
class KillResult:
    """A killed engine core, with streams open."""

    streams: int
    finished: int
    silence_s: float | None
    """The longest that a stream which was hit brought nothing."""
    recovery_s: float | None
    """Until all engines ran again."""
    problem: str = ""


@dataclass
class RehearsalFacts:
    """All measurements, as far as the rehearsal came."""

    profile: str
    is_demo: bool
    ranks: int
    machine: str
    when: str
    engines: int = 1
    warnings: tuple[str, ...] = ()
    phases: list[Phase] = field(default_factory=list)
    answered: bool = False
    start_error: str = ""
    memory: GpuMemory = field(default_factory=GpuMemory)
    requests: list[TrialRequest] = field(default_factory=list)
    load: LoadResult | None = None
    load_error: str = ""
    kill: KillResult | None = None
    stop_s: float | None = None
    left_over: list[str] = field(default_factory=list)
    """Processes that the service left behind."""
    interrupted: bool = False


def phases(lines: Sequence[tuple[float, str]]) -> list[Phase]:
    """The duration of each phase of the start. `lines` are the output of `serve`, with the seconds since its call.

    A repeated line with more seconds is the same phase. With several engines the slowest one's lines are the last.
    """
    marks = [(0.0, "checks")]
    for at_s, line in lines:
        found = STAMPED.match(line)
        words = ENGINE_PHASE.match(found["text"]) if found else None
        if line.startswith("Starting ("):
            name = "Ray and Serve"
        elif words is not None:
            name = words["words"].partition(":")[0]  # our warm-up names each kind of request
        elif found is not None and found["text"] == ANSWERS:
            name = ANSWERS
        else:
            continue
        if name != marks[-1][1]:
            marks.append((at_s, name))
    end_s = lines[-1][0] if lines else 0.0
    ends = [*(at_s for at_s, _ in marks[1:]), end_s]
    return [Phase(name, end - at_s) for (at_s, name), end in zip(marks, ends, strict=True) if name != ANSWERS]


def vllm_says(log: Iterable[str]) -> dict[str, float]:
    """Figures in vLLM's log, of `VLLMS_LINES`."""
    found: dict[str, list[float]] = {}
    for line in log:
        for name, (pattern, unit) in VLLMS_LINES.items():
            match = pattern.search(line)
            if match is not None:
                found.setdefault(name, []).append(float(match[1].replace(",", "")) * unit)
    return {name: (min if name.startswith("cache") else max)(values) for name, values in found.items()}
