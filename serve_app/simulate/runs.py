"""Runs of policies over a trace: which plan, in which order, and the static fleet that the others are compared with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from serve_app.scaling import Bounds, Objective, Pace
from serve_app.simulate import results
from serve_app.simulate.fleet_model import FleetSpec, Scaler, SimulationResult, simulate
from serve_app.simulate.policies import ServeDelays, SloScaler, StaticScaler, requests_scaler, utilization_scaler
from serve_app.simulate.results import Figures
from serve_app.simulate.trace import TraceRequest

POLICIES = ("static", "slo", "utilization", "requests")

OnProgress = Callable[[str, float], None]
"""Hears what runs, and the part of it that is done."""


@dataclass(frozen=True)
class SimulationPlan:
    """What is simulated: the fleet, and the settings of all policies."""

    fleet: FleetSpec
    objective: Objective
    delays: ServeDelays
    pace: Pace
    target_load: float
    target_ongoing_requests: float

    def scaler(self, policy: str) -> Scaler:
        """A policy by its name. `static`: the most replicas that there may be."""
        engine, bounds = self.fleet.engine, Bounds(self.fleet.min_replicas, self.fleet.max_replicas)
        if policy == "utilization":
            return utilization_scaler(self.target_load, self.delays)
        if policy == "requests":
            return requests_scaler(self.target_ongoing_requests, self.delays)
        if policy == "static":
            return StaticScaler(bounds.maximum)
        return SloScaler(self.objective, bounds, self.pace, engine.start_s, engine.gap_s / engine.tokens_per_step)


@dataclass(frozen=True)
class PolicyRun:
    """A policy on a trace."""

    figures: Figures
    result: SimulationResult


def run_policies(
    requests: Sequence[TraceRequest], plan: SimulationPlan, policies: Sequence[str], on_progress: OnProgress
) -> list[PolicyRun]:
    """Each policy over the trace, `static` first if it is there: the others' replica-hours are compared with it."""
    found: list[PolicyRun] = []
    static_hours = None
    for policy in sorted(policies, key=lambda name: name != "static"):
        if policy == "static":
            found.append(fewest_static(requests, plan, on_progress))
            static_hours = found[0].figures.replica_hours
            continue
        result = simulate(requests, plan.fleet, plan.scaler(policy), partial(on_progress, policy))
        found.append(PolicyRun(results.figures(policy, result, plan.objective, static_hours), result))
    return found


def fewest_static(requests: Sequence[TraceRequest], plan: SimulationPlan, on_progress: OnProgress) -> PolicyRun:
    """The static fleet with the fewest replicas that attains what is asked; with the most, if none does."""
    tried: dict[int, PolicyRun] = {}

    def attempt(number: int) -> PolicyRun:
        fleet = replace(plan.fleet, min_replicas=number, max_replicas=number)
        name = f"static, {number} replicas"
        result = simulate(requests, fleet, StaticScaler(number), lambda done: on_progress(name, done))
        found = results.figures(name, result, plan.objective)
        tried[number] = PolicyRun(replace(found, of_static_ratio=1.0), result)
        return tried[number]

    low, high = min(_least(requests, plan), plan.fleet.max_replicas), plan.fleet.max_replicas
    while low < high:
        # Most traces need few more than the least: that is looked at first, and costs the least time.
        middle = min(low + (2 if not tried else (high - low) // 2), high - 1)
        if attempt(middle).figures.attainment_ratio >= results.ASKED_ATTAINMENT:
            high = middle
        else:
            low = middle + 1
    return tried.get(low) or attempt(low)


def _least(requests: Sequence[TraceRequest], plan: SimulationPlan) -> int:
    """So many replicas at least compute the prompts in the time of the trace, if nothing is computed twice."""
    tokens = sum(one.prompt_tokens - one.prefix_tokens for one in requests)
    period_s = max(requests[-1].arrival_s, 1.0)
    return max(math.floor(tokens / plan.fleet.engine.prefill_tokens_per_s / period_s), 1)
