"""The command line: flags in, one function per subcommand, errors out as one line and a remedy."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import NoReturn, Protocol, TypeVar

import uvloop

from loadtest import __version__
from loadtest.cli import vllm_command
from loadtest.cli.flags import add_data_flags, add_fleet_flags, add_load_flags, add_output_flags, add_target_flags
from loadtest.cli.options import data_options, fleet_options, load_options, numbers, output_options, target_options
from loadtest.cli.values import LAST_PORT, MOST_WORKERS, above_zero, seconds, whole
from loadtest.commands.compare import compare
from loadtest.commands.mock import mock
from loadtest.commands.run import RunSpec, run
from loadtest.commands.search import SearchSpec, search
from loadtest.commands.selftest import selftest
from loadtest.data.datasets import DATASETS
from loadtest.errors import LoadTestError, UsageError
from loadtest.load.plan import DEFAULT_CONCURRENCY
from loadtest.load.run import InterruptedEarly
from loadtest.metrics.reference_results import PRESETS, QUICK_WAVES
from loadtest.mock.answers import MockConfig

T = TypeVar("T")


class Commands(Protocol):
    """What argparse gives for subcommands."""

    def add_parser(self, name: str, *, help: str, allow_abbrev: bool) -> argparse.ArgumentParser: ...  # noqa: A002  # argparse's own word


class Parser(argparse.ArgumentParser):
    """Argparse whose complaints are ours: one line, no usage dump."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise UsageError(message, f"See {self.prog} --help")


def build_parser(run_defaults: Mapping[str, object] | None = None) -> argparse.ArgumentParser:
    """All subcommands and their flags."""
    parser = Parser(prog="python -m loadtest", description="A load test for LLM endpoints.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="measure a server under one load", allow_abbrev=False)
    run.add_argument("--preset", choices=sorted(PRESETS), help="the published benchmark; other flags still win")
    run.add_argument("--quick", action="store_true", help="with --preset: three waves instead of sixteen")
    add_target_flags(run)
    add_data_flags(run, sorted(DATASETS))
    add_load_flags(run)
    add_fleet_flags(run)
    add_output_flags(run)
    vllm_command.add_flags(run)
    run.set_defaults(**(run_defaults or {}))
    _search_flags(commands)
    _other_flags(commands)
    _mock_flags(commands)
    return parser


def _search_flags(commands: Commands) -> None:
    search = commands.add_parser("search", help="the highest load that keeps its objectives", allow_abbrev=False)
    add_target_flags(search)
    add_data_flags(search, sorted(DATASETS))
    add_load_flags(search)
    add_output_flags(search)
    vllm_command.add_flags(search)
    search.add_argument("--what", choices=["concurrency", "rate"], default="concurrency", help="what to raise")
    search.add_argument("--from", dest="low", type=above_zero, default=None, help="lowest load (default 1, or 0.5 /s)")
    search.add_argument(
        "--to", dest="high", type=above_zero, default=None, help="highest load (default 1024, or 256 /s)"
    )
    search.add_argument(
        "--step-requests", type=whole(0), default=0, help="requests per step (default: 4 waves, at least 32)"
    )
    search.add_argument("--pause", type=seconds, default=2.0, metavar="S", help="rest between steps (default 2)")


def _other_flags(commands: Commands) -> None:
    compare = commands.add_parser("compare", help="two or more result files, with intervals", allow_abbrev=False)
    compare.add_argument("files", nargs="+", help="ours, vLLM's or aiperf's JSON; the first is the base")
    compare.add_argument("--md", help="the same as Markdown")
    check = commands.add_parser("selftest", help="what this client adds to a server's times", allow_abbrev=False)
    check.add_argument("--streams", default="32,128,512,1024", help="default 32,128,512,1024")
    check.add_argument("--chunks", type=whole(2), default=150, help="chunks per stream (default 150, 3 s)")
    check.add_argument(
        "--workers", type=whole(1, MOST_WORKERS), default=1, help="client processes (default 1: what one can do)"
    )
    check.add_argument(
        "--against", metavar="COMMAND", help="another client: run as COMMAND URL STREAMS CHUNKS under the same load"
    )
    check.add_argument("--rounds", type=whole(1), default=1, help="measure so often and give the medians (default 1)")
    check.add_argument("--json", help="file for the figures")


def _mock_flags(commands: Commands) -> None:
    mock = commands.add_parser("mock", help="a server with known times", allow_abbrev=False)
    mock.add_argument("--port", type=whole(0, LAST_PORT), default=8000)
    mock.add_argument("--first-ms", type=seconds, default=50.0, help="time to the first token (default 50)")
    mock.add_argument("--gap-ms", type=seconds, default=20.0, help="time between chunks (default 20)")
    mock.add_argument("--tokens-per-chunk", type=whole(1), default=1)
    mock.add_argument("--model", default="mock")
    mock.add_argument("--root", default="mock", help="the model's root in /v1/models")
    mock.add_argument("--api-key", default="")
    mock.add_argument("--max-inflight", type=whole(1), default=10**9, help="requests beyond wait their turn")
    mock.add_argument("--fail-every", type=whole(0), default=0)
    mock.add_argument("--fault", default="", choices=["", *FAULTS])


FAULTS = ("full", "unavailable", "error", "event", "cut", "short", "garbage", "silent")


def main(argv: Sequence[str]) -> int:
    """Run a command; the exit code is the error's (`errors.py`), 130 after an interrupt without a result."""
    try:
        return uvloop.run(command(read_args(argv)))
    except LoadTestError as wrong:
        print(f"loadtest: {wrong}", file=sys.stderr)
        return wrong.exit_code
    except BrokenPipeError:  # the reader of a pipe left, as `head` does; nobody is there to be told
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyboardInterrupt, InterruptedEarly):
        print("loadtest: interrupted before there was anything to report", file=sys.stderr)
        return 130


def read_args(argv: Sequence[str]) -> argparse.Namespace:
    """Parse, with a preset's values as defaults: flags that are given win over them."""
    args = build_parser().parse_args(argv)
    preset = getattr(args, "preset", None)
    if preset is None:
        if getattr(args, "quick", False):
            raise UsageError("--quick shortens a preset", "Name one with --preset")
    else:
        values = dict(PRESETS[preset])
        if args.quick:
            values["num_prompts"] = QUICK_WAVES * (args.concurrency or DEFAULT_CONCURRENCY)
        args = build_parser(values).parse_args(argv)
    if args.command in ("run", "search"):
        vllm_command.translate(args, datetime.now().astimezone())
    if args.command == "run":
        args.preset = args.preset or preset_of(args)
    return args


def command(args: argparse.Namespace) -> Coroutine[None, None, int]:
    """The subcommand, with its checked options."""
    if args.command == "mock":
        return mock(mock_config(args), args.port)
    if args.command == "selftest":
        streams = [int(number) for number in numbers(args.streams, "--streams")]
        if min(streams) < 1:
            raise UsageError("--streams must be at least 1")
        return selftest(
            streams,
            args.chunks,
            workers=args.workers,
            against=args.against,
            rounds=args.rounds,
            json_file=args.json,
        )
    if args.command == "compare":
        return compare(args.files, args.md)
    spec = run_options(args)
    if args.command == "search":
        return search(spec, SearchSpec(args.what, args.low, args.high, args.step_requests, args.pause))
    return run(replace(spec, fleet=fleet_options(args), preset=args.preset))


def run_options(args: argparse.Namespace) -> RunSpec:
    """What `run` and `search` share."""
    return RunSpec(target_options(args), data_options(args), load_options(args), output_options(args))


def mock_config(args: argparse.Namespace) -> MockConfig:
    """How the mock server behaves."""
    return MockConfig(
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


SHAPE = ("api", "dataset", "input_len", "output_len", "num_prompts", "concurrency")
"""What makes a run one of the published benchmark, whether it named the preset or said it flag by flag."""


def preset_of(args: argparse.Namespace) -> str | None:
    """The preset whose load the flags ask for, if any."""
    if args.rate < math.inf or args.phases or args.trace:
        return None
    same = (name for name, values in PRESETS.items() if all(getattr(args, key) == values[key] for key in SHAPE))
    return next(same, None)
