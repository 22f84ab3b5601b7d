"""The command line: flags in, one function per subcommand, errors out as one line and a remedy."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import NoReturn

import uvloop

from loadtest import __version__
from loadtest.cli import options, vllm_command
from loadtest.cli.flags import FlagGroup
from loadtest.commands.compare import compare
from loadtest.commands.mock import mock
from loadtest.commands.run import run
from loadtest.commands.search import SearchSpec, search
from loadtest.commands.selftest import SelfTestSpec, selftest
from loadtest.data.agents import AGENTS_PRESET
from loadtest.errors import LoadTestError, UsageError
from loadtest.load.plan import DEFAULT_CONCURRENCY
from loadtest.load.runner import InterruptedEarly
from loadtest.metrics.reference_results import PRESETS, QUICK_WAVES
from loadtest.mock.answers import MockConfig

LOADED = (options.TARGET, options.DATA, options.AGENTS, options.LOAD)
MEASURED = (options.SUMMARY, options.OUTPUT, vllm_command.FLAGS)
COMMANDS: Mapping[str, tuple[str, tuple[FlagGroup, ...]]] = {
    "run": ("measure a server under one load", (options.PRESET, *LOADED, options.FLEET, *MEASURED)),
    "search": ("find the highest load that meets objectives", (options.SEARCH, *LOADED, *MEASURED)),
    "compare": ("compare result files, with intervals", (options.COMPARE,)),
    "selftest": ("measure what this client adds to a server's times", (options.SELFTEST,)),
    "mock": ("run a server with known times", (options.MOCK,)),
}
BENCHMARK_FLAGS = ("api", "dataset", "input_len", "output_len", "num_prompts", "concurrency")
"""A run with a preset's values of these is a run of that benchmark, with or without --preset."""


class Parser(argparse.ArgumentParser):
    """Reports errors as this tool does: one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise UsageError(message, f"See {self.prog} --help")


def build_parser(run_defaults: Mapping[str, object] | None = None) -> argparse.ArgumentParser:
    """All commands and their flags."""
    parser = Parser(prog="python -m loadtest", description="A load test for LLM endpoints.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (text, groups) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False)
        for group in groups:
            group.add_to(command)
        if name == "compare":
            command.add_argument(
                "files", nargs="+", help="JSON files of this tool, vLLM or aiperf; the first is the base"
            )
        elif name == "run":
            command.set_defaults(**(run_defaults or {}))
    return parser


def main(argv: Sequence[str]) -> int:
    """Run a command. The exit code is the error's (`errors.py`), or 130 after an interrupt without a result."""
    try:
        return uvloop.run(command(read_args(argv)))
    except LoadTestError as error:
        print(f"loadtest: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader of the pipe has ended, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyboardInterrupt, InterruptedEarly):
        print("loadtest: interrupted before there was anything to report", file=sys.stderr)
        return 130


def read_args(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the flags. A preset's values are defaults, which flags override."""
    args = build_parser().parse_args(argv)
    preset = getattr(args, "preset", None)
    if preset is None:
        if getattr(args, "quick", False):
            raise UsageError("--quick shortens a preset", "Name one with --preset")
    else:
        values = dict(AGENTS_PRESET if preset == "agents" else PRESETS[preset])
        if args.quick and preset == "agents":
            raise UsageError("--quick shortens the published benchmark", "Use --total-sessions or --duration")
        if args.quick:
            values["num_prompts"] = QUICK_WAVES * (args.concurrency or DEFAULT_CONCURRENCY)
        args = build_parser(values).parse_args(argv)
    if args.command in ("run", "search"):
        vllm_command.translate(args, datetime.now().astimezone())
    if args.command == "run":
        args.preset = args.preset or _matching_preset(args)
    return args


def _matching_preset(args: argparse.Namespace) -> str | None:
    """The preset whose load the flags describe, if any."""
    if args.rate < math.inf or args.phases or args.trace:
        return None
    return next((n for n, v in PRESETS.items() if all(getattr(args, key) == v[key] for key in BENCHMARK_FLAGS)), None)


def command(args: argparse.Namespace) -> Coroutine[None, None, int]:
    """The command with its specification."""
    match args.command:
        case "mock":
            return mock(MockConfig(**options.MOCK.values(args)), args.port)
        case "selftest":
            return selftest(SelfTestSpec(**options.SELFTEST.values(args)))
        case "compare":
            return compare(args.files, args.md)
        case "search":
            return search(options.run_spec(args), SearchSpec(**options.SEARCH.values(args)))
        case _:
            published = args.preset if args.preset in PRESETS else None
            return run(replace(options.run_spec(args), fleet=options.fleet_spec(args), preset=published))
