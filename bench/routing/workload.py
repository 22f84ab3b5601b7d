"""Agents' sessions as tokens: what each turn adds, when children start, how long tools run.

The shape is that of a public measurement of coding agents (vllm#57103): medians of 43 turns a session, 142,000 tokens
in a prompt and 444 out, over 96 % of a prompt seen before, and child agents in 44 % of the sessions.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

PROGRAMS = (30_000, 16_000, 10_000)
"""Tokens of the system prompt and tools of three agent programs."""


@dataclass(frozen=True)
class Shape:
    """Medians of a log-normal spread by `sigma`. Token counts are of the full size; `scale` makes all of them
    smaller."""

    scale: float = 0.25
    turns: float = 43
    added_tokens: float = 4_200
    """By each turn, beside the answer: a prompt in the middle of a session then has 142,000."""
    output_tokens: float = 444
    think_s: float = 6.0
    child_share: float = 0.44
    child_turns: float = 8
    sigma: float = 0.6
    max_prompt_tokens: int = 240_000

    def tokens(self, full_size: float) -> int:
        """A count of the full size, scaled."""
        return max(int(full_size * self.scale), 1)


@dataclass(frozen=True)
class Turn:
    """What a turn adds to the history before it is sent, how long its answer is, and the pause after it. A child of
    that many turns may be started by it: 0, none."""

    added_tokens: int
    output_tokens: int
    think_s: float
    child_turns: int = 0


@dataclass(frozen=True)
class Session:
    """One session. `system` are the token ids of its program's prompt."""

    name: str
    system: Sequence[int]
    turns: Sequence[Turn]
    starts_s: float = 0.0


class SessionSource:
    """An endless sequence of sessions, the same for the same seed."""

    def __init__(self, shape: Shape, seed: int) -> None:
        self._shape = shape
        self._random = random.Random(seed)
        self._systems = [self.token_ids(shape.tokens(size)) for size in PROGRAMS]
        self._numbers = count()

    def next(self, starts_s: float = 0.0) -> Session:
        """The next session."""
        number = next(self._numbers)
        turns = self.turns(max(round(self._spread(self._shape.turns)), 1), may_fork=True)
        return Session(f"session-{number}", self._systems[number % len(PROGRAMS)], turns, starts_s)

    def turns(self, number: int, *, may_fork: bool = False) -> list[Turn]:
        """That many turns; with `may_fork` one of them may start a child."""
        forks_at = -1
        if may_fork and self._random.random() < self._shape.child_share:
            forks_at = self._random.randrange(number)
        return [self._turn(forks=position == forks_at) for position in range(number)]

    def token_ids(self, number: int) -> list[int]:
        """New tokens, which nothing else has."""
        return [self._random.randrange(1 << 17) for _ in range(number)]

    def _turn(self, *, forks: bool) -> Turn:
        shape = self._shape
        return Turn(
            shape.tokens(self._spread(shape.added_tokens)),
            shape.tokens(self._spread(shape.output_tokens)),
            self._spread(shape.think_s),
            max(round(self._spread(shape.child_turns)), 1) if forks else 0,
        )

    def _spread(self, median: float) -> float:
        return median * math.exp(self._random.gauss(0.0, self._shape.sigma))
