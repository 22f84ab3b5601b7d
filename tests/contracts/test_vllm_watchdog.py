"""The watchdog over the real engine: a step that takes long is let go on, an engine that is stopped is found."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest

from serve_app.engine.vllm import VllmEngine
from serve_app.engine.vllm_start import engine_core_processes
from serve_app.engine.watchdog import Judgement, Verdict, Watchdog, WatchdogLimits
from tests.contracts.harness import (
    ENVIRONMENT,
    MTP_ARGV,
    START_TIMEOUT_S,
    VLLM_ARGV,
    Recorder,
    Subject,
    start_vllm,
)

pytestmark = [pytest.mark.engine, pytest.mark.timeout(START_TIMEOUT_S)]

PERIOD_S = 0.5
PROMPT_TOKENS = 12_000
"""In one step: some ten seconds of attention on one core."""
LIMITS = WatchdogLimits(hung_after_s=4.0, stuck_after_s=600.0)


async def watch(subject: Subject, attempt: asyncio.Task[None]) -> list[Judgement]:
    """Judgements until the attempt ends or the engine is given up."""
    watchdog, engine, judgements = Watchdog(LIMITS, PERIOD_S), subject.engine, list[Judgement]()
    while not attempt.done():
        stats = engine.stats()
        judgement = watchdog.observe(time.monotonic(), stats.steps, engine.activity, owed=stats.unfinished > 0)
        judgements.append(judgement)
        if judgement.verdict in (Verdict.HUNG, Verdict.STUCK):
            engine.fail(judgement.evidence)
        await asyncio.wait({attempt}, timeout=PERIOD_S)
    return judgements


async def test_a_long_step_is_busy_and_a_stopped_engine_is_hung(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    longest = str(PROMPT_TOKENS + 100)
    subject = await start_vllm("--max-model-len", longest, "--max-num-batched-tokens", longest)
    try:
        prompt = [40 + number % 200 for number in range(PROMPT_TOKENS)]
        long = asyncio.create_task(subject.engine.run(subject.attempt(max_tokens=2, prompt=prompt)))
        judgements = await watch(subject, long)
        long.result()
        assert max(one.silence_s for one in judgements) > LIMITS.hung_after_s, "no long step: nothing was shown"
        assert {one.verdict for one in judgements} <= {Verdict.WORKING, Verdict.BUSY}
        assert f"{PROMPT_TOKENS:,} tokens" not in subject.engine.under_way(), "it has ended"

        stopped = asyncio.create_task(subject.engine.run(subject.attempt(max_tokens=12_000)))
        await asyncio.wait({stopped}, timeout=PERIOD_S)
        assert "1 requests" in subject.engine.under_way()
        for core in engine_core_processes():
            os.kill(core.pid, signal.SIGSTOP)
        judgements = await watch(subject, stopped)
        assert judgements[-1].verdict is Verdict.HUNG
        assert "no process or GPU of it has moved" in str(stopped.exception())
    finally:
        await subject.engine.shutdown()


async def test_an_engine_runs_requests_of_every_kind_before_it_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    sink, phases = Recorder(), list[str]()
    engine = VllmEngine([*VLLM_ARGV, *MTP_ARGV, "--max-num-batched-tokens", "256"], sink, warms_up=True)
    try:
        await engine.start(phases.append)
        warmed = [phase for phase in phases if phase.startswith("warming up")]
        kinds = (
            "a request, log probabilities, prompt log, sampling, penalties, drafts, grammars, a long, an image of 900"
        )
        for kind in kinds.split(", "):
            assert any(phase.startswith(f"warming up: {kind}") for phase in warmed), kind
        assert phases[-1].startswith("ready")
        assert not sink.deltas, "a replica is not told of warm-up tokens"
        stats = engine.stats()
        assert (stats.unfinished, stats.queued_prompt_tokens) == (0, 0)
    finally:
        await engine.shutdown()
