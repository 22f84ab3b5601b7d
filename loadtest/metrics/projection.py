"""What a run of more prompts would give, from a shorter one of the same load: an estimate, with its 95 % interval.

A closed loop spends its extra prompts in the steady state. So the whole run is this run's ramp and tail, as measured,
and between them the rest of the tokens at the steady rate. Latencies are those of the first wave, in which all slots
begin at once, and of the later ones, weighted by how many of each the whole run has. Percentiles are not projected: a
tail cannot be guessed from a few waves. The intervals take slices and requests as independent, which requests of one
wave are not quite. Pure.
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
    """An estimate between its bounds."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Projection:
    """The longer run. Rates in tokens per second, times of a request in ms."""

    prompts: int
    seconds: IntervalEstimate
    output_rate: IntervalEstimate
    total_rate: IntervalEstimate
    ttft_mean: IntervalEstimate
    tpot_mean: IntervalEstimate


def project(run: RunRecords, steady: SteadyState | None, prompts: int, slots: int) -> Projection | None:
    """The figures of `prompts` requests; None where this run has as many, a failure, or no steady state."""
    good = sorted((record for record in run.records if record.ok), key=lambda record: record.start_ns)
    if steady is None or math.isinf(steady.output_rate.half_width) or len(good) < len(run.records):
        return None
    if prompts <= len(good) or len(good) <= slots:
        return None
    edges = run.begin_ns + np.array([0.0, steady.begin_s, steady.end_s, run.duration_s]) * 1e9
    ramp, _, tail = tokens_in(good, edges)
    output = float(np.mean([record.output_tokens for record in good])) * prompts
    inputs = float(np.mean([record.vllm_prompt_tokens for record in good])) * prompts
    edge_s = steady.begin_s + run.duration_s - steady.end_s

    def seconds(rate: float) -> float:
        return edge_s + (output - float(ramp) - float(tail)) / rate if rate > 0 else math.inf

    rate = steady.output_rate
    long = IntervalEstimate(
        seconds(rate.mean), seconds(rate.mean + rate.half_width), seconds(rate.mean - rate.half_width)
    )
    return Projection(
        prompts=prompts,
        seconds=long,
        output_rate=_per_second(output, long),
        total_rate=_per_second(output + inputs, long),
        ttft_mean=_waves(good, slots, prompts, ttft_s),
        tpot_mean=_waves([record for record in good if record.output_tokens > 1], slots, prompts, tpot_s),
    )


def _per_second(tokens: float, seconds: IntervalEstimate) -> IntervalEstimate:
    return IntervalEstimate(tokens / seconds.mean, tokens / seconds.high, tokens / seconds.low)


def _waves(records: Sequence[Record], slots: int, prompts: int, of: Callable[[Record], float]) -> IntervalEstimate:
    """The first wave once, the later ones as often as there will be."""
    values = [of(record) * 1e3 for record in records]
    first, later = values[:slots], Estimate.of(values[slots:])
    weight = slots / prompts
    mean = weight * float(np.mean(first or [0.0])) + (1 - weight) * later.mean
    half = (1 - weight) * later.half_width
    return IntervalEstimate(mean, max(0.0, mean - half), mean + half)
