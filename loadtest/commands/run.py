"""`loadtest run`: one measured run, from checked options to reports."""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

from loadtest.api.record import Record
from loadtest.data.prompt import DatasetSpec
from loadtest.errors import AssertionUnmet, LoadTestError, TargetError
from loadtest.fleet.poller import FleetPoller, FleetSpec, PollTargets
from loadtest.fleet.view import FleetView, Mark
from loadtest.http.pool import Pool
from loadtest.http.probe import get
from loadtest.load.plan import LoadPlan, TargetSpec, find_server, make_plan, warmup_job
from loadtest.load.run import FinishedRequest, NullObserver, Observer, RunResult, run_here
from loadtest.load.schedule import LoadSpec, parse_phases
from loadtest.load.worker_processes import run_in_workers
from loadtest.metrics.recovery import recoveries
from loadtest.metrics.reference_results import BenchmarkSettings
from loadtest.metrics.slo import Bound, judge, parse_bounds
from loadtest.metrics.summary import Summary, summarize
from loadtest.metrics.vllm_result import RunInfo
from loadtest.report.failures import hint_for
from loadtest.report.files import OutputSpec, check_writable, full_result, write_json, write_text
from loadtest.report.html import as_html
from loadtest.report.lines import as_csv
from loadtest.report.live import ProgressBoard, shown
from loadtest.report.text import as_markdown, as_text


@dataclass(frozen=True)
class RunSpec:
    """What `run` needs, and `search` but for the fleet and the preset."""

    target: TargetSpec
    data: DatasetSpec
    load: LoadSpec
    output: OutputSpec
    fleet: FleetSpec = field(default_factory=FleetSpec)
    preset: str | None = None
    """The published benchmark to compare with."""


async def run(spec: RunSpec) -> int:
    """Measure a server under one load, and write the reports. Returns 0, or raises a `LoadTestError`."""
    target, data, load, output = spec.target, spec.data, spec.load, spec.output
    bounds = [bound for text in output.assertions for bound in parse_bounds(text)]
    parse_bounds(output.summary.slo or "")  # a typo must not surface after half an hour
    for path in output.files:
        check_writable(Path(path))  # nor must a folder that may not be written
    endpoint, served = await find_server(target)
    plan = make_plan(target, data, load, endpoint, served)
    plan = replace(plan, job=replace(plan.job, keep_text=output.keep_text))
    warmup = warmup_job(plan)
    if warmup is not None:
        await run_here(warmup, endpoint, NullObserver())
    summary = await measure_plan(plan, output, spec.fleet, spec.preset)
    write_reports(summary, output)
    if summary.failures and not summary.vllm_metrics.completed:
        group = summary.failures[0]
        first = group.examples[0]
        raise TargetError(f"no request succeeded: {group.count} ended as {group.outcome.value}", _as_remedy(first))
    return check_assertions(bounds, summary)


def _as_remedy(record: Record) -> str:
    said = hint_for(record)
    return said[:1].upper() + said[1:]


def write_reports(summary: Summary, output: OutputSpec) -> None:
    """Terminal and files."""
    print(as_text(summary))
    if output.json:
        write_json(Path(output.json), full_result(summary, detailed=output.detailed))
    if output.md:
        write_text(Path(output.md), as_markdown(summary))
    if output.csv:
        write_text(Path(output.csv), as_csv(summary.finished.run))
    if output.html:
        write_text(Path(output.html), as_html(summary))
    if output.files:
        print("wrote " + ", ".join(output.files))


def check_assertions(bounds: Sequence[Bound], summary: Summary) -> int:
    """0, or the error that CI shall see."""
    missed = [verdict for verdict in judge(bounds, summary.finished.run) if not verdict.met]
    if missed:
        said = ", ".join(f"{verdict.bound.text} (is {verdict.value:.4g})" for verdict in missed)
        raise AssertionUnmet(f"not met: {said}")
    return 0


async def measure_plan(plan: LoadPlan, output: OutputSpec, fleet: FleetSpec, preset: str | None) -> Summary:
    """Run a plan and compute everything there is to say about it."""
    where = await find_poll_targets(plan, fleet)
    async with contextlib.AsyncExitStack() as stack:
        poller = await stack.enter_async_context(FleetPoller(where)) if where else None
        fault_injector = FaultInjector(fleet.events)
        finished = await execute(plan, output, fault_injector, apart=poller is not None or bool(fleet.events))
        await fault_injector.done()
        about, setting = describe(plan, output), setting_of(plan, finished, preset)
        summary = summarize(
            about, finished, output.summary, setting=setting, varying=bool(plan.load.phases or plan.load.trace)
        )
        if poller is None:
            view = FleetView(marks=tuple(fault_injector.marks))
        else:
            await poller.settle(summary.vllm_metrics.completed)
            view = poller.view(finished.run, summary.vllm_metrics.ttft.mean, fault_injector.marks)
    moments = [mark.at_s for mark in view.marks if mark.kind in ("death", "event")] + steps_up(plan)
    felt = recoveries(finished.run, parse_bounds(output.summary.slo or ""), sorted(moments))
    if poller is None and not view.marks and not felt:
        return summary
    return replace(summary, fleet=replace(view, recoveries=felt))


async def find_poll_targets(plan: LoadPlan, fleet: FleetSpec) -> PollTargets | None:
    """Ray where it is named, else the server's own metrics page where it has one."""
    if fleet.dashboard:
        return PollTargets(fleet.dashboard, fleet.token, None)
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
    return PollTargets(None, None, plan.endpoint, plan.target.headers)


def steps_up(plan: LoadPlan) -> list[float]:
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


class FaultInjector:
    """Runs the user's commands at their moments and remembers when it did."""

    def __init__(self, events: tuple[tuple[float, str], ...]) -> None:
        self._events = events
        self._tasks: list[asyncio.Task[None]] = []
        self.marks: list[Mark] = []

    def on_start(self, begin_ns: int, stop: Callable[[], None]) -> None:  # noqa: ARG002  # an observer may end a run
        """Start the commands' clock with the run's."""
        self._tasks = [asyncio.create_task(self._one(at_s, command)) for at_s, command in self._events]

    def on_progress(self, started: int, ended: list[FinishedRequest]) -> None:
        """Faults depend on the clock alone."""

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


class FanOutObserver:
    """Passes everything on to several observers."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def on_start(self, begin_ns: int, stop: Callable[[], None]) -> None:
        """The clock starts."""
        for observer in self._observers:
            observer.on_start(begin_ns, stop)

    def on_progress(self, started: int, ended: list[FinishedRequest]) -> None:
        """Requests started and ended."""
        for observer in self._observers:
            observer.on_progress(started, ended)


async def execute(plan: LoadPlan, output: OutputSpec, fault_injector: FaultInjector, *, apart: bool) -> RunResult:
    """Run with as many processes as it needs, and show it as it goes."""
    async with _observer(plan, output) as (observer, live):
        fan_out = FanOutObserver(fault_injector, observer)
        if apart or live or plan.worker_count.count > 1:
            return await run_in_workers(plan.job, plan.endpoint, plan.worker_count.count, fan_out)
        return await run_here(plan.job, plan.endpoint, fan_out)


@contextlib.asynccontextmanager
async def _observer(plan: LoadPlan, output: OutputSpec) -> AsyncIterator[tuple[Observer, bool]]:
    if output.quiet:
        yield NullObserver(), False
        return
    live = sys.stderr.isatty() if output.live is None else output.live
    board = ProgressBoard(len(plan.job.prompts), plan.load.duration_s)
    async with shown(board, live=live):
        yield board, live


def describe(plan: LoadPlan, output: OutputSpec) -> RunInfo:
    """What the result file says about a run."""
    return RunInfo(
        api=plan.target.api,
        url=plan.endpoint.address.url,
        model=plan.served.model,
        served_root=plan.served.root,
        tokenizer=plan.tokenizer.source if plan.tokenizer else None,
        num_prompts=len(plan.job.prompts),
        max_concurrency=plan.job.load.max_inflight,
        request_rate=_mean_rate(plan),
        burstiness=plan.load.burstiness,
        label=output.label,
        metadata=output.metadata,
        worker_count=plan.worker_count.reason,
    )


def _mean_rate(plan: LoadPlan) -> float:
    """Infinity for the closed loop, as vLLM writes it; the mean of what is offered otherwise."""
    times = plan.job.load.times_s
    if times is None:
        return math.inf
    if plan.load.rate < math.inf:
        return plan.load.rate
    return round(len(times) / max(times[-1], 1e-9), 4) if len(times) else 0.0


def setting_of(plan: LoadPlan, finished: RunResult, preset: str | None) -> BenchmarkSettings | None:
    """How the run was made, where it is to be set beside the published one."""
    if preset is None:
        return None
    data = plan.data
    return BenchmarkSettings(
        dataset=data.dataset,
        api=plan.target.api.value,
        input_len=data.input_len,
        output_len=data.output_len,
        num_prompts=len(plan.job.prompts),
        concurrency=None if plan.job.load.open_loop else plan.job.load.max_inflight,
        seed=data.seed,
        forced=plan.job.body_spec.ignore_eos,
        interrupted=finished.run.interrupted,
    )
