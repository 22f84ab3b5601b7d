"""What each subcommand does, from checked options to output."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import signal
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path

from loadtest.api.record import Record
from loadtest.cli.options import (
    OutputOptions,
    data_options,
    fleet_options,
    load_options,
    numbers,
    output_options,
    target_options,
)
from loadtest.commands.measure import measure_plan
from loadtest.commands.search import rest, try_step
from loadtest.commands.selftest import as_json, selftest_text
from loadtest.commands.selftest import selftest as measure_client
from loadtest.errors import AssertionUnmet, TargetError, UsageError
from loadtest.load.plan import make_plan, reach, warmup_job
from loadtest.load.run import InterruptedEarly, Nobody, run_here
from loadtest.metrics.compare import comparison_rows, load_result, setting_notes
from loadtest.metrics.load_search import Range, Step, needs_slo
from loadtest.metrics.load_search import search as find_highest
from loadtest.metrics.slo import Bound, judge, parse_bounds
from loadtest.metrics.summary import Figures
from loadtest.mock.answers import Manners
from loadtest.mock.server import MockServer
from loadtest.report.files import check_writable, full_result, write_json, write_text
from loadtest.report.hints import advice
from loadtest.report.html import as_html
from loadtest.report.lines import as_csv
from loadtest.report.search_text import found_json, found_text, step_line
from loadtest.report.table import Table
from loadtest.report.text import as_markdown, as_text, markdown_table, text_table


async def run(args: argparse.Namespace) -> int:
    """`loadtest run`."""
    target, data, load, output = target_options(args), data_options(args), load_options(args), output_options(args)
    fleet = fleet_options(args)
    bounds = [bound for text in output.assertions for bound in parse_bounds(text)]
    parse_bounds(output.slo or "")  # a typo must not surface after half an hour
    for path in output.files:
        check_writable(Path(path))  # nor must a folder that may not be written
    endpoint, served = await reach(target)
    plan = make_plan(target, data, load, endpoint, served)
    plan = replace(plan, job=replace(plan.job, keep_text=output.keep_text))
    warmup = warmup_job(plan)
    if warmup is not None:
        await run_here(warmup, endpoint, Nobody())
    figures = await measure_plan(plan, output, fleet, args.preset)
    write_reports(figures, output)
    if figures.failures and not figures.parity.completed:
        group = figures.failures[0]
        first = group.examples[0]
        raise TargetError(f"no request succeeded: {group.count} ended as {group.outcome.value}", _as_remedy(first))
    return check_assertions(bounds, figures)


def _as_remedy(record: Record) -> str:
    said = advice(record)
    return said[:1].upper() + said[1:]


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
    if output.files:
        print("wrote " + ", ".join(output.files))


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
    server = MockServer(manners, port=args.port)
    try:
        await server.start()
    except OSError as bad:
        raise UsageError(
            f"cannot listen on port {args.port} ({os.strerror(bad.errno or 0)})",
            "Choose another with --port, 0 for a free one",
        ) from bad
    async with server:
        print(f"mock server at {server.url}, model {manners.model}", flush=True)
        await stop.wait()
    return 0


async def selftest(args: argparse.Namespace) -> int:
    """`loadtest selftest`: exit code 1 where the client is not fit at some number of streams."""
    streams = [int(number) for number in numbers(args.streams, "--streams")]
    if min(streams) < 1:
        raise UsageError("--streams must be at least 1")
    readings = await measure_client(
        streams, args.chunks, workers=args.workers, against=args.against, rounds=args.rounds
    )
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
    table = Table(
        "Compared with the first", tuple(head), tuple(comparison_rows(results)), tuple(setting_notes(results))
    )
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
        raise UsageError(
            "search chooses the load itself", "Leave --max-concurrency, --request-rate, --phases and --trace out"
        )
    endpoint, served = await reach(target)
    concurrency = args.what == "concurrency"
    span = Range(
        low=args.low or (1 if concurrency else 0.5), high=args.high or (1024 if concurrency else 256), whole=concurrency
    )
    seeds = itertools.count(data.seed)

    tried = 0

    async def try_load(level: float) -> Step:
        nonlocal tried
        if tried:
            await rest(args.pause)
        tried += 1
        count = args.step_requests or max(32, int(4 * level) if concurrency else int(20 * level))
        chosen = replace(data, seed=next(seeds), num_prompts=count)
        pressed = replace(load, concurrency=int(level)) if concurrency else replace(load, rate=level)
        plan = make_plan(target, chosen, pressed, endpoint, served)
        step = await try_step(plan, bounds, level)
        print(step_line(step, args.what), flush=True)
        return step

    found = await find_highest(span, try_load)
    if found.interrupted and not found.steps:
        raise InterruptedEarly
    print(found_text(found, args.what))
    if output.json:
        write_json(Path(output.json), found_json(found, args.what))
    return 0 if found.best is not None else 1


COMMANDS: dict[str, Callable[[argparse.Namespace], Coroutine[None, None, int]]] = {
    "run": run,
    "mock": mock,
    "selftest": selftest,
    "search": search,
    "compare": compare,
}
