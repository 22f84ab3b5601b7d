"""What a replica reports of itself to whoever watches it: its load, its watchdog, its start, and what it has sent.

Pure: `engine/metrics.py` makes metrics of it. Names that come from elsewhere (the phases of vLLM's start) are mapped to
enums here, so that no metric has more series than are listed in this file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from serve_app.engine.watchdog import EngineState
from serve_app.protocol.service_class import ServiceClass


class StartPhase(StrEnum):
    """A part of an engine's start. Its words are those of the log (`child.PHASES`, `vllm_process`)."""

    PROCESS = "process"
    """Until the replica's process runs our code: Ray's worker, and imports."""
    IMPORT = "import"
    """vLLM's modules and its configuration."""
    PROCESSES = "processes"
    """The engine core and its workers: their imports, their devices."""
    DOWNLOAD = "download"
    """Weights that come from the Hugging Face hub."""
    WEIGHTS = "weights"
    PROFILE = "profile"
    """The first run of the model, which measures how much memory is left."""
    COMPILE = "compile"
    KV_CACHE = "kv_cache"
    CUDA_GRAPHS = "cuda_graphs"
    WARM_UP = "warm_up"
    OTHER = "other"


_PHASES = (
    (r"loading vLLM|reading the configuration", StartPhase.IMPORT),
    (r"starting (the engine's processes|workers)", StartPhase.PROCESSES),
    (r"(pretending to load|loading) (weights|the draft model)|weights loaded", StartPhase.WEIGHTS),
    (r"profiling", StartPhase.PROFILE),
    (r"compiling|loading compiled graphs", StartPhase.COMPILE),
    (r"allocating the KV cache", StartPhase.KV_CACHE),
    (r"capturing CUDA graphs", StartPhase.CUDA_GRAPHS),
    (r"warming up|engine core ready", StartPhase.WARM_UP),
)


_DOWNLOADED = re.compile(r"weights downloaded in ([0-9.]+) s")


def timeline(start_s: Mapping[StartPhase, float]) -> str:
    """The phases of a start in words: "weights 21.0 s, compile 60.0 s"."""
    return ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in start_s.items())


class StartTimes:
    """Measures the phases of one start, by what the engine says of its progress. They follow each other and add up to
    the whole. `clock` gives seconds; the process had run for `process_s` when this began."""

    def __init__(self, clock: Callable[[], float], process_s: float = 0.0) -> None:
        self._clock = clock
        self._phase: StartPhase | None = None
        self._since_s = clock()
        self._seconds: dict[StartPhase, float] = {StartPhase.PROCESS: process_s} if process_s else {}

    def note(self, progress: str) -> None:
        """The engine has said so (`contract.ProgressSink`). May be called from another thread, and again."""
        if (downloaded := _DOWNLOADED.match(progress)) is not None:
            self._downloaded(float(downloaded[1]))
            return
        found = (phase for words, phase in _PHASES if re.match(words, progress))
        self._enter(None if progress.startswith("ready") else next(found, StartPhase.OTHER))

    def seconds(self) -> Mapping[StartPhase, float]:
        """How long each phase took; those that the start did not have are left out."""
        return dict(self._seconds)

    def _downloaded(self, lasted_s: float) -> None:
        """So much of the phase that is under way was a download."""
        lasted_s = min(lasted_s, self._clock() - self._since_s)
        self._seconds[StartPhase.DOWNLOAD] = self._seconds.get(StartPhase.DOWNLOAD, 0.0) + lasted_s
        self._since_s += lasted_s

    def _enter(self, phase: StartPhase | None) -> None:
        now_s = self._clock()
        if self._phase is not None:
            self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + now_s - self._since_s
        self._phase, self._since_s = phase, now_s


@dataclass
class SentFrames:
    """What went to the ingresses, since the replica's start."""

    frames: int = 0
    size_bytes: int = 0

    def add(self, data: bytes) -> bytes:
        """Count a frame; returns it."""
        self.frames += 1
        self.size_bytes += len(data)
        return data


@dataclass(frozen=True)
class ClassLoad:
    """The attempts of one class: in the engine, and waiting in front of it. Tokens are those of prompts and of answers
    that were there when the attempt came."""

    inflight: int = 0
    inflight_tokens: int = 0
    queued: int = 0
    queued_tokens: int = 0


@dataclass(frozen=True)
class ReplicaFigures:
    """A replica now. `silence_s`: since the engine's last step, while it has work; `lag_s`: how late the replica's
    event loop ran its last timer; `unsent_deltas`: the most that wait for one ingress."""

    load: Mapping[ServiceClass, ClassLoad] = field(default_factory=dict)
    queued_prefill_tokens: int = 0
    state: EngineState = EngineState.WORKING
    silence_s: float = 0.0
    start_s: Mapping[StartPhase, float] = field(default_factory=dict)
    sent: SentFrames = field(default_factory=SentFrames)
    unsent_deltas: int = 0
    lag_s: float = 0.0
    engine_s: Mapping[str, float] = field(default_factory=dict)
    """Seconds of the engine by the name of the key that they were for, since its start."""


def load_by_class(attempts: Iterable[tuple[ServiceClass, bool, int]]) -> Mapping[ServiceClass, ClassLoad]:
    """The load by class, from each attempt's class, whether it is in the engine, and its tokens."""
    sums = {one: [0, 0, 0, 0] for one in ServiceClass}
    for priority, has_started, tokens in attempts:
        first = 0 if has_started else 2
        sums[priority][first] += 1
        sums[priority][first + 1] += tokens
    return {one: ClassLoad(*counts) for one, counts in sums.items()}
