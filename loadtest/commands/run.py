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
from loadtest.fleet.access_log import read_replicas
from loadtest.fleet.poller import FleetPoller, FleetSpec, PollTargets
from loadtest.fleet.view import FleetView, TimelineEvent
from loadtest.http.pool import Pool
from loadtest.http.probe import get
from loadtest.load.plan import LoadPlan, TargetSpec, find_server, make_plan, warmup_job
from loadtest.load.runner import FinishedRequest, NullObserver, Observer, RunResult, run_here
from loadtest.load.schedule import LoadSpec, parse_phases
from loadtest.load.worker_processes import run_job
from loadtest.metrics.agent_metrics import agent_metrics_of
from loadtest.metrics.reference_results import BenchmarkSettings
from loadtest.metrics.slo import Bound, evaluate_bounds, parse_bounds, recoveries
from loadtest.metrics.summary import Summary, summarize
from loadtest.metrics.vllm_metrics import RunInfo
from loadtest.report.failures import hint_for
from loadtest.report.files import OutputSpec, as_csv, check_writable, full_result, write_json, write_text
from loadtest.report.html import as_html
from loadtest.report.live import ProgressBoard, show_progress
from loadtest.report.text import as_markdown, as_text


@dataclass(frozen=True)
class RunSpec:
    """What `run` needs. `search` needs the same, except for the fleet and the preset."""

    target: TargetSpec
    data: DatasetSpec
    load: LoadSpec
    output: OutputSpec
    fleet: FleetSpec = field(default_factory=FleetSpec)
    preset: str | None = None
    """The published benchmark to compare with."""


RATE_STEP = 1.2
"""A rate that rises by less from one phase to the next is no disturbance to recover from."""
COMMAND_SHOWN = 80
"""Characters of a user's command in a report: enough to recognise it."""


async def run(spec: RunSpec) -> int:
    """Measure a server under one load, and write the reports. Returns 0, or raises a `LoadTestError`."""
    target, data, load, output = spec.target, spec.data, spec.load, spec.output
    bounds = [bound for text in output.assertions for bound in parse_bounds(text)]
    parse_bounds(output.summary.slo or "")  # a typo must be found before the run, not half an hour later
    for path in output.files:
        check_writable(Path(path))
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
    hint = hint_for(record)
    return hint[:1].upper() + hint[1:]


def write_reports(summary: Summary, output: OutputSpec) -> None:
    """Write the reports to the terminal and to files."""
    print(as_text(summary))
    if output.json:
        write_json(Path(output.json), full_result(summary, detailed=output.detailed))
    if output.md:
        write_text(Path(output.md), as_markdown(summary))
    if output.csv:
        write_text(Path(output.csv), as_csv(summary.result.run))
    if output.html:
        write_text(Path(output.html), as_html(summary))
    if output.files:
        print("wrote " + ", ".join(output.files))


def check_assertions(bounds: Sequence[Bound], summary: Summary) -> int:
    """0, or an error for CI if a bound is missed."""
    missed = [result for result in evaluate_bounds(bounds, summary.result.run) if not result.met]
    if missed:
        texts = ", ".join(f"{result.bound.text} (is {result.value:.4g})" for result in missed)
        raise AssertionUnmet(f"not met: {texts}")
    return 0


async def measure_plan(plan: LoadPlan, output: OutputSpec, fleet: FleetSpec, preset: str | None) -> Summary:
    """Run a plan and compute all metrics."""
    poll_targets = await find_poll_targets(plan, fleet)
    async with contextlib.AsyncExitStack() as stack:
        poller = await stack.enter_async_context(FleetPoller(poll_targets)) if poll_targets else None
        fault_injector = FaultInjector(fleet.events)
        result = await execute(plan, output, fault_injector, separate=poller is not None or bool(fleet.events))
        await fault_injector.stop()
        injected = sorted(fault_injector.events, key=lambda event: event.at_s)
        summary = summarize(
            run_info_of(plan, output),
            result,
            output.summary,
            benchmark=benchmark_settings_of(plan, result, preset),
            # A session that waits for a tool leaves its slot idle, so all slots are rarely busy.
            varying=bool(plan.load.phases or plan.load.trace or plan.data.dataset == "agents"),
        )
        if poller is None:
            view = FleetView(events=tuple(injected))
        else:
            await poller.wait_for_counters(summary.vllm_metrics.completed)
            view = poller.view(result.run, summary.vllm_metrics.ttft.mean, injected)
    replicas = read_replicas(fleet.access_logs, plan.job.request_id_prefix)
    agents = agent_metrics_of(plan.job.prompts, result.run, output.summary.window_s, replicas)
    summary = replace(summary, agents=agents)
    disturbances_s = [event.at_s for event in view.events if event.kind in ("death", "event")] + rate_increases_s(plan)
    recovered = recoveries(result.run, parse_bounds(output.summary.slo or ""), sorted(disturbances_s))
    if poller is None and not view.events and not recovered:
        return summary
    return replace(summary, fleet=replace(view, recoveries=recovered))


async def find_poll_targets(plan: LoadPlan, fleet: FleetSpec) -> PollTargets | None:
    """Ray's dashboard if it is named, else the server's own metrics page if it has one."""
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


def rate_increases_s(plan: LoadPlan) -> list[float]:
    """Times at which the rate jumps from one phase to the next."""
    phases = parse_phases(plan.load.phases) if plan.load.phases else []
    out, at_s = [], 0.0
    for before, after in pairwise(phases):
        at_s += before.seconds
        if after.start_rate > before.end_rate * RATE_STEP:
            out.append(at_s)
    return out


class FaultInjector:
    """Runs the commands of `--at` and records them as events."""

    def __init__(self, commands: tuple[tuple[float, str], ...]) -> None:
        self._commands = commands
        self._tasks: list[asyncio.Task[None]] = []
        self.events: list[TimelineEvent] = []

    def on_start(self, begin_ns: int, stop: Callable[[], None]) -> None:  # noqa: ARG002  # the protocol lets an observer end a run
        """Schedule the commands relative to the start of the run."""
        self._tasks = [asyncio.create_task(self._run_at(at_s, command)) for at_s, command in self._commands]

    def on_progress(self, started: int, ended: list[FinishedRequest]) -> None:
        """Commands depend on the time alone."""

    async def _run_at(self, at_s: float, command: str) -> None:
        await asyncio.sleep(at_s)
        self.events.append(TimelineEvent(at_s, " ".join(command.split())[:COMMAND_SHOWN], "event"))
        process = await asyncio.create_subprocess_shell(command, stdout=sys.stderr)
        code = await process.wait()
        if code:
            self.events.append(TimelineEvent(at_s, f"the command ended with exit code {code}", "note"))

    async def stop(self) -> None:
        """Cancel the commands that are not due yet. A command that still runs is left running."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class FanOutObserver:
    """Forwards to several observers."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def on_start(self, begin_ns: int, stop: Callable[[], None]) -> None:
        """Forward the start."""
        for observer in self._observers:
            observer.on_start(begin_ns, stop)

    def on_progress(self, started: int, ended: list[FinishedRequest]) -> None:
        """Forward requests that started and ended."""
        for observer in self._observers:
            observer.on_progress(started, ended)


async def execute(plan: LoadPlan, output: OutputSpec, fault_injector: FaultInjector, *, separate: bool) -> RunResult:
    """Run with as many processes as needed, and show progress.

    `separate` measures in worker processes, because other work in this one would delay the event loop.
    """
    async with _observer(plan, output) as (observer, live):
        fan_out = FanOutObserver(fault_injector, observer)
        return await run_job(plan.job, plan.endpoint, plan.worker_count.count, fan_out, separate=separate or live)


@contextlib.asynccontextmanager
async def _observer(plan: LoadPlan, output: OutputSpec) -> AsyncIterator[tuple[Observer, bool]]:
    if output.quiet:
        yield NullObserver(), False
        return
    live = sys.stderr.isatty() if output.live is None else output.live
    board = ProgressBoard(len(plan.job.prompts), plan.load.duration_s)
    async with show_progress(board, live=live):
        yield board, live


def run_info_of(plan: LoadPlan, output: OutputSpec) -> RunInfo:
    """The configuration of a run, for reports."""
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
    """Requests per second that are offered on average; infinite for a closed loop, as in vLLM."""
    times = plan.job.load.times_s
    if times is None:
        return math.inf
    if plan.load.rate < math.inf:
        return plan.load.rate
    return round(len(times) / max(times[-1], 1e-9), 4) if len(times) else 0.0


def benchmark_settings_of(plan: LoadPlan, result: RunResult, preset: str | None) -> BenchmarkSettings | None:
    """The settings of the run, if it is to be compared with the published one."""
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
        forced_length=plan.job.body_spec.ignore_eos,
        interrupted=result.run.interrupted,
    )
