"""What each subcommand does, from checked options to output."""

from __future__ import annotations

import argparse
import asyncio
import signal
from pathlib import Path

from loadtest.mock import MockServer
from loadtest.mock_answers import Manners
from loadtest.options import data_options, load_options, output_options, target_options
from loadtest.parity import measure
from loadtest.plan import make_plan, reach, warmup_job
from loadtest.result import About, vllm_result, write_json
from loadtest.run import Silent, run_here


async def run(args: argparse.Namespace) -> int:
    """`loadtest run`."""
    target, data, load, output = target_options(args), data_options(args), load_options(args), output_options(args)
    endpoint, served = await reach(target)
    plan = make_plan(target, data, load, endpoint, served)
    warmup = warmup_job(plan)
    if warmup is not None:
        await run_here(warmup, endpoint, Silent())
    finished = await run_here(plan.job, endpoint, Silent())
    records = finished.run.records
    parity = measure(records, finished.run.duration_s, output.percentiles, output.goodput_ms)
    print(parity)  # replaced by the text report
    about = About(
        api=target.api, url=endpoint.address.url, model=served.model, served_root=served.root,
        tokenizer=plan.tokens.source if plan.tokens else None, num_prompts=len(plan.job.prompts),
        max_concurrency=load.concurrency, request_rate=load.rate, burstiness=load.burstiness,
        label=output.label, metadata=output.metadata,
    )  # fmt: skip
    if output.json:
        write_json(Path(output.json), vllm_result(about, finished.run, parity, detailed=output.detailed))
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
