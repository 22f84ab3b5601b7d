"""The standard traces, made from a seed: a working day, bursts, sessions of agents, and a flood.

Arrivals are Poisson with a rate that changes in time; lengths are log-normal. The agents' sessions have the shape of
`loadtest`'s data set `agents`: a system prompt of their program, many turns, each with all that was said before.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from serve_app.simulate.trace import TraceRequest

Rate = Callable[[float], float]
"""Requests a second at a time in seconds."""

HOUR_S = 3600.0

DAY_RATES = (
    *(0.10, 0.08, 0.06, 0.05, 0.06, 0.10, 0.20, 0.45, 0.85, 1.20, 1.35, 1.30),
    *(1.00, 1.20, 1.40, 1.35, 1.20, 0.90, 0.60, 0.45, 0.35, 0.28, 0.20, 0.14),
)
"""Requests a second at each full hour of a working day; between them the rate changes evenly."""

PROMPT_TOKENS, PROMPT_SIGMA = 8_000, 0.6
"""Median and spread of prompts that no session has. Their mean is 9,600."""
OUTPUT_TOKENS, OUTPUT_SIGMA = 400, 0.7

AGENT_SYSTEM_TOKENS = (30_000, 16_000, 10_000)
AGENT_TURNS, AGENT_ADDED_TOKENS, AGENT_OUTPUT_TOKENS, AGENT_PAUSE_S = 30, 2_500, 444, 12.0
"""Medians of a session's turns, of what each adds to the prompt, of its answer, and of the time from one turn to the
next, which is its answer's and a tool's."""
AGENT_SIGMA = 0.6
AGENT_MOST_TOKENS = 240_000


def working_day(seed: int) -> list[TraceRequest]:
    """24 hours, some 50,000 requests: nearly nothing at night, two peaks, a dip at noon."""
    draw = random.Random(seed)
    return [_single(draw, at_s) for at_s in arrivals(_interpolated(DAY_RATES, HOUR_S), 24 * HOUR_S, 1.5, draw)]


def bursts(seed: int) -> list[TraceRequest]:
    """8 hours: every 70 minutes or so the rate rises in ten minutes to ten or more times the usual, for ten minutes."""
    draw = random.Random(seed)
    starts, at_s = [], 1800.0
    while at_s < 8 * HOUR_S - 1800.0:
        starts.append((at_s, draw.uniform(2.2, 3.2)))
        at_s += draw.uniform(3600.0, 4800.0)

    def rate(now_s: float) -> float:
        return 0.25 + sum(_burst(now_s - start_s, height) for start_s, height in starts)

    return [_single(draw, at_s) for at_s in arrivals(rate, 8 * HOUR_S, 4.0, draw)]


def agents(seed: int) -> list[TraceRequest]:
    """12 hours of coding agents' sessions: some 1,000 of them, most at the middle of the day, few at both ends."""
    draw = random.Random(seed)

    def rate(now_s: float) -> float:
        return 0.002 + 0.06 * math.sin(math.pi * now_s / (12 * HOUR_S)) ** 2

    found: list[TraceRequest] = []
    for number, at_s in enumerate(arrivals(rate, 11.5 * HOUR_S, 0.07, draw)):
        found.extend(_session(draw, f"session-{number}", at_s))
    return sorted(found, key=lambda one: one.arrival_s)


def flood(seed: int) -> list[TraceRequest]:
    """2 hours of steady work, in which one key sends ten times as much as all others for twenty minutes."""
    draw = random.Random(seed)
    usual = [
        replace(_single(draw, at_s), key=f"user-{draw.randrange(8)}")
        for at_s in arrivals(lambda _: 0.4, 2 * HOUR_S, 0.4, draw)
    ]
    flooding = [
        replace(_single(draw, 2400.0 + at_s), key="flood") for at_s in arrivals(lambda _: 4.0, 1200.0, 4.0, draw)
    ]
    return sorted([*usual, *flooding], key=lambda one: one.arrival_s)


GENERATORS: dict[str, Callable[[int], list[TraceRequest]]] = {
    "day": working_day,
    "bursts": bursts,
    "agents": agents,
    "flood": flood,
}


def arrivals(rate: Rate, until_s: float, most: float, draw: random.Random) -> Iterator[float]:
    """Times of a Poisson process whose rate is never above `most`."""
    at_s = 0.0
    while (at_s := at_s + draw.expovariate(most)) < until_s:
        if draw.random() * most < rate(at_s):
            yield at_s


def _single(draw: random.Random, at_s: float) -> TraceRequest:
    prompt = min(_log_normal(draw, PROMPT_TOKENS, PROMPT_SIGMA), 100_000)
    return TraceRequest(at_s, prompt, min(_log_normal(draw, OUTPUT_TOKENS, OUTPUT_SIGMA), 8_000))


def _session(draw: random.Random, name: str, at_s: float) -> Iterator[TraceRequest]:
    prompt, prefix = draw.choice(AGENT_SYSTEM_TOKENS), 0
    for _ in range(min(_log_normal(draw, AGENT_TURNS, AGENT_SIGMA), 200)):
        prompt += _log_normal(draw, AGENT_ADDED_TOKENS, AGENT_SIGMA)
        output = _log_normal(draw, AGENT_OUTPUT_TOKENS, AGENT_SIGMA)
        if prompt + output > AGENT_MOST_TOKENS:
            return
        yield TraceRequest(at_s, prompt, output, name, prefix)
        prompt += output
        prefix = prompt
        at_s += AGENT_PAUSE_S * math.exp(draw.gauss(0.0, AGENT_SIGMA)) + output * 0.02


def _interpolated(rates: Sequence[float], each_s: float) -> Rate:
    def rate(now_s: float) -> float:
        position = now_s / each_s
        before = int(position)
        share = position - before
        return rates[before % len(rates)] * (1 - share) + rates[(before + 1) % len(rates)] * share

    return rate


def _burst(since_s: float, height: float) -> float:
    """Ten minutes up, ten minutes full, four minutes down."""
    rise_s, full_s, fall_s = 600.0, 600.0, 240.0
    if since_s < 0 or since_s > rise_s + full_s + fall_s:
        return 0.0
    if since_s < rise_s:
        return height * since_s / rise_s
    return height * min((rise_s + full_s + fall_s - since_s) / fall_s, 1.0)


def _log_normal(draw: random.Random, median: float, sigma: float) -> int:
    return max(round(median * math.exp(draw.gauss(0.0, sigma))), 1)
