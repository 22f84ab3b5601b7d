"""How many engines: the fewest that keep the objective, found with the forecast, and changed so that it cannot flap.

* **More** are asked for when the forecast for the fleet, a start time ahead and with the trend of the arrivals, has
  missed the objective for `up_after_s`.
* **Fewer** when a smaller fleet would have kept it with `MARGIN` more load at every moment of `down_after_s`, or of a
  start time if that is longer.
* **No change of direction within a start time**, either way: an engine that has just been stopped would only be back
  after one, and one that has just been asked for has not been tried.
* **Bounds** are not subject to any of that: the budget, `maximum`, `minimum` and the schedule hold at once.

A fleet that is to be empty is left alone, and none is made empty here.
"""

from __future__ import annotations

import math
from dataclasses import replace

from serve_app.scaling import reasons
from serve_app.scaling.facts import Cause, Decision, FleetFacts, ScalingState, Settings
from serve_app.scaling.forecast import Forecast, Load, engines_needed, forecast
from serve_app.scaling.memory import arrival_rates, enough_for_window, note_enough, prompt_spread, remember

MARGIN = 1.2
"""So much more load the smaller fleet must carry. Between the load that starts an engine and that which stops one is
then a sixth: more than arrivals vary from one window to the next where engines are busy."""


def decide(facts: FleetFacts, state: ScalingState, settings: Settings) -> tuple[Decision, ScalingState]:
    """The decision for the fleet as it is, and what to remember for the next one."""
    state = remember(facts, state, settings.pace)
    bounds, now_s = settings.bounds, facts.now_s
    held = min(max(facts.target, bounds.fewest(now_s)), bounds.most)
    load = expected_load(facts, state, settings)
    if load is None or held == 0:
        return _held(Decision(held), facts, state, settings)
    ahead = forecast(held, load)
    needed = engines_needed(load, settings.objective, reasons.COUNTED_ENGINES)
    spare = engines_needed(load.with_margin(MARGIN), settings.objective, bounds.most)
    window_s = max(settings.pace.down_after_s, facts.start_s)
    state = note_enough(state, now_s, spare, window_s)
    decision = Decision(
        held,
        needed=needed,
        ttft_p95_forecast_s=ahead.ttft_p95_s,
        tpot_p95_forecast_s=ahead.tpot_p95_s,
        horizon_s=load.horizon_s,
    )
    if held != facts.target:
        return _held(decision, facts, state, settings)
    if needed > held:
        return _more(decision, facts, state, settings, load, ahead)
    state = replace(state, wants_more_since_s=None)
    enough = max(enough_for_window(state), bounds.fewest(now_s), 1)
    since_s = max(state.since_s or now_s, state.last_up_s or -math.inf)
    if enough < held and now_s - since_s >= window_s:
        found = replace(decision, target=enough, cause=Cause.SPARE)
        smaller = forecast(enough, load.with_margin(MARGIN))
        reason = reasons.fewer(facts.target, enough, smaller, settings.objective, window_s, MARGIN)
        return replace(found, reason=reason), replace(state, last_down_s=now_s)
    return decision, state


def expected_load(facts: FleetFacts, state: ScalingState, settings: Settings) -> Load | None:
    """What comes to the fleet; None while nothing is known of any engine. `state` has been given these facts."""
    if state.rates is None:
        return None
    requests_per_s, prefill_tokens_per_s, rises = arrival_rates(facts, state, settings.pace)
    asked_s = math.inf if state.last_up_s is None else facts.now_s - state.last_up_s
    return Load(
        rates=state.rates,
        requests_per_s=requests_per_s,
        prefill_tokens_per_s=prefill_tokens_per_s,
        queued_prefill_tokens=sum(one.queued_prefill_tokens for one in facts.replicas),
        queued_requests=sum(one.queued for one in facts.replicas),
        running=sum(one.running for one in facts.replicas),
        ready=len(facts.replicas),
        ordered=len(facts.replicas) + facts.starting,
        ordered_in_s=min(max(facts.start_s - asked_s, 0.0), facts.start_s),
        horizon_s=facts.start_s,
        prompt_spread=prompt_spread(facts, state),
        rises=rises,
        session_tokens=sum(one.session_tokens for one in facts.replicas),
    )


def _more(
    decision: Decision, facts: FleetFacts, state: ScalingState, settings: Settings, load: Load, ahead: Forecast
) -> tuple[Decision, ScalingState]:
    """More engines are needed: from when on, and as many as there may be."""
    now_s, target = facts.now_s, min(decision.needed, settings.bounds.most)
    since_s = min(now_s if state.wants_more_since_s is None else state.wants_more_since_s, now_s)
    state = replace(state, wants_more_since_s=since_s)
    # A rise that is more than chance is not waited for again: a start takes long enough.
    up_after_s = 0.0 if load.rises else settings.pace.up_after_s
    stopped_lately = state.last_down_s is not None and 0 <= now_s - state.last_down_s < facts.start_s
    if target <= decision.target or stopped_lately or now_s - since_s < up_after_s:
        return decision, state
    reason = reasons.more(facts.target, target, load, ahead, settings.objective)
    if decision.needed > target:
        reason += reasons.limited(decision.needed, settings.bounds)
    found = replace(decision, target=target, reason=reason, cause=ahead.cause(settings.objective, load))
    return found, replace(state, wants_more_since_s=None, last_up_s=now_s)


def _held(
    decision: Decision, facts: FleetFacts, state: ScalingState, settings: Settings
) -> tuple[Decision, ScalingState]:
    """The target that the bounds ask for, if it is another."""
    if decision.target == facts.target:
        return decision, state
    rule = settings.bounds.rule(facts.now_s)
    by_schedule = rule is not None and decision.target == rule.minimum > facts.target
    reason = reasons.bounded(facts.target, decision.target, rule if by_schedule else None, settings.bounds)
    decision = replace(decision, reason=reason, cause=Cause.SCHEDULE if by_schedule else Cause.BOUNDS)
    if decision.target > facts.target:
        return decision, replace(state, last_up_s=facts.now_s, wants_more_since_s=None)
    return decision, replace(state, last_down_s=facts.now_s)
