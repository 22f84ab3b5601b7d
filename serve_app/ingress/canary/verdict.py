"""Whether a canary is promoted, rolled back, or tried further: pure, from samples of both arms and the time.

**Against it** there must be evidence: the interval of a difference must lie beyond its limit as a whole. The trial is
looked at every second for many minutes, and by chance a look is always the worst one; so the interval is wide,
`ALARM_Z` standard errors. A thousand independent looks at one that is on its limit would raise a false alarm in 3 % of
trials, and looks at the same growing sums are far from independent.

**For it** there must be evidence, too: after `for_s` and `min_requests`, the interval of each ratio (`PASS_Z`: one look
in forty) must end before the limit. A canary that is too rarely asked to know is neither promoted nor rolled back; the
verdict says what is missing.

Requests of one session resemble each other, which these intervals do not know. The width of the first one covers that
for sessions of some ten requests."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from serve_app.config.pools import CanaryConfig
from serve_app.ingress.canary.samples import ArmSums, LogSums, Samples

ALARM_Z = 4.0
PASS_Z = 2.0
LEAST_SAMPLES = 10
"""Fewer say nothing of a variance."""
LEAST_VARIANCE = 1e-4
"""Of logarithms: one percent. A clock and an event loop are no better."""


class TrialState(StrEnum):
    """What has become of a canary."""

    TRYING = "trying"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"


@dataclass(frozen=True)
class Verdict:
    """The state of a trial, and why, in one sentence."""

    state: TrialState
    reason: str


@dataclass(frozen=True)
class Interval:
    """An estimate, and the bounds that it lies in."""

    value: float
    low: float
    high: float


def judge(samples: Samples, tried_s: float, config: CanaryConfig) -> Verdict:
    """The verdict on a canary that has been tried for so long."""
    canary, stable = samples.canary, samples.stable
    least_bad = max(LEAST_SAMPLES, config.min_requests // 10)
    if canary.attempts >= least_bad and (bad := _worse(canary, stable, config)):
        return Verdict(TrialState.ROLLED_BACK, f"{bad} ({_counted(samples)})")
    if samples.fallbacks >= least_bad and samples.fallbacks > canary.attempts:
        return Verdict(
            TrialState.ROLLED_BACK,
            f"no canary could take {samples.fallbacks} of its requests ({_counted(samples)})",
        )
    if tried_s < config.for_s:
        so_far = f"tried for {tried_s:.0f} of {config.for_s:.0f} s"
        return Verdict(TrialState.TRYING, f"{so_far}: {_compared(canary, stable)} ({_counted(samples)})")
    if canary.attempts < config.min_requests:
        return Verdict(TrialState.TRYING, f"{canary.attempts} of {config.min_requests} requests that it needs so far")
    if missing := _not_shown(canary, stable, config):
        return Verdict(TrialState.TRYING, f"more requests are needed: {missing} ({_counted(samples)})")
    return Verdict(TrialState.PROMOTED, f"{_compared(canary, stable)} ({_counted(samples)})")


def _counted(samples: Samples) -> str:
    return f"{samples.canary.attempts} requests of the canary, {samples.stable.attempts} of the rest"


def _measures(canary: ArmSums, stable: ArmSums, config: CanaryConfig) -> list[tuple[str, LogSums, LogSums, float]]:
    """For each ratio that must stay below a limit: its name, the two sums, and the limit."""
    # Fewer tokens a step are worse, so that the ratio is the rest's to the canary's.
    return [
        ("time to first token", canary.ttft_s, stable.ttft_s, config.max_ttft_ratio),
        ("time per output token", canary.tpot_s, stable.tpot_s, config.max_tpot_ratio),
        ("steps per token", stable.tokens_per_step, canary.tokens_per_step, 1 / config.min_acceptance_ratio),
    ]


def _worse(canary: ArmSums, stable: ArmSums, config: CanaryConfig) -> str:
    """What is worse than its limit beyond doubt, in words; empty: nothing."""
    errors = error_difference(canary, stable, ALARM_Z)
    if errors.low > config.max_error_increase:
        return (
            f"{canary.failed} of {canary.attempts} requests failed, {stable.failed} of {stable.attempts} of the rest: "
            f"at least {errors.low:.1%} more, the limit is {config.max_error_increase:.1%}"
        )
    for name, ours, theirs, limit in _measures(canary, stable, config):
        found = ratio(ours, theirs, ALARM_Z)
        if found is not None and found.low > limit:
            return f"{name} is {found.value:.2f} times the rest's, at least {found.low:.2f}; the limit is {limit:.2f}"
    return ""


def _not_shown(canary: ArmSums, stable: ArmSums, config: CanaryConfig) -> str:
    """What is not yet known to be within its limit."""
    errors = error_difference(canary, stable, PASS_Z)
    if errors.value > config.max_error_increase:
        return f"{errors.value:.1%} more of its requests fail"
    for name, ours, theirs, limit in _measures(canary, stable, config):
        found = ratio(ours, theirs, PASS_Z)
        if found is None and (ours.count or theirs.count):
            return f"{name} has {min(ours.count, theirs.count)} samples to compare"
        if found is not None and found.high > limit:
            return f"{name} is {found.low:.2f} to {found.high:.2f} times the rest's, the limit is {limit:.2f}"
    return ""


def _compared(canary: ArmSums, stable: ArmSums) -> str:
    parts = [f"errors {error_difference(canary, stable, PASS_Z).value:+.1%}"]
    for name, ours, theirs in (
        ("time to first token", canary.ttft_s, stable.ttft_s),
        ("time per output token", canary.tpot_s, stable.tpot_s),
        ("tokens per step", canary.tokens_per_step, stable.tokens_per_step),
    ):
        if (found := ratio(ours, theirs, PASS_Z)) is not None:
            parts.append(f"{name} {found.value:.2f} times the rest's")
    return ", ".join(parts)


def ratio(ours: LogSums, theirs: LogSums, z: float) -> Interval | None:
    """The ratio of two geometric means, `z` standard errors each way; None where there are too few samples."""
    if min(ours.count, theirs.count) < LEAST_SAMPLES:
        return None
    difference = ours.total / ours.count - theirs.total / theirs.count
    error = math.sqrt(_variance(ours) / ours.count + _variance(theirs) / theirs.count)
    return Interval(math.exp(difference), math.exp(difference - z * error), math.exp(difference + z * error))


def _variance(sums: LogSums) -> float:
    mean = sums.total / sums.count
    return max((sums.squares - sums.count * mean * mean) / (sums.count - 1), LEAST_VARIANCE)


def error_difference(canary: ArmSums, stable: ArmSums, z: float) -> Interval:
    """By how much the canary's ratio of failures is higher (Newcombe's interval, from Wilson's: it holds for few
    failures and for none)."""
    ours, theirs = _wilson(canary.failed, canary.attempts, z), _wilson(stable.failed, stable.attempts, z)
    difference = ours.value - theirs.value
    low = difference - math.hypot(ours.value - ours.low, theirs.high - theirs.value)
    high = difference + math.hypot(ours.high - ours.value, theirs.value - theirs.low)
    return Interval(difference, low, high)


def _wilson(failed: int, count: int, z: float) -> Interval:
    if not count:
        return Interval(0.0, 0.0, 1.0)
    share, square = failed / count, z * z
    centre = (share + square / (2 * count)) / (1 + square / count)
    half = z * math.sqrt(share * (1 - share) / count + square / (4 * count * count)) / (1 + square / count)
    return Interval(share, max(centre - half, 0.0), min(centre + half, 1.0))
