"""What the seed decides: which wave is struck, at which token of which stream, and which replica. Pure.

A stream may meet one fault only (one that loses two replicas is stopped on purpose, as a request that may be what kills
them), so faults come in waves: some streams start, one replica is struck, all streams end, the fleet is whole again.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from chaos.request_spec import RequestSpec
from chaos.response_recorder import Answer


class NoFaultTime(Exception):
    """No stream of the wave gets to the token that was asked for."""


@dataclass(frozen=True)
class Round:
    """Streams `first` to `first + count - 1`, at one time. `struck`: with a fault."""

    number: int
    first: int
    count: int
    injected: bool


@dataclass(frozen=True)
class FaultTime:
    """When to strike: when stream `stream` has brought `characters`, which is its token number `token`."""

    stream: int
    token: int
    characters: int


def plan_rounds(streams: int, concurrency: int, faults: int | None, seed: int) -> list[Round]:
    """Rounds of at most `concurrency` streams, as many as there are faults at least. Fewer faults: waves by the
    seed."""
    count = max(-(-streams // concurrency), faults or 1)
    injected = set(random.Random(f"{seed}:waves").sample(range(count), count if faults is None else faults))
    rounds, first = [], 0
    for number in range(count):
        size = (streams - first) // (count - number)
        rounds.append(Round(number, first, size, number in injected))
        first += size
    return rounds


def spec_of(stream: int, specs: Sequence[RequestSpec]) -> RequestSpec:
    """Which of the distinct requests a stream sends."""
    return specs[stream % len(specs)]


def choose_fault_time(
    round_: Round, specs: Sequence[RequestSpec], expected: Mapping[int, Answer], at_token: int | None, seed: int
) -> FaultTime:
    """A stream that gets beyond the token, and the token: given, or any but the last. Raises `NoMoment`.

    Clients see characters: a token's share of the text tells where it is. With one character a token that is exact.
    """
    rng = random.Random(f"{seed}:moment:{round_.number}")
    streams = list(range(round_.first, round_.first + round_.count))
    rng.shuffle(streams)
    for stream in streams:
        answer = expected[spec_of(stream, specs).number]
        if answer.output_tokens > (at_token or 1):
            token = at_token or rng.randint(1, answer.output_tokens - 1)
            return FaultTime(stream, token, max(1, round(token / answer.output_tokens * answer.characters)))
    raise NoFaultTime(f"no stream of wave {round_.number + 1} has more than {at_token or 1} tokens")


def choose_replica(replica_ids: Sequence[str], round_: int, seed: int) -> str:
    """One of them. Their names are random, so it is the seed's n-th of them in order that is meant."""
    return random.Random(f"{seed}:replica:{round_}").choice(sorted(replica_ids))


def start_delays_s(round_: Round, over_s: float, seed: int) -> list[float]:
    """When each stream of a wave starts: spread, so that a fault meets streams at different tokens."""
    rng = random.Random(f"{seed}:starts:{round_.number}")
    return [rng.uniform(0.0, over_s) for _ in range(round_.count)]
