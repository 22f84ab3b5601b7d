"""What each subcommand does, from checked options to output."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import math
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path

from loadtest.compare import comparison_rows, load_result, setting_notes
from loadtest.errors import AssertionUnmet, UsageError
from loadtest.figures import Figures, figure_out
from loadtest.live import Board, shown
from loadtest.mock import MockServer
from loadtest.mock_answers import Manners
from loadtest.options import (
    OutputOptions,
    data_options,
    load_options,
    numbers,
    output_options,
    target_options,
)
from loadtest.parity import measure
from loadtest.plan import Plan, make_plan, reach, warmup_job
from loadtest.published import Setting
from loadtest.report.files import full_result, write_json, write_text
from loadtest.report.html import as_html
from loadtest.report.lines import as_csv
from loadtest.report.search_text import found_json, found_text, step_line
from loadtest.report.tables import Table
from loadtest.report.text import as_markdown, as_text, markdown_table, text_table
from loadtest.result import About
from loadtest.run import Audience, Ended, Finished, Nobody, run_here
from loadtest.search import Hopeless, Range, Step, grew_all_through, needs_slo
from loadtest.search import search as find_highest
from loadtest.selftest import as_json, selftest_text
from loadtest.selftest import selftest as measure_client
from loadtest.slo import Bound, judge, parse_bounds
from loadtest.workers import run_in_workers


async def run(args: argparse.Namespace) -> int:
    """`loadtest run`."""
    target, data, load, output = target_options(args), data_options(args), load_options(args), output_options(args)
    bounds = [bound for text in output.assertions for bound in parse_bounds(text)]
    parse_bounds(output.slo or "")  # a typo must not surface after half an hour
    endpoint, served = await reach(target)
    plan = make_plan(target, data, load, endpoint, served)
    warmup = warmup_job(plan)
    if warmup is not None:
        await run_here(warmup, endpoint, Nobody())
    finished = await execute(plan, output)
    figures = figure_out(about(plan, output), finished, output, setting=setting(plan, finished, args.preset))
    write_reports(figures, output)
    return check_assertions(bounds, figures)


async def execute(plan: Plan, output: OutputOptions) -> Finished:
    """Run a plan with as many processes as it needs, and show it as it goes."""
    live = sys.stderr.isatty() if output.live is None else output.live
    live = live and not output.quiet
    if output.quiet or (not live and plan.workers == 1 and len(plan.job.prompts) == 1):
        return await _run(plan, Nobody(), apart=plan.workers > 1)
    board = Board(len(plan.job.prompts), plan.load.duration_s)
    async with shown(board, live=live):
        return await _run(plan, board, apart=live or plan.workers > 1)


async def _run(plan: Plan, audience: Audience, *, apart: bool) -> Finished:
    if apart:
        return await run_in_workers(plan.job, plan.endpoint, plan.workers, audience)
    return await run_here(plan.job, plan.endpoint, audience)


def about(plan: Plan, output: OutputOptions) -> About:
    """What the result file says about a run."""
    return About(
        api=plan.target.api,
        url=plan.endpoint.address.url,
        model=plan.served.model,
        served_root=plan.served.root,
        tokenizer=plan.tokens.source if plan.tokens else None,
        num_prompts=len(plan.job.prompts),
        max_concurrency=plan.job.load.max_inflight,
        request_rate=plan.load.rate if plan.job.load.open_loop else math.inf,
        burstiness=plan.load.burstiness,
        label=output.label,
        metadata=output.metadata,
    )


def setting(plan: Plan, finished: Finished, preset: str | None) -> Setting | None:
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


def write_reports(figures: Figures, output: OutputOptions) -> None:
    """Terminal and files."""
    print(as_text(figures))
    if output.json:
        write_json(Path(output.json), full_result(figures, detailed=output.detailed))
    if output.md:
        write_text(Path(output.md), as_markdown(figures))
    if output.csv:
        write_text(Path(output.csv), as_csv(figures.finished.run))
    if output.html:
        write_text(Path(output.html), as_html(figures))
    written = [path for path in (output.json, output.md, output.csv, output.html) if path]
    if written:
        print("wrote " + ", ".join(written))


def check_assertions(bounds: Sequence[Bound], figures: Figures) -> int:
    """0, or the error that CI shall see."""
    missed = [verdict for verdict in judge(bounds, figures.finished.run) if not verdict.met]
    if missed:
        said = ", ".join(f"{verdict.bound.text} (is {verdict.value:.4g})" for verdict in missed)
        raise AssertionUnmet(f"not met: {said}")
    return 0


async def mock(args: argparse.Namespace) -> int:
    """`loadtest mock`: serve until interrupted."""
    manners = Manners(
        first_s=args.first_ms / 1000,
        gap_s=args.gap_ms / 1000,
        tokens_per_chunk=args.tokens_per_chunk,
        model=args.model,
        root=args.root,
        api_key=args.api_key,
        max_inflight=args.max_inflight,
        fail_every=args.fail_every,
        fault=args.fault,
    )
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with MockServer(manners, port=args.port) as server:
        print(f"mock server at {server.url}, model {manners.model}", flush=True)
        await stop.wait()
    return 0


async def selftest(args: argparse.Namespace) -> int:
    """`loadtest selftest`: exit code 1 where the client is not fit at some number of streams."""
    streams = [int(number) for number in numbers(args.streams, "--streams")]
    readings = await measure_client(streams, args.chunks)
    print(selftest_text(readings))
    if args.json:
        write_json(Path(args.json), as_json(readings))
    return 0 if all(reading.fit for reading in readings) else 1


async def compare(args: argparse.Namespace) -> int:
    """`loadtest compare`."""
    results = [load_result(path) for path in args.files]
    if len(results) < 2:
        raise UsageError("compare needs two files or more")
    head = ["", results[0].name]
    for other in results[1:]:
        head += [other.name, "ratio", "95 % interval of the ratio"]
    table = Table("Compared with the first", tuple(head), tuple(comparison_rows(results)), tuple(setting_notes(results)))
    print(text_table(table))
    if args.md:
        write_text(Path(args.md), markdown_table(table))
    return 0


async def search(args: argparse.Namespace) -> int:
    """`loadtest search`: exit code 1 where no load holds."""
    target, data, load, output = target_options(args), data_options(args), load_options(args), output_options(args)
    bounds = parse_bounds(output.slo or "")
    needs_slo(bounds)
    if load.open_loop_asked or load.concurrency:
        raise UsageError("search chooses the load itself", "Leave --concurrency, --rate, --phases and --trace out")
    endpoint, served = await reach(target)
    concurrency = args.what == "concurrency"
    span = Range(
        low=args.low or (1 if concurrency else 0.5), high=args.high or (1024 if concurrency else 256), whole=concurrency
    )
    seeds = itertools.count(data.seed)

    async def try_load(level: float) -> Step:
        count = args.step_requests or max(32, int(4 * level) if concurrency else int(20 * level))
        chosen = replace(data, seed=next(seeds), num_prompts=count)
        pressed = replace(load, concurrency=int(level)) if concurrency else replace(load, rate=level)
        plan = make_plan(target, chosen, pressed, endpoint, served)
        step = await try_step(plan, bounds, level)
        print(step_line(step, args.what), flush=True)
        await asyncio.sleep(args.pause)
        return step

    found = await find_highest(span, try_load)
    print(found_text(found, args.what))
    if output.json:
        write_json(Path(output.json), found_json(found, args.what))
    return 0 if found.best is not None else 1


async def try_step(plan: Plan, bounds: Sequence[Bound], level: float) -> Step:
    """Run one load, and end it as soon as it is lost."""
    critic = Critic(Hopeless(bounds, len(plan.job.prompts)))
    finished = await run_here(plan.job, plan.endpoint, critic)
    run = finished.run
    if run.interrupted:
        raise KeyboardInterrupt
    parity = measure(run.records, run.duration_s, [50.0, 99.0])
    saturated = critic.lost or (plan.job.load.open_loop and grew_all_through(run))
    return Step(level, parity, tuple(judge(bounds, run)), saturated, run)


class Critic:
    """An audience that ends a hopeless run."""

    def __init__(self, hopeless: Hopeless) -> None:
        self._hopeless = hopeless
        self._stop: Callable[[], None] | None = None
        self.lost = False

    def begin(self, begin_ns: int, stop: Callable[[], None]) -> None:
        """Remember how to end it."""
        self._stop = stop

    def news(self, started: int, ended: list[Ended]) -> None:
        """Look at every request that ended."""
        for one in ended:
            lost = self._hopeless.add(ok=one.ok, ttft_ms=one.ttft_ms, tpot_ms=one.tpot_ms)
            if lost and not self.lost and self._stop is not None:
                self.lost = True
                self._stop()


COMMANDS: dict[str, Callable[[argparse.Namespace], Coroutine[None, None, int]]] = {
    "run": run,
    "mock": mock,
    "selftest": selftest,
    "search": search,
    "compare": compare,
}
