"""Everything that the seed decides: which rounds get a fault, at which token of which stream, on which replica. Pure.

A stream may meet one fault only: a request that loses two replicas is stopped on purpose, because it may be what kills
them. So a run has rounds: some streams start, one replica gets a fault, all streams end, the fleet recovers.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from chaos.request_spec import RequestSpec
from chaos.response_recorder import Answer


class NoFaultTime(Exception):
    """No stream of the round reaches the requested token."""


@dataclass(frozen=True)
class RoundPlan:
    """One round: streams `first` to `first + count - 1`, all at the same time."""

    number: int
    first: int
    count: int
    injected: bool
    """Whether it gets a fault."""


@dataclass(frozen=True)
class FaultTime:
    """When to inject: once stream `stream` has brought `characters`, which is about its token `token`."""

    stream: int
    token: int
    characters: int


def plan_rounds(streams: int, concurrency: int, faults: int | None, seed: int) -> list[RoundPlan]:
    """Rounds of at most `concurrency` streams, at least one for each fault. The seed chooses those with a fault."""
    count = max(-(-streams // concurrency), faults or 1)
    injected = set(random.Random(f"{seed}:rounds").sample(range(count), count if faults is None else faults))
    plans, first = [], 0
    for number in range(count):
        size = (streams - first) // (count - number)
        plans.append(RoundPlan(number, first, size, number in injected))
        first += size
    return plans


def spec_of(stream: int, specs: Sequence[RequestSpec]) -> RequestSpec:
    """Which of the distinct requests a stream sends."""
    return specs[stream % len(specs)]


def choose_fault_time(
    plan: RoundPlan, specs: Sequence[RequestSpec], expected: Mapping[int, Answer], at_token: int | None, seed: int
) -> FaultTime:
    """A stream that continues after the token `at_token` (a random one if None). Raises `NoFaultTime`.

    Clients see characters, not tokens: the token's share of the answer's tokens gives the share of its characters. This
    is exact where each token is one character.
    """
    rng = random.Random(f"{seed}:fault-time:{plan.number}")
    streams = list(range(plan.first, plan.first + plan.count))
    rng.shuffle(streams)
    for stream in streams:
        answer = expected[spec_of(stream, specs).number]
        if answer.output_tokens > (at_token or 1):
            token = at_token or rng.randint(1, answer.output_tokens - 1)
            return FaultTime(stream, token, max(1, round(token / answer.output_tokens * answer.characters)))
    raise NoFaultTime(f"no stream of round {plan.number + 1} has more than {at_token or 1} tokens")


def choose_replica(replica_ids: Sequence[str], round_number: int, seed: int) -> str:
    """One of the replicas. Replica ids are random, so the same seed repeats the position among them, not the id."""
    return random.Random(f"{seed}:replica:{round_number}").choice(sorted(replica_ids))


def start_delays_s(plan: RoundPlan, over_s: float, seed: int) -> list[float]:
    """When each stream of a round starts: spread, so that a fault meets streams at different tokens."""
    rng = random.Random(f"{seed}:starts:{plan.number}")
    return [rng.uniform(0.0, over_s) for _ in range(plan.count)]
