"""The watchdog over the real engine: a step that takes long is let go on, an engine that is stopped is found."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from serve_app.engine import compile_cache
from serve_app.engine.vllm_process import engine_core_processes
from serve_app.engine.watchdog import EngineState, Judgement, Watchdog, WatchdogLimits
from tests.contracts.harness import (
    ENVIRONMENT,
    MTP_ARGV,
    START_TIMEOUT_S,
    Subject,
    start_vllm,
)

pytestmark = [pytest.mark.engine, pytest.mark.timeout(START_TIMEOUT_S)]

PERIOD_S = 0.5
PROMPT_TOKENS = (12_000, 48_000)
"""In one step: some ten seconds of attention on a slow core, a twentieth of that on one with AMX. The longer prompt is
for that one."""
LIMITS = WatchdogLimits(hung_after_s=4.0, stuck_after_s=600.0)


async def watch(subject: Subject, attempt: asyncio.Task[None]) -> list[Judgement]:
    """Judgements until the attempt ends or the engine is given up."""
    watchdog, engine, judgements = Watchdog(LIMITS, PERIOD_S), subject.engine, list[Judgement]()
    while not attempt.done():
        stats = engine.stats()
        judgement = watchdog.observe(time.monotonic(), stats.steps, engine.activity, busy=stats.unfinished > 0)
        judgements.append(judgement)
        if judgement.state in (EngineState.HUNG, EngineState.STUCK):
            engine.fail(judgement.evidence)
        await asyncio.wait({attempt}, timeout=PERIOD_S)
    return judgements


async def test_a_long_step_is_busy_and_a_stopped_engine_is_hung(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    longest = str(PROMPT_TOKENS[-1] + 100)
    subject = await start_vllm("--max-model-len", longest, "--max-num-batched-tokens", longest)
    try:
        silence_s = 0.0
        for tokens in PROMPT_TOKENS:
            if silence_s > LIMITS.hung_after_s:
                break
            prompt = [40 + (number + tokens) % 200 for number in range(tokens)]
            long = asyncio.create_task(subject.engine.run(subject.attempt(max_tokens=2, prompt=prompt)))
            judgements = await watch(subject, long)
            long.result()
            silence_s = max(one.silence_s for one in judgements)
            assert {one.state for one in judgements} <= {EngineState.WORKING, EngineState.BUSY}
            assert f"{tokens:,} tokens" not in subject.engine.under_way(), "it has ended"
        assert silence_s > LIMITS.hung_after_s, "no long step: nothing was shown"

        stopped = asyncio.create_task(subject.engine.run(subject.attempt(max_tokens=12_000)))
        await asyncio.wait({stopped}, timeout=PERIOD_S)
        assert "1 requests" in subject.engine.under_way()
        for core in engine_core_processes():
            os.kill(core.pid, signal.SIGSTOP)
        judgements = await watch(subject, stopped)
        assert judgements[-1].state is EngineState.HUNG
        assert "no thread or GPU of it has moved" in str(stopped.exception())
    finally:
        await subject.engine.shutdown()


async def test_nothing_is_compiled_under_a_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Cases 19 and 23: kernels that are built at first use are built before "ready", with `enforce-eager`, too."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    for name in compile_cache.FOLDERS:
        monkeypatch.delenv(name, raising=False)
    environ: dict[str, str] = {}
    folder = compile_cache.prepare(str(tmp_path), environ)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    phases = list[str]()
    argv = [*MTP_ARGV, "--max-num-batched-tokens", "256"]
    subject = await start_vllm(*argv, warms_up=True, progress=phases.append)
    try:
        warmed = [phase for phase in phases if phase.startswith("warming up")]
        for kind in "a request, log probabilities, sampling, penalties, drafts, grammars, a long, 900x700".split(", "):
            assert any(kind in phase for phase in warmed), kind
        assert phases[-1].startswith("ready")
        assert not subject.sink.deltas, "a replica is not told of warm-up tokens"
        assert subject.engine.stats().unfinished == 0

        built = kernels(folder)
        assert built, "the first log probabilities compile: nothing was shown"
        asked: list[dict[str, Any]] = [
            {"logprobs": 0},
            {"logprobs": 3},
            {"logprobs": 20},
            {"prompt_logprobs": 2},
            {"temperature": 0.8, "top_p": 0.8, "top_k": 7, "seed": 1},
            {"presence_penalty": 1.0, "repetition_penalty": 1.1},
            {"json_schema": '{"type": "array", "items": {"type": "string"}}'},
            {"prompt": [40 + number % 200 for number in range(400)]},
            {"prompt": [40 + number % 300 for number in range(410)], "seed": 3, "temperature": 1.0},
        ]
        await asyncio.gather(*(subject.run(subject.attempt(max_tokens=12, **one)) for one in asked))
        for one in asked:
            await subject.run(subject.attempt(max_tokens=12, **one))
        assert kernels(folder) == built
    finally:
        await subject.engine.shutdown()


def kernels(folder: Path) -> set[Path]:
    """The libraries and binaries that compilers have left there."""
    return {file for file in folder.rglob("*") if file.suffix in {".so", ".cubin", ".ptx"}}
