"""The flags of `run` (shared by `search`) and what they become: one frozen object, checked as a whole."""

from __future__ import annotations

import argparse
import math
import os

import msgspec

from loadtest.api.requests import Api
from loadtest.cli.values import MOST_WORKERS
from loadtest.data.prompt import DatasetSpec, Json
from loadtest.errors import UsageError
from loadtest.fleet.poller import FleetSpec
from loadtest.load.plan import TargetSpec
from loadtest.load.schedule import LoadSpec
from loadtest.metrics.summary import SummarySpec
from loadtest.report.files import OutputSpec

RATIOS = 2
"""Of prompts and of answers."""
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty")


def fleet_options(args: argparse.Namespace) -> FleetSpec:
    """Checked flags about the fleet."""
    events = []
    for item in args.at:
        moment, colon, command = item.partition(":")
        if not colon or not moment.strip().rstrip("s").replace(".", "", 1).isdigit():
            raise UsageError(f"not SECONDS:COMMAND: {item!r}", "Write e.g. --at '30:kill 1234'")
        events.append((float(moment.strip().rstrip("s")), command))
    token = args.ray_token or os.environ.get("RAY_AUTH_TOKEN")
    return FleetSpec(args.ray_dashboard, token, args.server_metrics, tuple(events))


def target_options(args: argparse.Namespace) -> TargetSpec:
    """Checked flags about the server."""
    headers = pairs(args.header, "--header")
    key = args.api_key or os.environ.get("OPENAI_API_KEY")
    if key:
        headers.setdefault("Authorization", f"Bearer {key}")
        if args.api == Api.MESSAGES.value:
            headers.setdefault("x-api-key", key)
    if args.api == Api.MESSAGES.value:
        headers.setdefault("anthropic-version", "2023-06-01")
    return TargetSpec(
        url=args.url,
        model=args.model,
        api=Api(args.api),
        headers=headers,
        verify=not args.insecure,
        ca_file=args.ca_file,
        tokenizer=args.tokenizer,
        timeout_s=args.timeout,
        reuse_connections=not args.new_connections,
    )


def data_options(args: argparse.Namespace) -> DatasetSpec:
    """Checked flags about prompts."""
    ratios = numbers(args.range_ratio, "--range-ratio")
    width, _, height = args.image_size.partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise UsageError(f"not a size: {args.image_size!r}", "Write --image-size 448x448")
    if not all(0 <= ratio < 1 for ratio in ratios) or len(ratios) > RATIOS:
        raise UsageError(
            f"not a spread: {args.range_ratio!r}", "Write --range-ratio 0.2, or 0.2,0.5: from 0 to below 1"
        )
    sampling = {name: getattr(args, name) for name in SAMPLING if getattr(args, name) is not None}
    return DatasetSpec(
        dataset=args.dataset,
        file=args.data_file,
        num_prompts=args.num_prompts,
        input_len=args.input_len,
        output_len=args.output_len,
        input_range_ratio=ratios[0],
        output_range_ratio=ratios[-1],
        prefix_len=args.prefix_len,
        prefixes=args.prefixes,
        turns=args.turns,
        think_s=args.think_time,
        images=args.images,
        image_size=(int(width), int(height)),
        seed=args.seed,
        ignore_eos=args.ignore_eos,
        extra_body={**sampling, **json_object(args.extra_body, "--extra-body")},
        session_header=args.session_header,
    )


def load_options(args: argparse.Namespace) -> LoadSpec:
    """Checked flags about the load."""
    ways = [args.rate < math.inf, bool(args.phases), bool(args.trace)]
    if sum(ways) > 1:
        raise UsageError("--request-rate, --phases and --trace exclude each other", "Choose one")
    return LoadSpec(
        concurrency=args.concurrency,
        rate=args.rate,
        burstiness=args.burstiness,
        phases=args.phases,
        trace=args.trace,
        trace_speed=args.trace_speed,
        duration_s=args.duration,
        warmup=args.warmup,
        workers=processes(args.workers),
    )


def output_options(args: argparse.Namespace) -> OutputSpec:
    """Checked flags about output."""
    goodput = {}
    for item in args.goodput:
        name, _, limit = item.partition(":")
        if name not in ("ttft", "tpot", "e2el") or not limit.replace(".", "", 1).isdigit():
            raise UsageError(f"not a goodput limit: {item!r}", "Write e.g. --goodput ttft:3000 tpot:30")
        goodput[name] = float(limit)
    for flag, said in (("--slo", [args.slo]), ("--assert", args.assertions)):
        if any(text is not None and not text.strip() for text in said):  # a variable that was not set, in CI
            raise UsageError(f"{flag} is empty", f"Write e.g. {flag} 'ttft_p99<3s'")
    percentiles = numbers(args.percentiles, "--metric-percentiles")
    if not all(0 <= percentile <= 100 for percentile in percentiles):
        raise UsageError(f"--metric-percentiles are from 0 to 100, not {args.percentiles!r}")
    return OutputSpec(
        summary=SummarySpec(tuple(percentiles), goodput, args.slo),
        assertions=tuple(args.assertions),
        json=args.json,
        csv=args.csv,
        md=args.md,
        html=args.html,
        detailed=args.detailed,
        keep_text=args.keep_text,
        label=args.label,
        metadata=pairs(args.metadata, "--metadata"),
        live=args.live,
        quiet=args.quiet,
    )


def processes(text: str) -> int | None:
    """`auto` or a number of client processes."""
    if text == "auto":
        return None
    if not text.isdigit() or not 1 <= int(text) <= MOST_WORKERS:
        raise UsageError(
            f"not a number of processes: {text!r}", f"Write --workers auto, or a number from 1 to {MOST_WORKERS}"
        )
    return int(text)


def pairs(items: list[str], flag: str) -> dict[str, str]:
    """`NAME=VALUE` items."""
    out = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals or not name.strip() or not item.isprintable():
            raise UsageError(f"not NAME=VALUE: {item!r}", f"Write e.g. {flag} name=value")
        out[name.strip()] = value.strip()
    return out


def numbers(text: str, flag: str) -> list[float]:
    """Comma-separated numbers, at least one."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as bad:
        raise UsageError(f"{flag} takes numbers, not {text!r}") from bad


def json_object(text: str, flag: str) -> dict[str, Json]:
    """A JSON object."""
    try:
        found = msgspec.json.decode(text.encode())
    except msgspec.DecodeError as bad:
        raise UsageError(f"{flag} is not JSON: {bad}", f"""Write e.g. {flag} '{{"top_k": 1}}'""") from bad
    if not isinstance(found, dict):
        raise UsageError(f"{flag} must be a JSON object")
    return found
