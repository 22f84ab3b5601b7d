"""The steps of a search: one run each, ended as soon as it is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

from loadtest.load.plan import Plan
from loadtest.load.run import Ended, InterruptedEarly, on_interrupt, run_here
from loadtest.load.worker_processes import run_in_workers
from loadtest.metrics.load_search import Hopeless, SearchEnded, Step, grew_all_through
from loadtest.metrics.slo import Bound, judge
from loadtest.metrics.vllm_metrics import measure


async def try_step(plan: Plan, bounds: Sequence[Bound], level: float) -> Step:
    """Run one load, and end it as soon as it is lost. Raises SearchEnded where the user interrupted it."""
    critic = Critic(Hopeless(bounds, len(plan.job.prompts)))
    try:
        if plan.crew.count > 1:
            finished = await run_in_workers(plan.job, plan.endpoint, plan.crew.count, critic)
        else:
            finished = await run_here(plan.job, plan.endpoint, critic)
    except InterruptedEarly:
        raise SearchEnded from None
    run = finished.run
    if run.interrupted:
        raise SearchEnded
    parity = measure(run.records, run.duration_s, [50.0, 99.0])
    saturated = critic.lost or (plan.job.load.open_loop and grew_all_through(run))
    return Step(level, parity, tuple(judge(bounds, run)), saturated, run)


async def rest(seconds: float) -> None:
    """Let the server empty its queue. Raises SearchEnded where the user interrupted it."""
    enough = asyncio.Event()
    with on_interrupt(enough.set), suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await enough.wait()
    if enough.is_set():
        raise SearchEnded


class Critic:
    """An audience that ends a hopeless run."""

    def __init__(self, hopeless: Hopeless) -> None:
        self._hopeless = hopeless
        self._stop: Callable[[], None] | None = None
        self.lost = False

    def begin(self, begin_ns: int, stop: Callable[[], None]) -> None:  # noqa: ARG002  # an audience hears more than a critic needs
        """Remember how to end it."""
        self._stop = stop

    def news(self, started: int, ended: list[Ended]) -> None:  # noqa: ARG002  # an audience hears more than a critic needs
        """Look at every request that ended."""
        for one in ended:
            lost = self._hopeless.add(ok=one.ok, ttft_ms=one.ttft_ms, tpot_ms=one.tpot_ms)
            if lost and not self.lost and self._stop is not None:
                self.lost = True
                self._stop()
