"""One measured run, from a plan to figures: workers, live view, a look at the fleet, and disturbances on demand."""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from itertools import pairwise

from loadtest.cli.options import FleetOptions, OutputOptions
from loadtest.errors import LoadTestError
from loadtest.fleet.poller import Lookout, Where
from loadtest.fleet.view import FleetView, Mark
from loadtest.http.pool import Pool
from loadtest.http.probe import get
from loadtest.load.plan import Plan
from loadtest.load.run import Audience, Ended, Finished, Nobody, run_here
from loadtest.load.schedule import parse_phases
from loadtest.load.worker_processes import run_in_workers
from loadtest.metrics.recovery import recoveries
from loadtest.metrics.reference_results import Setting
from loadtest.metrics.slo import parse_bounds
from loadtest.metrics.summary import Figures, figure_out
from loadtest.metrics.vllm_result import About
from loadtest.report.live import Board, shown


async def measure_plan(plan: Plan, output: OutputOptions, fleet: FleetOptions, preset: str | None) -> Figures:
    """Run a plan and compute everything there is to say about it."""
    where = await where_to_look(plan, fleet)
    async with contextlib.AsyncExitStack() as stack:
        lookout = await stack.enter_async_context(Lookout(where)) if where else None
        disturber = Disturber(fleet.events)
        finished = await execute(plan, output, disturber, apart=lookout is not None or bool(fleet.events))
        await disturber.done()
        about, setting = describe(plan, output), setting_of(plan, finished, preset)
        figures = figure_out(
            about, finished, output, setting=setting, varying=bool(plan.load.phases or plan.load.trace)
        )
        if lookout is None:
            view = FleetView(marks=tuple(disturber.marks))
        else:
            await lookout.settle(figures.parity.completed)
            view = lookout.view(finished.run, figures.parity.ttft.mean, disturber.marks)
    moments = [mark.at_s for mark in view.marks if mark.kind in ("death", "event")] + steps_up(plan)
    felt = recoveries(finished.run, parse_bounds(output.slo or ""), sorted(moments))
    if lookout is None and not view.marks and not felt:
        return figures
    return replace(figures, fleet=replace(view, recoveries=felt))


async def where_to_look(plan: Plan, fleet: FleetOptions) -> Where | None:
    """Ray where it is named, else the server's own metrics page where it has one."""
    if fleet.dashboard:
        return Where(fleet.dashboard, fleet.token, None)
    if not fleet.server_metrics:
        return None
    pool = Pool(plan.endpoint)
    try:
        reply = await get(pool, plan.endpoint.address, "/metrics", plan.target.headers)
    except LoadTestError:
        return None
    finally:
        pool.close()
    if reply.status != 200 or b"vllm" not in reply.body:
        return None
    return Where(None, None, plan.endpoint, plan.target.headers)


def steps_up(plan: Plan) -> list[float]:
    """Moments at which the phases' rate jumps up."""
    phases = parse_phases(plan.load.phases) if plan.load.phases else []
    out, at_s = [], 0.0
    for before, after in pairwise(phases):
        at_s += before.seconds
        if after.start_rate > before.end_rate * 1.2:
            out.append(at_s)
    return out


COMMAND_SHOWN = 80
"""Characters of a user's command that a report shows: enough to know which it was."""


class Disturber:
    """Runs the user's commands at their moments and remembers when it did."""

    def __init__(self, events: tuple[tuple[float, str], ...]) -> None:
        self._events = events
        self._tasks: list[asyncio.Task[None]] = []
        self.marks: list[Mark] = []

    def start(self) -> None:
        """The run's clock starts."""
        self._tasks = [asyncio.create_task(self._one(at_s, command)) for at_s, command in self._events]

    async def _one(self, at_s: float, command: str) -> None:
        await asyncio.sleep(at_s)
        self.marks.append(Mark(at_s, " ".join(command.split())[:COMMAND_SHOWN], "event"))
        process = await asyncio.create_subprocess_shell(command, stdout=sys.stderr)
        code = await process.wait()
        if code:
            self.marks.append(Mark(at_s, f"the command ended with exit code {code}", "note"))

    async def done(self) -> None:
        """Cancel what is not due any more; wait for what runs."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Chorus:
    """One audience made of an audience and the disturber, who listens for the start only."""

    def __init__(self, audience: Audience, disturber: Disturber) -> None:
        self._audience = audience
        self._disturber = disturber

    def begin(self, begin_ns: int, stop: Callable[[], None]) -> None:
        """Pass on, and start the commands' clock."""
        self._disturber.start()
        self._audience.begin(begin_ns, stop)

    def news(self, started: int, ended: list[Ended]) -> None:
        """Pass on."""
        self._audience.news(started, ended)


async def execute(plan: Plan, output: OutputOptions, disturber: Disturber, *, apart: bool) -> Finished:
    """Run with as many processes as it needs, and show it as it goes."""
    async with _audience(plan, output) as (audience, live):
        chorus = Chorus(audience, disturber)
        if apart or live or plan.crew.count > 1:
            return await run_in_workers(plan.job, plan.endpoint, plan.crew.count, chorus)
        return await run_here(plan.job, plan.endpoint, chorus)


@contextlib.asynccontextmanager
async def _audience(plan: Plan, output: OutputOptions) -> AsyncIterator[tuple[Audience, bool]]:
    if output.quiet:
        yield Nobody(), False
        return
    live = sys.stderr.isatty() if output.live is None else output.live
    board = Board(len(plan.job.prompts), plan.load.duration_s)
    async with shown(board, live=live):
        yield board, live


def describe(plan: Plan, output: OutputOptions) -> About:
    """What the result file says about a run."""
    return About(
        api=plan.target.api,
        url=plan.endpoint.address.url,
        model=plan.served.model,
        served_root=plan.served.root,
        tokenizer=plan.tokens.source if plan.tokens else None,
        num_prompts=len(plan.job.prompts),
        max_concurrency=plan.job.load.max_inflight,
        request_rate=_mean_rate(plan),
        burstiness=plan.load.burstiness,
        label=output.label,
        metadata=output.metadata,
        crew=plan.crew.why,
    )


def _mean_rate(plan: Plan) -> float:
    """Infinity for the closed loop, as vLLM writes it; the mean of what is offered otherwise."""
    times = plan.job.load.times_s
    if times is None:
        return math.inf
    if plan.load.rate < math.inf:
        return plan.load.rate
    return round(len(times) / max(times[-1], 1e-9), 4) if len(times) else 0.0


def setting_of(plan: Plan, finished: Finished, preset: str | None) -> Setting | None:
    """How the run was made, where it is to be set beside the published one."""
    if preset is None:
        return None
    data = plan.data
    return Setting(
        dataset=data.dataset,
        api=plan.target.api.value,
        input_len=data.input_len,
        output_len=data.output_len,
        num_prompts=len(plan.job.prompts),
        concurrency=None if plan.job.load.open_loop else plan.job.load.max_inflight,
        seed=data.seed,
        forced=plan.job.rules.ignore_eos,
        interrupted=finished.run.interrupted,
    )
