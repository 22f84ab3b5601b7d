"""The steps of a search: one run each, ended as soon as it is lost."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from loadtest.commands.run import RunSpec
from loadtest.errors import UsageError
from loadtest.load.plan import LoadPlan, find_server, make_plan
from loadtest.load.run import FinishedRequest, InterruptedEarly, on_interrupt, run_here
from loadtest.load.worker_processes import run_in_workers
from loadtest.metrics.load_search import (
    EarlyStopRule,
    SearchEnded,
    SearchRange,
    SearchStep,
    grew_all_through,
    needs_slo,
)
from loadtest.metrics.load_search import search as find_highest
from loadtest.metrics.slo import Bound, judge, parse_bounds
from loadtest.metrics.vllm_metrics import compute_vllm_metrics
from loadtest.report.files import write_json
from loadtest.report.search_text import found_json, found_text, step_line


async def try_step(plan: LoadPlan, bounds: Sequence[Bound], level: float) -> SearchStep:
    """Run one load, and end it as soon as it is lost. Raises SearchEnded where the user interrupted it."""
    observer = EarlyStopObserver(EarlyStopRule(bounds, len(plan.job.prompts)))
    try:
        if plan.worker_count.count > 1:
            finished = await run_in_workers(plan.job, plan.endpoint, plan.worker_count.count, observer)
        else:
            finished = await run_here(plan.job, plan.endpoint, observer)
    except InterruptedEarly:
        raise SearchEnded from None
    run = finished.run
    if run.interrupted:
        raise SearchEnded
    vllm_metrics = compute_vllm_metrics(run.records, run.duration_s, [50.0, 99.0])
    saturated = observer.lost or (plan.job.load.open_loop and grew_all_through(run))
    return SearchStep(level, vllm_metrics, tuple(judge(bounds, run)), saturated, run)


async def rest(seconds: float) -> None:
    """Let the server empty its queue. Raises SearchEnded where the user interrupted it."""
    enough = asyncio.Event()
    with on_interrupt(enough.set), suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await enough.wait()
    if enough.is_set():
        raise SearchEnded


class EarlyStopObserver:
    """An audience that ends a hopeless run."""

    def __init__(self, rule: EarlyStopRule) -> None:
        self._rule = rule
        self._stop: Callable[[], None] | None = None
        self.lost = False

    def on_start(self, begin_ns: int, stop: Callable[[], None]) -> None:  # noqa: ARG002  # an audience hears more than a critic needs
        """Remember how to end it."""
        self._stop = stop

    def on_progress(self, started: int, ended: list[FinishedRequest]) -> None:  # noqa: ARG002  # an audience hears more than a critic needs
        """Look at every request that ended."""
        for one in ended:
            lost = self._rule.add(ok=one.ok, ttft_ms=one.ttft_ms, tpot_ms=one.tpot_ms)
            if lost and not self.lost and self._stop is not None:
                self.lost = True
                self._stop()


@dataclass(frozen=True)
class SearchSpec:
    """Which loads to try, and how."""

    what: str = "concurrency"
    """What to raise: concurrency or rate."""
    low: float | None = None
    """None: 1 at a time, or 0.5 requests per second."""
    high: float | None = None
    """None: 1024 at a time, or 256 requests per second."""
    step_requests: int = 0
    """Requests of each step; 0: 4 waves or 20 s, at least 32."""
    pause_s: float = 2.0


async def search(spec: RunSpec, steps: SearchSpec) -> int:
    """Find the highest load that keeps the objectives. Returns 1 where none does."""
    target, data, load, output = spec.target, spec.data, spec.load, spec.output
    bounds = parse_bounds(output.summary.slo or "")
    needs_slo(bounds)
    if load.open_loop or load.concurrency:
        raise UsageError(
            "search chooses the load itself", "Leave --max-concurrency, --request-rate, --phases and --trace out"
        )
    endpoint, served = await find_server(target)
    concurrency = steps.what == "concurrency"
    span = SearchRange(
        low=steps.low or (1 if concurrency else 0.5),
        high=steps.high or (1024 if concurrency else 256),
        whole=concurrency,
    )
    seeds = itertools.count(data.seed)

    tried = 0

    async def try_load(level: float) -> SearchStep:
        nonlocal tried
        if tried:
            await rest(steps.pause_s)
        tried += 1
        count = steps.step_requests or max(32, int(4 * level) if concurrency else int(20 * level))
        chosen = replace(data, seed=next(seeds), num_prompts=count)
        pressed = replace(load, concurrency=int(level)) if concurrency else replace(load, rate=level)
        plan = make_plan(target, chosen, pressed, endpoint, served)
        step = await try_step(plan, bounds, level)
        print(step_line(step, steps.what), flush=True)
        return step

    found = await find_highest(span, try_load)
    if found.interrupted and not found.steps:
        raise InterruptedEarly
    print(found_text(found, steps.what))
    if output.json:
        write_json(Path(output.json), found_json(found, steps.what))
    return 0 if found.best is not None else 1
