"""The command line: `make bench`, or `python -m bench --help`."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import report, start, time_split, tracing, zero
from bench.canary import command as canary
from bench.client import RunFailed
from bench.fairness import command as fairness
from bench.front_end import command as front_end
from bench.many import command as many
from bench.measure import BenchLoad, measure
from bench.routing import command as routing
from bench.servers import BARE, OURS, PROXY, WITHOUT_DRAFTS, StartFailed, Topology, ours
from bench.simulate import command as simulate

QUICK = BenchLoad(prompts=32, rounds=1)

COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "canary": canary.main,
    "fairness": fairness.main,
    "front-end": front_end.main,
    "many": many.main,
    "routing": routing.main,
    "simulate": simulate.main,
    "start": start.main,
    "time-split": time_split.main,
    "tracing": tracing.main,
    "zero": zero.main,
}
"""What has a command line of its own."""


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 if the targets are met, 1 if not or if a run failed."""
    words = list(sys.argv[1:] if argv is None else argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: runs the `with` blocks' exits
    if words and words[0] in COMMANDS:
        return COMMANDS[words[0]](words[1:])
    options = _parser().parse_args(words)
    default = QUICK if options.quick else BenchLoad()
    load = BenchLoad(prompts=options.prompts or default.prompts, rounds=options.rounds or default.rounds)
    try:
        settings = {} if options.drafts else WITHOUT_DRAFTS
        result = measure(_topologies(options), load, settings, lambda line: print(line, file=sys.stderr, flush=True))
    except (StartFailed, RunFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.json:
        options.json.write_text(json.dumps(report.as_json(result), indent=1) + "\n", encoding="utf-8")
    print(report.as_text(result))
    return 0 if all(target.is_met for target in report.targets(result)) else 1


def _topologies(options: argparse.Namespace) -> list[Topology]:
    chosen = [BARE, OURS]
    if not options.no_proxy:
        chosen.append(PROXY)
    if options.replicas > 1:
        chosen.append(ours(f"ours-x{options.replicas}", replicas=options.replicas))
    for setting in options.variant:
        name, _, value = setting.partition("=")
        chosen.append(ours(f"ours {setting}", environment={name: value}))
    return chosen


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Compares ours with the bare vLLM server and Ray Serve's default path, in turn on this machine.",
    )
    parser.add_argument(
        "--quick", action="store_true", help="one round of 32 prompts: shows that it works, not how fast"
    )
    parser.add_argument("--rounds", type=int, help="every topology is measured once per round (default 3)")
    parser.add_argument("--prompts", type=int, help="prompts per run (default 96)")
    parser.add_argument("--replicas", type=int, default=1, help="also measure ours with this many engine replicas")
    parser.add_argument("--drafts", action="store_true", help="with MTP, as the profile has it (default: without)")
    parser.add_argument("--no-proxy", action="store_true", help="leave out Ray Serve's default path")
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="also measure ours with this environment variable set (to try a setting of Ray's or vLLM's)",
    )
    parser.add_argument("--json", type=Path, help="also write every figure to this file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
