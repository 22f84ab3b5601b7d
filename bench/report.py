"""The figures as a table and as JSON, and the targets for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from bench.cpu import ENGINE
from bench.measure import BenchResult, BenchRun
from bench.servers import BARE, OURS

MIN_SPEED = 0.76
"""Share of the bare server's tokens per second. The rest is CPU time of the processes that a fleet needs."""
MAX_CPU = 2.0
"""Multiple of the bare server's front-end CPU."""


@dataclass(frozen=True)
class BenchTarget:
    """A target for our topology, and the measured figure."""

    text: str
    found: float
    is_met: bool


def ratios(result: BenchResult, name: str, figure: Callable[[BenchRun], float]) -> list[float]:
    """The topology's figure as a multiple of the bare server's in the same round, per round."""
    bare = {run.round: figure(run) for run in result.runs if run.topology == BARE.name}
    return [figure(run) / bare[run.round] for run in result.runs if run.topology == name and bare[run.round]]


def speed(run: BenchRun) -> float:
    """Output tokens per second."""
    return run.output_tok_per_s


def front_end(run: BenchRun) -> float:
    """Front-end CPU seconds for 1,000 output tokens."""
    return run.front_end_cpu_s_per_1k


def above_idle(result: BenchResult, run: BenchRun) -> float:
    """Front-end CPU seconds for 1,000 output tokens, less its CPU time without load. No role counts as less than
    nothing: what is idle work without load may be left out under load."""
    idle = result.idle_cores[run.topology]
    roles = (role for role in run.cpu_s if role != ENGINE)
    above_s = (max(0.0, run.cpu_s[role] - idle.get(role, 0.0) * run.duration_s) for role in roles)
    return sum(above_s) * 1000 / run.output_tokens


def targets(result: BenchResult) -> list[BenchTarget]:
    """The targets for `ours`; none if it was not measured."""
    fast, cheap = ratios(result, OURS.name, speed), ratios(result, OURS.name, front_end)
    if not fast or not cheap:
        return []
    return [
        BenchTarget(f"output tok/s, at least {MIN_SPEED} of bare", median(fast), median(fast) >= MIN_SPEED),
        BenchTarget(f"front-end CPU, at most {MAX_CPU:g} times bare", median(cheap), median(cheap) <= MAX_CPU),
    ]


def as_text(result: BenchResult) -> str:
    """All figures as text."""
    load = result.load
    lines = [
        f"{load.prompts} prompts of {load.input_tokens} tokens, {load.output_tokens} out, {load.streams} at a time;",
        f"medians of {load.rounds} round(s); ratios are to `bare` in the same round.",
        "",
        *_table(result),
        "",
        *_rounds(result),
        "",
        *_by_role(result),
        "",
        *(
            f"{'MET   ' if target.is_met else 'MISSED'}  {target.text}: {target.found:.2f}"
            for target in targets(result)
        ),
    ]
    return "\n".join(lines)


def _table(result: BenchResult) -> list[str]:
    width = max(len(topology.name) for topology in result.topologies)
    columns = "output tok/s  median TTFT ms  median ITL ms  CPU s per 1k  (less idle)  speed ratio  CPU ratio"
    lines = [f"{'topology':<{width}}  {columns}"]
    for topology in result.topologies:
        runs = [run for run in result.runs if run.topology == topology.name]
        lines.append(
            f"{topology.name:<{width}}  {median(map(speed, runs)):>12,.0f}"
            f"  {median(run.median_ttft_ms for run in runs):>14.0f}"
            f"  {median(run.median_itl_ms for run in runs):>13.1f}"
            f"  {median(map(front_end, runs)):>12.3f}"
            f"  {median(above_idle(result, run) for run in runs):>11.3f}"
            f"  {median(ratios(result, topology.name, speed)):>11.2f}"
            f"  {median(ratios(result, topology.name, front_end)):>9.2f}"
        )
    return [*lines, "", *(f"{topology.name:<{width}}  {topology.about}" for topology in result.topologies)]


def _rounds(result: BenchResult) -> list[str]:
    lines = ["Ratios per round (speed / CPU):"]
    for topology in result.topologies:
        if topology.name == BARE.name:
            continue
        pairs = zip(ratios(result, topology.name, speed), ratios(result, topology.name, front_end), strict=True)
        lines.append(f"  {topology.name}: " + ", ".join(f"{fast:.2f} / {cost:.2f}" for fast, cost in pairs))
    return lines


def _by_role(result: BenchResult) -> list[str]:
    lines = ["CPU ms per 1,000 output tokens, by process (CPU ms per second without load):"]
    for topology in result.topologies:
        runs = [run for run in result.runs if run.topology == topology.name]
        idle = result.idle_cores[topology.name]
        roles = sorted({role for run in runs for role in run.cpu_s}, key=lambda role: (role == ENGINE, role))
        parts = [
            f"{role} {median(run.cpu_s.get(role, 0.0) * 1e6 / run.output_tokens for run in runs):.0f}"
            f" ({idle.get(role, 0.0) * 1000:.0f})"
            for role in roles
        ]
        lines.append(f"  {topology.name}: " + ", ".join(parts))
    return lines


def as_json(result: BenchResult) -> dict[str, object]:
    """All figures for JSON."""
    return {
        **dataclasses.asdict(result),
        "ratios": {
            topology.name: {
                "output_tok_per_s": ratios(result, topology.name, speed),
                "front_end_cpu_s_per_1k": ratios(result, topology.name, front_end),
            }
            for topology in result.topologies
        },
        "targets": [dataclasses.asdict(target) for target in targets(result)],
    }
