"""The interface between an engine and the replica that owns it: token ids in, token ids out.

Two implementations pass one contract suite (`tests/contracts/`): `VllmEngine`, and `FakeEngine`, which crashes, hangs
or slows down at a chosen token.

The tokens of a step do not come back through `run`: they go to the sink given at construction, once per engine step,
for all attempts together. So the replica sends one message per step and not one per request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from serve_app.engine.watchdog import EngineActivity
from serve_app.protocol.messages import AttemptRequest, CacheChanges, TokenDelta

FAILED_BY_ITSELF: Final = "failed by itself"
"""Part of an engine's error where it is known that nothing killed it: it reported an error, or crashed."""

StepSink = Callable[[Sequence[TokenDelta]], None]
"""Called on the event loop once per engine step with the deltas of that step, in order; never blocks, never raises."""

ProgressSink = Callable[[str], None]
"""Called with the phase of a start ("loading weights"). May be called from another thread."""


@dataclass(frozen=True)
class EngineInfo:
    """The settings of a started engine. Token counts, and names as vLLM gives them.

    `engine_version` is vLLM's (`config/vllm_device.version`), or `fake`, which matches every ingress.
    `reports_cache`: `cache_changes` says what the prefix cache holds.
    """

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_cache_tokens: int
    model: str
    engine_version: str
    start_s: float
    reports_cache: bool = False


@dataclass(frozen=True)
class EngineStats:
    """The engine as it is now. `unfinished` attempts run or wait in it; `steps` counts engine steps since start.
    `acceptance_ratio` of the drafted tokens were accepted lately (None: it drafts none, or none yet). `compilations` of
    kernels were announced by the engine itself, since it serves."""

    running: int
    unfinished: int
    kv_usage_ratio: float
    steps: int
    acceptance_ratio: float | None = None
    compilations: int = 0


class Engine(Protocol):
    """One inference engine. All methods are called on one event loop."""

    async def start(self, progress: ProgressSink) -> EngineInfo:
        """Build the engine without blocking the loop. Returns when it can take requests.

        Raises `EngineDead` with the engine's own error when it cannot start; nothing of it is then left running.
        """

    async def run(self, attempt: AttemptRequest) -> None:
        """Run one attempt; returns when its last delta (the one with `finish_reason`) has gone to the sink.

        Cancelling it aborts the attempt in the engine: no delta of it reaches the sink afterwards, and its slot and
        cache blocks are freed. An aborted attempt (`abort`) returns without a finishing delta.
        Raises `AttemptRefused`, `EngineDead`.
        """

    async def abort(self, attempt_id: str) -> None:
        """Stop an attempt. Unknown ids are ignored: it may just have ended."""

    async def check(self) -> None:
        """Raise `EngineDead` if the engine can no longer serve. Cheap; no generation."""

    def fail(self, reason: str) -> None:
        """The owner has found that the engine is stuck. Every running attempt gets `EngineDead`, and so does `check`
        from now on. `shutdown` then gives it no time to end by itself."""

    def stats(self) -> EngineStats:
        """The current figures, without waiting."""

    def activity(self) -> EngineActivity:
        """What its processes have done so far. Reads the process table, which takes milliseconds: not for every
        step."""

    def compilers(self) -> Mapping[int, float]:
        """CPU seconds of the compilers below it, by process id. Reads the process table, as `activity` does."""

    def cpu_wait(self) -> Mapping[int, float]:
        """How many seconds its processes on this node, and this one, have been ready to run without a CPU, by process
        id. Cheap: a file for each."""

    def under_way(self) -> str:
        """Its work in words for the log: requests, the longest context, tokens that wait for prefill."""

    def cache_changes(self) -> CacheChanges | None:
        """What the prefix cache has stored and removed since the last call; None where nothing changed. `reset` is
        set where changes were missed: then the cache counts as empty but for `stored`."""

    async def shutdown(self) -> None:
        """End the engine and every process of it. May be called twice, and before `start` has returned."""
