"""Why a target changed, in words: `scaled 2 -> 3: 41 s of prefill queued, TTFT p95 forecast 6.2 s > 3 s in 9 min`."""

from __future__ import annotations

from serve_app.scaling.facts import Bounds, Cause, Objective
from serve_app.scaling.forecast import Forecast, Load
from serve_app.scaling.schedule import ScheduleRule

COUNTED_ENGINES = 1024
"""Beyond so many, how many engines would be needed is not said."""

LEAST_SAID_S = 1.0
"""A shorter queue is not said to be one: the rate of arrivals is then what counts."""


def more(before: int, after: int, load: Load, ahead: Forecast, objective: Objective) -> str:
    """Why more engines are started; `ahead` is the forecast without them."""
    cause = ahead.cause(objective, load)
    if cause is Cause.TPOT and objective.tpot_p95_s is not None and ahead.tpot_p95_s is not None:
        each = load.sequences / before
        promise = f"TPOT p95 forecast {_s(ahead.tpot_p95_s)} > {_s(objective.tpot_p95_s)}"
        return f"{_scaled(before, after)}: {each:.0f} sequences at a time in each engine, {promise}"
    if cause is Cause.SESSIONS:
        fits = load.rates.kv_cache_tokens * max(load.ready, 1)
        room = f"sessions of {_tokens(load.session_tokens)} tokens where {_tokens(fits)} fit into the KV caches"
        return f"{_scaled(before, after)}: {room}, or their prompts are computed again at each turn"
    promise = _ttft(ahead, objective, load.horizon_s)
    return f"{_scaled(before, after)}: {_shortage(cause, load)}, {promise}"


def fewer(before: int, after: int, smaller: Forecast, objective: Objective, window_s: float, margin: float) -> str:
    """Why engines are stopped; `smaller` is the forecast for those that stay, with a margin."""
    kept = []
    if objective.ttft_p95_s is not None:
        kept.append(f"TTFT p95 {_s(smaller.ttft_p95_s)} (objective {_s(objective.ttft_p95_s)})")
    if objective.tpot_p95_s is not None and smaller.tpot_p95_s is not None:
        kept.append(f"TPOT p95 {_s(smaller.tpot_p95_s)} (objective {_s(objective.tpot_p95_s)})")
    enough = f"{after} would have been enough for {_time(window_s)} with {margin - 1:.0%} more load"
    return f"{_scaled(before, after)}: {enough}, forecast " + " and ".join(kept)


def limited(needed: int, bounds: Bounds) -> str:
    """What keeps a fleet below what is needed."""
    wanted = f"{needed} would be needed" if needed < COUNTED_ENGINES else "no number would do"
    return f" ({wanted}, {_limit(bounds)} allows {bounds.most})"


def bounded(before: int, after: int, rule: ScheduleRule | None, bounds: Bounds) -> str:
    """Why the bounds, or a rule of the schedule, have changed the target."""
    if rule is not None:
        return f"{_scaled(before, after)}: the schedule asks for at least {rule.minimum} {rule.words}".rstrip()
    if after > before:
        return f"{_scaled(before, after)}: at least {after} are configured"
    return f"{_scaled(before, after)}: {_limit(bounds)} allows {after}"


def _limit(bounds: Bounds) -> str:
    if bounds.most < bounds.maximum:
        return f"the budget of {bounds.gpu_budget} GPUs"
    return "replicas.max"


def _scaled(before: int, after: int) -> str:
    return f"scaled {before} -> {after}"


def _shortage(cause: Cause, load: Load) -> str:
    if cause is Cause.PREFILL:
        if load.prefill_backlog_s >= LEAST_SAID_S:
            return f"{load.prefill_backlog_s:.0f} s of prefill queued"
        return f"prompts of {load.prefill_tokens_per_s:.0f} tokens/s"
    limit = "fit into the KV caches" if cause is Cause.KV_CACHE else "can run at a time"
    room = load.slots * max(load.ready, 1)
    return f"{load.running + load.queued_requests} requests where {room:.0f} {limit}"


def _ttft(ahead: Forecast, objective: Objective, horizon_s: float) -> str:
    if objective.ttft_p95_s is None:
        return f"queues would grow, TTFT p95 forecast {_s(ahead.ttft_p95_s)} in {_time(horizon_s)}"
    sign = ">" if ahead.ttft_p95_s > objective.ttft_p95_s else "and growing, objective"
    return f"TTFT p95 forecast {_s(ahead.ttft_p95_s)} {sign} {_s(objective.ttft_p95_s)} in {_time(horizon_s)}"


def _tokens(count: float) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count:,.0f}"


def _s(seconds: float) -> str:
    """With two digits."""
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


def _time(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
