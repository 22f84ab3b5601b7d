"""`loadtest search`: one run per step, each stopped as soon as it cannot meet the objectives any more."""

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
from loadtest.load.runner import FinishedRequest, InterruptedEarly, on_interrupt
from loadtest.load.worker_processes import run_job
from loadtest.metrics.load_search import (
    EarlyStopRule,
    SearchInterrupted,
    SearchRange,
    SearchStep,
    find_highest_load,
    require_objectives,
    ttft_grew_throughout,
)
from loadtest.metrics.slo import Bound, evaluate_bounds, parse_bounds
from loadtest.metrics.vllm_metrics import compute_vllm_metrics
from loadtest.report.files import check_writable, search_result, write_json
from loadtest.report.text import search_text, step_line


async def measure_step(plan: LoadPlan, bounds: Sequence[Bound], level: float) -> SearchStep:
    """Run one load. Raises SearchInterrupted if the user interrupted it."""
    observer = EarlyStopObserver(EarlyStopRule(bounds, len(plan.job.prompts)))
    try:
        result = await run_job(plan.job, plan.endpoint, plan.worker_count.count, observer)
    except InterruptedEarly:
        raise SearchInterrupted from None
    run = result.run
    if run.interrupted:
        raise SearchInterrupted
    vllm_metrics = compute_vllm_metrics(run.records, run.duration_s, [50.0, 99.0])
    saturated = observer.stopped or (plan.job.load.open_loop and ttft_grew_throughout(run))
    return SearchStep(level, vllm_metrics, tuple(evaluate_bounds(bounds, run)), saturated, run)


async def pause(seconds: float) -> None:
    """Let the server drain its queue. Raises SearchInterrupted if the user interrupted it."""
    interrupted = asyncio.Event()
    with on_interrupt(interrupted.set), suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await interrupted.wait()
    if interrupted.is_set():
        raise SearchInterrupted


class EarlyStopObserver:
    """Stops a run that cannot meet its objectives any more."""

    def __init__(self, rule: EarlyStopRule) -> None:
        self._rule = rule
        self._stop: Callable[[], None] | None = None
        self.stopped = False

    def on_start(self, begin_ns: int, stop: Callable[[], None]) -> None:  # noqa: ARG002  # the protocol has more than this observer needs
        """Keep the way to stop the run."""
        self._stop = stop

    def on_progress(self, started: int, ended: list[FinishedRequest]) -> None:  # noqa: ARG002  # the protocol has more than this observer needs
        """Check every request that ended."""
        for one in ended:
            missed = self._rule.add(ok=one.ok, ttft_ms=one.ttft_ms, tpot_ms=one.tpot_ms)
            if missed and not self.stopped and self._stop is not None:
                self.stopped = True
                self._stop()


@dataclass(frozen=True)
class SearchSpec:
    """Which loads to try, and how."""

    what: str = "concurrency"
    """What to raise: concurrency or rate."""
    low: float | None = None
    """None: 1 request at a time, or 0.5 per second."""
    high: float | None = None
    """None: 1024 requests at a time, or 256 per second."""
    step_requests: int = 0
    """Requests per step; 0: 4 waves or 20 s, at least 32."""
    pause_s: float = 2.0

    def search_range(self) -> SearchRange:
        """The range with its defaults."""
        if self.what == "concurrency":
            return SearchRange(self.low or 1, self.high or 1024, integral=True)
        return SearchRange(self.low or 0.5, self.high or 256, integral=False)

    def requests_at(self, load: float) -> int:
        """Requests of a step."""
        return self.step_requests or max(32, int((4 if self.what == "concurrency" else 20) * load))


async def search(spec: RunSpec, search_spec: SearchSpec) -> int:
    """Find the highest load that meets the objectives. Returns 1 if none does."""
    target, data, load, output = spec.target, spec.data, spec.load, spec.output
    bounds = parse_bounds(output.summary.slo or "")
    require_objectives(bounds)
    if load.open_loop or load.concurrency:
        raise UsageError(
            "search chooses the load itself", "Leave out --max-concurrency, --request-rate, --phases and --trace"
        )
    if output.json:
        check_writable(Path(output.json))
    endpoint, served = await find_server(target)
    steps = itertools.count()

    async def run_step(level: float) -> SearchStep:
        number = next(steps)
        if number:
            await pause(search_spec.pause_s)
        # Prompts of its own, so that the step finds none of them in the prefix cache.
        step_data = replace(data, seed=data.seed + number, num_prompts=search_spec.requests_at(level))
        by_rate = search_spec.what == "rate"
        step_load = replace(load, rate=level) if by_rate else replace(load, concurrency=int(level))
        step = await measure_step(make_plan(target, step_data, step_load, endpoint, served), bounds, level)
        print(step_line(step, search_spec.what), flush=True)
        return step

    result = await find_highest_load(search_spec.search_range(), run_step)
    if result.interrupted and not result.steps:
        raise InterruptedEarly
    print(search_text(result, search_spec.what))
    if output.json:
        write_json(Path(output.json), search_result(result, search_spec.what))
    return 0 if result.best is not None else 1
