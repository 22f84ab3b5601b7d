"""Cases with one engine under the service's own watchdog: `EngineReplica` over `VllmEngine` in this process.

Each case starts its own engine, with empty compile caches and without warm-up requests. `faults.py` hangs it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import psutil

from bench.servers import PROFILE
from bench.watchdog import faults
from bench.watchdog.clients import COMPILES
from bench.watchdog.outcome import CaseOutcome, WriteLine
from serve_app.config import profile
from serve_app.config.schema import AppConfig
from serve_app.config.vllm_flags import engine_argv
from serve_app.config.yaml_lines import YamlDocument
from serve_app.engine import compile_cache, warm_up
from serve_app.engine.contract import StepSink
from serve_app.engine.replica import EngineReplica
from serve_app.engine.vllm import VllmEngine
from serve_app.engine.vllm_process import engine_core_processes
from serve_app.engine.watchdog import WatchdogLimits
from serve_app.protocol.errors import EngineDead
from serve_app.protocol.messages import AttemptRequest, decode_frame, encode_request

REPLICA, INGRESS = "replica", "bench"
SAMPLE_S = 0.05
HUNG_LIMIT_S, STUCK_LIMIT_S = 30.0, 120.0
"""How soon a hung engine must be found: one without CPU time, and one that spins (issue 17)."""

LONG_ANSWER = 100_000
"""Tokens: the request must still run when the engine hangs."""

PLAIN_TOKENS = (40, 200)
"""The first plain text token of the demo, and how many there are."""

Flags = Mapping[str, object]


@dataclass
class WatchedEngine:
    """A running engine with its watchdog, and what was measured of it."""

    replica: EngineReplica
    engine: VllmEngine
    fault_file: Path
    longest_step_s: float = 0.0
    first_token_s: dict[str, float] = field(default_factory=dict)
    answering: asyncio.Event = field(default_factory=asyncio.Event)
    """Set at the first token."""

    def request_fault(self, fault: str) -> None:
        """Request this fault (`faults.py`) in the engine's next step."""
        file = self.fault_file.with_suffix(".new")
        file.write_text(fault)
        file.rename(self.fault_file)

    async def read(self) -> None:
        """Read the replica's frames, as an ingress does."""
        async for data in self.replica.frames(REPLICA, INGRESS):
            for delta in decode_frame(data).deltas:
                self.first_token_s.setdefault(delta.attempt_id, time.monotonic())
                self.answering.set()

    async def time_steps(self) -> None:
        """Keep the longest time that one step of the busy engine took."""
        steps, began_s = -1, 0.0
        while True:
            stats, now_s = self.engine.stats(), time.monotonic()
            if stats.steps != steps or not stats.unfinished:
                steps, began_s = stats.steps, now_s
            self.longest_step_s = max(self.longest_step_s, now_s - began_s)
            await asyncio.sleep(SAMPLE_S)

    async def run(self, attempt: AttemptRequest) -> None:
        """Run one attempt. Raises `EngineDead` when the watchdog kills the engine."""
        await self.replica.run_attempt(REPLICA, encode_request(attempt))


@contextlib.asynccontextmanager
async def watched_engine(
    flags: Flags, environment: Mapping[str, str], write_line: WriteLine
) -> AsyncIterator[WatchedEngine]:
    """The demo's engine, started with these flags in addition to its own."""
    config = _config(flags)
    with tempfile.TemporaryDirectory(prefix="watchdog-") as folder:
        fault_file = Path(folder) / "fault"
        caches: dict[str, str] = {}
        compile_cache.prepare(folder, caches)
        variables = {
            **config.engine.env,
            **COMPILES,
            **caches,
            **environment,
            faults.FAULT_FILE: str(fault_file),
        }
        with _environment(variables):
            engines: list[VllmEngine] = []

            def factory(sink: StepSink) -> VllmEngine:
                engines.append(VllmEngine(engine_argv(config), sink))
                return engines[0]

            engine = config.engine
            limits = WatchdogLimits(engine.hang_after_s, engine.stuck_after_s, engine.compile_limit_s)
            replica = EngineReplica(REPLICA, factory, limits)
            began_s = time.monotonic()
            try:
                await replica.start()
                write_line(f"  engine up after {time.monotonic() - began_s:.0f} s")
                watched = WatchedEngine(replica, engines[0], fault_file)
                watchers = [asyncio.create_task(work) for work in (watched.read(), watched.time_steps())]
                try:
                    yield watched
                finally:
                    for watcher in watchers:
                        watcher.cancel()
                    await asyncio.gather(*watchers, return_exceptions=True)
            finally:
                await replica.stop()


def _config(flags: Flags) -> AppConfig:
    ours = {"scheduler-cls": _name(faults.FaultyScheduler), "worker-cls": _name(faults.FaultyWorker), **flags}
    return profile.load(YamlDocument("bench", {"profile": PROFILE, "engine": {"flags": ours}}, {}), None)


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


# ---- hangs -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HangCase:
    """A way to hang. `hang` does it to a running engine; `limit_s` is how soon it must be found."""

    name: str
    limit_s: float
    hang: Callable[[WatchedEngine], None]
    flags: Flags = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


def _request(fault: str) -> Callable[[WatchedEngine], None]:
    return lambda watched: watched.request_fault(fault)


def _stop(*, core: bool, workers: bool) -> Callable[[WatchedEngine], None]:
    def stop(_: WatchedEngine) -> None:
        for process in engine_core_processes():
            stopped: list[psutil.Process] = process.children(recursive=True) if workers else []
            for member in [*stopped, *([process] if core else [])]:
                member.suspend()

    return stop


TWO_RANKS: Flags = {"tensor-parallel-size": 2}

HANGS: Sequence[HangCase] = (
    HangCase("SIGSTOP of the engine", HUNG_LIMIT_S, _stop(core=True, workers=True)),
    HangCase("SIGSTOP of the core", HUNG_LIMIT_S, _stop(core=True, workers=False)),
    HangCase("SIGSTOP of the worker", HUNG_LIMIT_S, _stop(core=False, workers=True)),
    HangCase("a worker blocks", HUNG_LIMIT_S, _request("worker-0 blocks")),
    HangCase("the core blocks", HUNG_LIMIT_S, _request("core blocks")),
    HangCase("core and worker in a deadlock", HUNG_LIMIT_S, _request(faults.DEADLOCK)),
    HangCase("a worker spins", STUCK_LIMIT_S, _request("worker-0 spins")),
    HangCase("the core spins", STUCK_LIMIT_S, _request("core spins")),
    HangCase("a worker polls for what never comes", STUCK_LIMIT_S, _request("worker-0 polls")),
    # The other rank spins in the collective, which takes CPU time.
    HangCase("one of two ranks blocks", STUCK_LIMIT_S, _request("worker-1 blocks"), TWO_RANKS),
)


async def hang(case: HangCase, write_line: WriteLine) -> CaseOutcome:
    """Hang an engine while a request runs, and measure when its watchdog kills it."""
    async with watched_engine(case.flags, case.environment, write_line) as watched:
        attempt = attempt_of(max_tokens=LONG_ANSWER)
        running = asyncio.create_task(watched.run(attempt))
        answering = asyncio.create_task(watched.answering.wait())
        await asyncio.wait({running, answering}, return_when=asyncio.FIRST_COMPLETED)
        case.hang(watched)
        hung_s = time.monotonic()
        write_line("  the engine hangs")
        await asyncio.wait({running}, timeout=2 * case.limit_s)
        found_s = time.monotonic() - hung_s
        running.cancel()
        answering.cancel()
        ended = (await asyncio.gather(running, return_exceptions=True))[0]
        found = isinstance(ended, EngineDead)
        return CaseOutcome(
            case.name,
            kills=int(found),
            longest_silence_s=watched.longest_step_s,
            is_hang=True,
            found_s=found_s if found else None,
            limit_s=case.limit_s,
            note=str(ended) if ended else "the request ended without an error",
        )


# ---- slow requests ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SlowCase:
    """Slow requests, one after the other, to their own engine."""

    name: str
    requests: Sequence[Mapping[str, Any]]
    """Arguments of `attempt_of`."""
    flags: Flags = field(default_factory=dict)


LONG_STEP_TOKENS = 24_000
GRAMMARS: Sequence[Mapping[str, object]] = ({"json": warm_up.JSON_SCHEMA}, {"regex": "[a-z]{1,8}"})
"""Grammars that every back end supports."""


def _grammars(backend: str) -> SlowCase:
    requests = [{"max_tokens": 32, "grammar": grammar, "backend": backend} for grammar in GRAMMARS]
    return SlowCase(f"grammars of {backend}", requests, {"structured-outputs-config": {"backend": backend}})


SLOW: Sequence[SlowCase] = (
    SlowCase(
        f"one step of {LONG_STEP_TOKENS:,} tokens",
        [{"max_tokens": 2, "tokens": LONG_STEP_TOKENS}],
        {"max-num-batched-tokens": LONG_STEP_TOKENS + 1000, "long-prefill-token-threshold": 0},
    ),
    *(_grammars(backend) for backend in ("xgrammar", "guidance", "outlines", "lm-format-enforcer")),
)


async def slow(case: SlowCase, write_line: WriteLine) -> CaseOutcome:
    """Send the requests; all must finish."""
    async with watched_engine(case.flags, {}, write_line) as watched:
        first_s, errors = 0.0, list[BaseException]()
        for options in case.requests:
            attempt, began_s = attempt_of(**options), time.monotonic()
            ended = await asyncio.gather(watched.run(attempt), return_exceptions=True)
            errors += [error for error in ended if error is not None]
            first_s = max(first_s, watched.first_token_s.get(attempt.attempt_id, began_s) - began_s)
        dead = any(isinstance(error, EngineDead) for error in errors)
        note = str(errors[0]) if errors else ""
        return CaseOutcome(
            case.name,
            kills=int(dead),
            lost=len(errors),
            longest_silence_s=watched.longest_step_s,
            first_token_s=first_s,
            note=note,
        )


def attempt_of(
    *, max_tokens: int, tokens: int = 40, grammar: Mapping[str, Any] | None = None, backend: str = ""
) -> AttemptRequest:
    """A greedy request as an ingress sends it, with a unique prompt."""
    from vllm.sampling_params import SamplingParams, StructuredOutputsParams
    from vllm.v1.serial_utils import MsgpackEncoder

    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=grammar is None)
    if grammar is not None:
        params.structured_outputs = StructuredOutputsParams(**grammar)
        params.structured_outputs._backend = backend  # noqa: SLF001  # vLLM's front end sets it the same way
    name = uuid.uuid4().hex
    first = int(name[:2], 16)
    prompt = [PLAIN_TOKENS[0] + (first + place * 31) % PLAIN_TOKENS[1] for place in range(tokens)]
    # A grammar applies from the first token.
    request = warm_up.core_request(name, prompt, params, reasoning_ended=True if grammar is not None else None)
    attempt = warm_up.attempt_of(request, MsgpackEncoder())
    return msgspec.structs.replace(attempt, ingress_id=INGRESS)
