"""Estimates a run of more prompts from a shorter run of the same closed loop, with 95 % intervals.

The additional prompts of a closed loop run in its steady state. The longer run is therefore this run's ramp and tail
as measured, with the remaining tokens at the steady rate between them. Mean latencies weigh the first wave, in which
all slots start at once, against the later ones by their numbers in the longer run. Percentiles are not estimated: a
few waves say too little about a tail. The intervals treat slices and requests as independent, which requests of one
wave are only roughly. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from loadtest.api.record import Record, RunRecords, tpot_s, ttft_s
from loadtest.metrics.steady_state import Estimate, SteadyState, tokens_in


@dataclass(frozen=True)
class IntervalEstimate:
    """An estimate and its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Projection:
    """Estimated metrics of the longer run. Rates in tokens per second, latencies in ms."""

    prompts: int
    seconds: IntervalEstimate
    output_rate: IntervalEstimate
    total_rate: IntervalEstimate
    ttft_mean: IntervalEstimate
    tpot_mean: IntervalEstimate


def project(run: RunRecords, steady: SteadyState | None, prompts: int, slots: int) -> Projection | None:
    """Estimates for `prompts` requests. None where this run has as many, had a failure, or has no steady state."""
    good = sorted((record for record in run.records if record.ok), key=lambda record: record.start_ns)
    if steady is None or math.isinf(steady.output_rate.half_width) or len(good) < len(run.records):
        return None
    if prompts <= len(good) or len(good) <= slots:
        return None
    edges = run.begin_ns + np.array([0.0, steady.begin_s, steady.end_s, run.duration_s]) * 1e9
    ramp, _, tail = tokens_in(good, edges)
    output = float(np.mean([record.output_tokens for record in good])) * prompts
    inputs = float(np.mean([record.vllm_prompt_tokens for record in good])) * prompts
    ramp_and_tail_s = steady.begin_s + run.duration_s - steady.end_s

    def seconds(rate: float) -> float:
        return ramp_and_tail_s + (output - float(ramp) - float(tail)) / rate if rate > 0 else math.inf

    rate = steady.output_rate
    duration_s = IntervalEstimate(
        seconds(rate.mean), seconds(rate.mean + rate.half_width), seconds(rate.mean - rate.half_width)
    )
    return Projection(
        prompts=prompts,
        seconds=duration_s,
        output_rate=_per_second(output, duration_s),
        total_rate=_per_second(output + inputs, duration_s),
        ttft_mean=_weighted_mean(good, slots, prompts, ttft_s),
        tpot_mean=_weighted_mean([record for record in good if record.output_tokens > 1], slots, prompts, tpot_s),
    )


def _per_second(tokens: float, seconds: IntervalEstimate) -> IntervalEstimate:
    return IntervalEstimate(tokens / seconds.mean, tokens / seconds.high, tokens / seconds.low)


def _weighted_mean(
    records: Sequence[Record], slots: int, prompts: int, of: Callable[[Record], float]
) -> IntervalEstimate:
    """The mean of the first wave and the later ones, weighted by their numbers in the longer run."""
    values = [of(record) * 1e3 for record in records]
    first, later = values[:slots], Estimate.of(values[slots:])
    weight = slots / prompts
    mean = weight * float(np.mean(first or [0.0])) + (1 - weight) * later.mean
    half = (1 - weight) * later.half_width
    return IntervalEstimate(mean, max(0.0, mean - half), mean + half)
