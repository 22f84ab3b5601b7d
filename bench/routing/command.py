"""`python -m bench routing`: routing policies side by side."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.routing import virtual_time
from bench.routing.scenario import Change, Figures, Run, Scenario, scenarios
from bench.routing.workload import Shape
from serve_app.router.routing import RoutingPolicy

POLICIES = (RoutingPolicy.COST, RoutingPolicy.SESSION_HASH, RoutingPolicy.ROUND_ROBIN, RoutingPolicy.POWER_OF_TWO)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 when every scenario was run."""
    options = _parser().parse_args(argv)
    base = Scenario(
        RoutingPolicy.COST,
        sessions=options.sessions,
        duration_s=options.duration_s,
        seed=options.seed,
        shape=Shape(scale=options.scale),
    )
    base = replace(base, size=replace(base.size, replicas=options.replicas))
    named = {"yes": [True], "no": [False], "both": [True, False]}[options.session_ids]
    found = []
    for scenario in scenarios(options.policies, options.changes, named, base):
        began_s = time.monotonic()
        found.append((scenario, virtual_time.run(Run(scenario)())))
        print(f"{_name(scenario)}: {time.monotonic() - began_s:.0f} s", file=sys.stderr, flush=True)
    if options.json:
        rows = [{"scenario": asdict(scenario), "figures": asdict(figures)} for scenario, figures in found]
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    Console(width=120).print(as_table(found))
    return 0


def as_table(found: Iterable[tuple[Scenario, Figures]]) -> Table:
    """One line for each run."""
    table = Table("scenario", "session ids", "policy", title="Routing of agents' sessions")
    for heading in ("turns/s", "cached", "of oracle", "TTFT p50", "p95", "max/mean load"):
        table.add_column(heading, justify="right")
    last = None
    for scenario, figures in found:
        group = (scenario.change, scenario.named)
        if last not in (None, group):
            table.add_section()
        last = group
        table.add_row(
            scenario.change,
            "yes" if scenario.named else "no",
            scenario.policy,
            f"{figures.turns_per_s:.2f}",
            f"{figures.hit_ratio:.1%}",
            f"{figures.of_oracle:.3f}",
            f"{figures.ttft_p50_s:.2f} s",
            f"{figures.ttft_p95_s:.2f} s",
            f"{figures.imbalance:.2f}",
        )
    return table


def _name(scenario: Scenario) -> str:
    return f"{scenario.change}, {'with' if scenario.named else 'without'} ids, {scenario.policy}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench routing",
        description="Compares routing policies: agents' sessions over fake engines with caches, in virtual time.",
    )
    parser.add_argument("--policies", nargs="+", type=RoutingPolicy, default=POLICIES, metavar="POLICY")
    parser.add_argument("--changes", nargs="+", type=Change, default=tuple(Change), metavar="CHANGE")
    parser.add_argument("--session-ids", choices=("yes", "no", "both"), default="no")
    parser.add_argument("--sessions", type=int, default=64, help="at a time (default 64)")
    parser.add_argument("--replicas", type=int, default=4, help="engines (default 4)")
    parser.add_argument("--duration-s", type=float, default=1800.0, help="virtual seconds of a run (default 1800)")
    parser.add_argument("--scale", type=float, default=0.25, help="of all token counts and rates (default 0.25)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write every figure to this file")
    return parser
