"""What the policy remembers of the fleet: what engines do, how much arrives, and how few engines would have done."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

from serve_app.scaling.facts import Arrivals, EngineRates, FleetFacts, Pace, ReplicaFacts, ScalingState

SAMPLES_PER_WINDOW = 20

TREND_SIGNIFICANCE = 2.0
"""Arrivals of two windows that differ by less than so many standard deviations of their count show no trend."""

TREND_LIMIT = 2.0
"""A trend is followed up to so many times the present rate: a start takes minutes, and few rises go on for so long."""

LEAST_KV_RATIO = 0.02
"""A cache that is emptier says little about what a sequence takes of it."""


def remember(facts: FleetFacts, state: ScalingState, pace: Pace) -> ScalingState:
    """The state with what the facts add to it."""
    kept = [one for one in state.arrivals if one.at_s <= facts.now_s]
    if not kept or facts.now_s - kept[-1].at_s >= pace.rate_window_s / SAMPLES_PER_WINDOW:
        kept.append(Arrivals(facts.now_s, facts.arrived_requests, facts.arrived_prefill_tokens))
    oldest_s = facts.now_s - 2 * pace.rate_window_s
    while len(kept) > 1 and kept[1].at_s <= oldest_s:
        del kept[0]
    since_s = facts.now_s if state.since_s is None else min(state.since_s, facts.now_s)
    return replace(state, rates=engine_rates(facts.replicas, state.rates), arrivals=tuple(kept), since_s=since_s)


def engine_rates(replicas: Iterable[ReplicaFacts], before: EngineRates | None) -> EngineRates | None:
    """The means over the replicas that know; what none of them knows stays as it was. None: nothing was ever known."""
    found = list(replicas)
    if not found:
        return before

    def mean(value: Callable[[ReplicaFacts], float | None], previous: float | None) -> float | None:
        known = [one for one in map(value, found) if one is not None]
        return sum(known) / len(known) if known else previous

    old = before or EngineRates(0.0)
    running, usage = sum(one.running for one in found), sum(one.kv_usage_ratio for one in found)
    known = running > 0 and usage > LEAST_KV_RATIO * len(found)
    return EngineRates(
        slots=max(sum(one.slots for one in found) / len(found), 1.0),
        prefill_tokens_per_s=mean(lambda one: one.prefill_tokens_per_s or None, old.prefill_tokens_per_s),
        service_s=mean(lambda one: one.service_s, old.service_s),
        tpot_base_s=mean(lambda one: one.tpot_base_s, old.tpot_base_s),
        tpot_per_sequence_s=mean(lambda one: one.tpot_per_sequence_s, old.tpot_per_sequence_s),
        kv_per_sequence_ratio=usage / running if known else old.kv_per_sequence_ratio,
    )


def arrival_rates(facts: FleetFacts, state: ScalingState, pace: Pace) -> tuple[float, float]:
    """Requests and prompt tokens a second that are expected a start time from now: as lately, or more if they rise."""
    now = Arrivals(facts.now_s, facts.arrived_requests, facts.arrived_prefill_tokens)
    window_s = pace.rate_window_s
    middle, begin = (_at(state.arrivals, facts.now_s - count * window_s) for count in (1, 2))
    if middle is None or begin is None:
        return 0.0, 0.0
    # A policy that has just begun divides by half a window at least: one request is no rate.
    seconds = max(now.at_s - middle.at_s, window_s / 2)
    requests, tokens = now.requests - middle.requests, now.prefill_tokens - middle.prefill_tokens
    earlier = middle.requests - begin.requests
    growth = 1.0
    whole_windows = now.at_s - begin.at_s >= 2 * window_s * (1 - 1 / SAMPLES_PER_WINDOW)
    if whole_windows and requests - earlier > TREND_SIGNIFICANCE * math.sqrt(requests + earlier):
        rise_per_s = (requests - earlier) / requests / window_s
        growth = min(1 + rise_per_s * (facts.start_s + window_s / 2), TREND_LIMIT)
    return max(requests, 0.0) / seconds * growth, max(tokens, 0.0) / seconds * growth


def note_enough(state: ScalingState, now_s: float, engines: int, window_s: float) -> ScalingState:
    """The state with the number that would be enough now, and without those that are older than the window."""
    kept = [one for one in state.enough if now_s - window_s <= one[0] <= now_s and one[1] > engines]
    return replace(state, enough=(*kept, (now_s, engines)))


def enough_for_window(state: ScalingState) -> int:
    """The number that would have been enough all the time."""
    return max((engines for _, engines in state.enough), default=0)


def _at(arrivals: tuple[Arrivals, ...], at_s: float) -> Arrivals | None:
    """What had arrived then, between two samples in proportion; the oldest sample if none is as old."""
    later: Arrivals | None = None
    for one in reversed(arrivals):
        if one.at_s <= at_s:
            if later is None or later.at_s == one.at_s:
                return one
            share = (at_s - one.at_s) / (later.at_s - one.at_s)
            return Arrivals(
                at_s,
                one.requests + share * (later.requests - one.requests),
                one.prefill_tokens + share * (later.prefill_tokens - one.prefill_tokens),
            )
        later = one
    return later
