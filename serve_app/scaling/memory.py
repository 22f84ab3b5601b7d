"""What the policy remembers of the fleet: what engines do, how much arrives, and how few engines would have done."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from statistics import median_low

from serve_app.scaling.facts import Arrivals, EngineRates, FleetFacts, Pace, ReplicaFacts, ScalingState

SAMPLES_PER_WINDOW = 20

TREND_SIGNIFICANCE, STEEP_SIGNIFICANCE = 3.0, 2.0
"""Arrivals of two windows that differ by less than so many standard deviations of their count show no trend. There is
a look every few seconds, so two are too few for a rise that chance makes often, and enough for a steep one."""

STEEP_RATIO, LEAST_STEEP_ARRIVALS = 1.5, 16
"""So many times the arrivals of the window before are a steep rise, and at least so many arrivals: from three to eight
is none."""

LEAST_ARRIVALS = 100
"""Without a trend the rate is that of so many arrivals at least: of 25 the count alone is wrong by a fifth."""

LONGEST_WINDOWS = 15
"""It reaches back so many windows at most."""

LEAST_GONE_ARRIVALS, GONE_RATIO = 9.0, 0.2
"""Where so many were expected, and fewer than this share of them came, the load has gone. It takes more than a lull:
the turns of agents come in groups."""

LEAST_SPREAD_ARRIVALS = 30
"""Fewer prompts say little about the spread of their lengths; then they are taken for exponential."""

SPREAD_LIMITS = (0.1, 4.0)
"""Squared coefficients of variation that are believed."""

TREND_LIMIT, STEEP_LIMIT = 1.5, 3.0
"""A trend is followed up to so many times the present rate: a start takes minutes, and few rises go on for so long.
Steep ones go further: those of the simulated bursts are ten times the usual rate in the end (decision 0034)."""

LEAST_KV_RATIO = 0.02
"""A cache that is emptier says little about what a sequence takes of it."""


def remember(facts: FleetFacts, state: ScalingState, pace: Pace) -> ScalingState:
    """The state with what the facts add to it."""
    kept = [one for one in state.arrivals if one.at_s <= facts.now_s]
    if not kept or facts.now_s - kept[-1].at_s >= pace.rate_window_s / SAMPLES_PER_WINDOW:
        kept.append(_arrived(facts))
    oldest_s = facts.now_s - LONGEST_WINDOWS * pace.rate_window_s
    while len(kept) > 1 and kept[1].at_s <= oldest_s:
        del kept[0]
    since_s = facts.now_s if state.since_s is None else min(state.since_s, facts.now_s)
    return replace(state, rates=engine_rates(facts.replicas, state.rates), arrivals=tuple(kept), since_s=since_s)


def engine_rates(replicas: Iterable[ReplicaFacts], before: EngineRates | None) -> EngineRates | None:
    """The (lower) medians of the replicas that know; what none of them knows stays as it was. None: nothing was ever
    known. Not the means: a replica that has just begun has seen few ends, and takes requests for ten times as long as
    they are."""
    found = list(replicas)
    if not found:
        return before

    def median(value: Callable[[ReplicaFacts], float | None], previous: float | None) -> float | None:
        known = [one for one in map(value, found) if one is not None]
        return median_low(known) if known else previous

    old = before or EngineRates(0.0)
    running, usage = sum(one.running for one in found), sum(one.kv_usage_ratio for one in found)
    known = running > 0 and usage > LEAST_KV_RATIO * len(found)
    return EngineRates(
        slots=max(sum(one.slots for one in found) / len(found), 1.0),
        prefill_tokens_per_s=median(lambda one: one.prefill_tokens_per_s or None, old.prefill_tokens_per_s),
        service_s=median(lambda one: one.service_s, old.service_s),
        tpot_base_s=median(lambda one: one.tpot_base_s, old.tpot_base_s),
        tpot_per_sequence_s=median(lambda one: one.tpot_per_sequence_s, old.tpot_per_sequence_s),
        kv_per_sequence_ratio=usage / running if known else old.kv_per_sequence_ratio,
        kv_cache_tokens=sum(one.kv_cache_tokens for one in found) / len(found),
    )


def prompt_spread(facts: FleetFacts, state: ScalingState) -> float:
    """The squared coefficient of variation of prompts (tokens to compute), over all that is remembered."""
    now = _arrived(facts)
    first = state.arrivals[0] if state.arrivals else now
    count, tokens = now.requests - first.requests, now.prefill_tokens - first.prefill_tokens
    squares = now.prefill_squares - first.prefill_squares
    if count < LEAST_SPREAD_ARRIVALS or tokens <= 0 or squares <= 0:
        return 1.0
    least, most = SPREAD_LIMITS
    return min(max(squares * count / tokens**2 - 1, least), most)


def _arrived(facts: FleetFacts) -> Arrivals:
    return Arrivals(facts.now_s, facts.arrived_requests, facts.arrived_prefill_tokens, facts.arrived_prefill_squares)


def arrival_rates(facts: FleetFacts, state: ScalingState, pace: Pace) -> tuple[float, float, bool]:
    """Requests and prompt tokens a second that are expected a start time from now: as lately, or more if they rise, and
    whether they do."""
    now = _arrived(facts)
    window_s = pace.rate_window_s
    middle, begin = (_at(state.arrivals, facts.now_s - count * window_s) for count in (1, 2))
    if middle is None or begin is None:
        return 0.0, 0.0, False
    # A policy that has just begun divides by half a window at least: one request is no rate.
    seconds = max(now.at_s - middle.at_s, window_s / 2)
    requests, tokens = now.requests - middle.requests, now.prefill_tokens - middle.prefill_tokens
    earlier = middle.requests - begin.requests
    growth = 1.0
    whole_windows = now.at_s - begin.at_s >= 2 * window_s * (1 - 1 / SAMPLES_PER_WINDOW)
    is_steep = requests >= max(STEEP_RATIO * earlier, LEAST_STEEP_ARRIVALS)
    significance, limit = (STEEP_SIGNIFICANCE, STEEP_LIMIT) if is_steep else (TREND_SIGNIFICANCE, TREND_LIMIT)
    if whole_windows and requests - earlier > significance * math.sqrt(requests + earlier):
        rise_per_s = (requests - earlier) / requests / window_s
        growth = min(1 + rise_per_s * (facts.start_s + window_s / 2), limit)
    for count in range(2, LONGEST_WINDOWS + 1):
        longer = _at(state.arrivals, facts.now_s - count * window_s)
        if growth > 1 or requests >= LEAST_ARRIVALS or longer is None:
            break
        before = now.requests - longer.requests - requests, now.at_s - longer.at_s - seconds
        # A lull of less than `up_after_s` must not begin the wait for more engines anew.
        if seconds >= pace.up_after_s and _has_gone(requests, seconds, *before):
            break
        seconds = max(now.at_s - longer.at_s, seconds)
        requests, tokens = now.requests - longer.requests, now.prefill_tokens - longer.prefill_tokens
    return max(requests, 0.0) / seconds * growth, max(tokens, 0.0) / seconds * growth, growth > 1


def _has_gone(requests: float, seconds: float, earlier: float, earlier_s: float) -> bool:
    """Whether most of the load before has gone: then what came in `earlier_s` says nothing of the load now."""
    expected = earlier * seconds / earlier_s if earlier_s > 0 else 0.0
    return expected >= LEAST_GONE_ARRIVALS and requests < GONE_RATIO * expected


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
