"""`python -m serve_app simulate`: the command line."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from serve_app.scaling import Objective, Pace
from serve_app.simulate import compare, generators, results, trace
from serve_app.simulate.engine_model import EngineSpec
from serve_app.simulate.fleet_model import FleetSpec, simulate
from serve_app.simulate.policies import ServeDelays
from serve_app.simulate.runs import POLICIES, PolicyRun, SimulationPlan, run_policies
from serve_app.simulate.trace import BadTrace, TraceRequest

TABLE_WIDTH = 120
STANDARD_TRACES = ["day", "bursts", "agents"]

Say = Callable[[str], None]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    add = parser.add_argument
    names = ", ".join(generators.GENERATORS)
    add("--trace", nargs="+", default=STANDARD_TRACES, help=f"{names}, or JSONL files (default: the first three)")
    add("--access-log", nargs="+", type=Path, metavar="FILE", help="instead: a trace recorded by the ingresses")
    add("--compare", action="store_true", help="with --access-log: how near the model is to what was recorded")
    add("--replica-seconds", type=float, metavar="S", help="with --compare: those of the recorded run")
    add("--policies", nargs="+", choices=POLICIES, default=POLICIES, metavar="POLICY", help=f"of {', '.join(POLICIES)}")
    add("--decisions", action="store_true", help="list the decisions of each policy, with their reasons")
    add("--json", type=Path, metavar="FILE", help="also write every figure and decision to this file")
    add("--save-trace", type=Path, metavar="FILE", help="only write the trace; the load test replays it, too")
    add("--seed", type=int, default=0, help="of the standard traces (default 0)")
    _number(parser, "--ttft-p95-s", 5.0, "objective: the time to the first token")
    _number(parser, "--tpot-p95-s", 0.06, "objective: the time of each further token")
    _add_scaling_flags(parser)
    _add_engine_flags(parser)


def _add_scaling_flags(parser: argparse.ArgumentParser) -> None:
    _number(parser, "--min", 1, "fewest replicas")
    _number(parser, "--max", 12, "most replicas")
    _number(parser, "--target-load", 0.7, "of the policy `utilization`")
    _number(parser, "--target-ongoing-requests", 2.0, "of the policy `requests`; this is Serve's own default")
    _number(parser, "--upscale-delay-s", 30.0, "how long `utilization` and `requests` must want more replicas")
    _number(parser, "--downscale-delay-s", 600.0, "how long they must want fewer")
    _number(parser, "--slo-upscale-delay-s", 30.0, "the same of `slo`, which waits only for what may be chance")
    _number(parser, "--slo-downscale-delay-s", 300.0, "and how long fewer must have been enough")
    _number(parser, "--overhead-s", 0.0, "what the front end adds to a first token")


def _add_engine_flags(parser: argparse.ArgumentParser) -> None:
    engine = parser.add_argument_group("the engine", EngineSpec.__doc__)
    for name, default in _engine_numbers().items():
        _number(engine, f"--{name.replace('_', '-')}", default, "")


def _number(parser: argparse._ActionsContainer, flag: str, default: float, about: str) -> None:
    about = f"{about} (default {default:,})".strip()
    parser.add_argument(flag, type=type(default), default=default, metavar="N", help=about)


def _engine_numbers() -> dict[str, float]:
    return {name: value for name, value in asdict(EngineSpec()).items() if not isinstance(value, bool)}


def run(options: argparse.Namespace, say: Say) -> int:
    """Returns the exit status: 0 where all was done, 1 where a trace cannot be read or the model is not near."""
    try:
        plan = plan_of(options)
        if options.compare:
            return _compare(options, plan, say)
        traces = _traces(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.save_trace:
        for requests in traces.values():
            trace.write_trace(options.save_trace, requests)
        return 0
    found = {name: _one_trace(name, requests, plan, options, say) for name, requests in traces.items()}
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def plan_of(options: argparse.Namespace) -> SimulationPlan:
    """The plan that the flags mean. Raises ValueError."""
    if not 0 < options.min <= options.max:
        raise ValueError(f"--min {options.min} and --max {options.max}: at least one, and in this order")
    engine = EngineSpec(**{name: getattr(options, name) for name in _engine_numbers()})
    for name in ("prefill_tokens_per_s", "gap_s", "tokens_per_step", "max_num_seqs", "max_num_batched_tokens"):
        if getattr(engine, name) <= 0:
            raise ValueError(f"--{name.replace('_', '-')} must be above 0")
    tick_s = min(10.0, max(options.upscale_delay_s / 3, 0.5))  # as app.py has it
    fleet = FleetSpec(
        engine, min_replicas=options.min, max_replicas=options.max, tick_s=tick_s, overhead_s=options.overhead_s
    )
    delays = ServeDelays(3 * tick_s, options.upscale_delay_s, options.downscale_delay_s)
    objective = Objective(options.ttft_p95_s, options.tpot_p95_s)
    pace = Pace(options.slo_upscale_delay_s, options.slo_downscale_delay_s)
    return SimulationPlan(fleet, objective, delays, pace, options.target_load, options.target_ongoing_requests)


def _traces(options: argparse.Namespace) -> dict[str, list[TraceRequest]]:
    if options.access_log:
        return {"access log": trace.read_access_log(options.access_log).requests}
    if options.save_trace and len(options.trace) > 1:
        raise BadTrace("--save-trace writes one trace: name it with --trace")
    made = generators.GENERATORS
    unknown = [name for name in options.trace if name not in made and not Path(name).is_file()]
    if unknown:
        raise BadTrace(f"{unknown[0]} is no file, and none of {', '.join(made)}")
    return {name: made[name](options.seed) if name in made else trace.read_trace(Path(name)) for name in options.trace}


def _one_trace(
    name: str, requests: list[TraceRequest], plan: SimulationPlan, options: argparse.Namespace, say: Say
) -> dict[str, object]:
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(name, total=1.0)

        def on_progress(policy: str, done: float) -> None:
            progress.update(task, description=f"{name}: {policy}", completed=done)

        found = run_policies(requests, plan, options.policies, on_progress)
    console = Console(width=TABLE_WIDTH)
    console.print(results.as_table(_title(name, requests, plan), [one.figures for one in found]))
    for one in found:
        if one.figures.policy == "slo":
            say(results.verdict(one.figures))
    if options.decisions:
        _say_decisions(found, say)
    return {
        "trace": trace.facts(requests),
        "policies": [asdict(one.figures) for one in found],
        "decisions": {one.figures.policy: [asdict(event) for event in one.result.scale_events] for one in found},
    }


def _say_decisions(found: Sequence[PolicyRun], say: Say) -> None:
    for one in found:
        for event in one.result.scale_events:
            change = "" if event.reason.startswith("scaled") else f"scaled {event.before} -> {event.after}: "
            say(f"{one.figures.policy:12} {event.at_s / 60:7.1f} min  {change}{event.reason}")


def _title(name: str, requests: list[TraceRequest], plan: SimulationPlan) -> str:
    told = trace.facts(requests)
    objective = plan.objective
    return (
        f"{name}: {told['requests']:,} requests in {told['hours']:.1f} h, {told['prompt_tokens']:,.0f} tokens in "
        f"({told['prefix_ratio']:.0%} of them said before) and {told['output_tokens']:,.0f} out; "
        f"objective: TTFT {objective.ttft_p95_s:g} s, TPOT {objective.tpot_p95_s:g} s"
    )


def _compare(options: argparse.Namespace, plan: SimulationPlan, say: Say) -> int:
    if not options.access_log:
        raise BadTrace("--compare needs --access-log")
    if len(options.policies) != 1 and options.min != options.max:
        raise BadTrace("--compare needs the policy of the recorded run: --policies POLICY, or --min and --max alike")
    recorded = trace.read_access_log(options.access_log)
    policy = options.policies[0] if options.min != options.max else "static"
    result = simulate(recorded.requests, plan.fleet, plan.scaler(policy))
    found = compare.comparisons(recorded.served, result, options.replica_seconds)
    Console(width=TABLE_WIDTH).print(compare.as_table(f"{len(recorded.served)} requests, {policy}", found))
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n", encoding="utf-8")
    far = [one.name for one in found if not one.is_near]
    say(f"the model is within {compare.NEAR:.0%}" if not far else f"not within {compare.NEAR:.0%}: {', '.join(far)}")
    return 1 if far else 0
