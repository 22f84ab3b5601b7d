"""What an ingress has seen of the canary and of the rest: sums that can be added up over ingresses. Pure.

A sample is an attempt that a replica took, so that a crash counts against the replica although its request went on
elsewhere and no client noticed. Times are kept as sums of logarithms: their distributions are skewed, and a ratio of
geometric means is what a limit such as "20 % slower" is about.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

from serve_app.protocol.errors import Outcome
from serve_app.router.attempts import End
from serve_app.router.canary_arm import Arm
from serve_app.router.request_context import AttemptTrace, RequestTrace

ENGINE_FAILURES = frozenset(end.value for end in (End.DIED, End.NAMED, End.BESIDE, End.CUT))
FAILURES = frozenset({Outcome.SERVER_ERROR, Outcome.NO_REPLICA, Outcome.POISON})
NOT_JUDGED = frozenset(end.value for end in (End.REFUSED, End.IMAGES_MISSING, End.CANCELLED))
"""Ends that say nothing of a replica: it was full, or the client left."""

LEAST_DECODED_TOKENS = 4
"""Shorter answers say little of the time per token."""


class LogSums(msgspec.Struct, array_like=True):
    """Count, sum and sum of squares of logarithms."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        """A positive value; others are left out."""
        if value > 0:
            logarithm = math.log(value)
            self.count += 1
            self.total += logarithm
            self.squares += logarithm * logarithm

    def plus(self, other: LogSums) -> LogSums:
        """Both."""
        return LogSums(self.count + other.count, self.total + other.total, self.squares + other.squares)


class ArmSums(msgspec.Struct, array_like=True):
    """What is known of one arm. `failed` of its `attempts` failed."""

    attempts: int = 0
    failed: int = 0
    ttft_s: LogSums = msgspec.field(default_factory=LogSums)
    tpot_s: LogSums = msgspec.field(default_factory=LogSums)
    tokens_per_step: LogSums = msgspec.field(default_factory=LogSums)

    def plus(self, other: ArmSums) -> ArmSums:
        """Both."""
        return ArmSums(
            self.attempts + other.attempts,
            self.failed + other.failed,
            self.ttft_s.plus(other.ttft_s),
            self.tpot_s.plus(other.tpot_s),
            self.tokens_per_step.plus(other.tokens_per_step),
        )


class Samples(msgspec.Struct, array_like=True):
    """Both arms of one trial, since its begin. `fallbacks` belonged to the canary, and no canary could take them."""

    canary: ArmSums = msgspec.field(default_factory=ArmSums)
    stable: ArmSums = msgspec.field(default_factory=ArmSums)
    fallbacks: int = 0

    def plus(self, other: Samples) -> Samples:
        """Both."""
        return Samples(self.canary.plus(other.canary), self.stable.plus(other.stable), self.fallbacks + other.fallbacks)

    def add(self, sequences: Iterable[RequestTrace], outcome: Outcome) -> None:
        """A request has ended."""
        for sequence in sequences:
            self.fallbacks += sequence.arm == Arm.FALLBACK
            for attempt in sequence.attempts:
                is_last = attempt is sequence.attempts[-1]
                failed = attempt.end in ENGINE_FAILURES or (is_last and outcome in FAILURES)
                if failed or attempt.end not in NOT_JUDGED:
                    _add(self.canary if attempt.on_canary else self.stable, attempt, failed=failed)


def _add(arm: ArmSums, attempt: AttemptTrace, *, failed: bool) -> None:
    arm.attempts += 1
    arm.failed += failed
    if attempt.first_token_s is None or attempt.last_token_s is None or not attempt.steps:
        return
    arm.ttft_s.add(attempt.first_token_s - attempt.dispatched_s)
    if attempt.steps > 1 and attempt.tokens >= LEAST_DECODED_TOKENS:
        per_step = attempt.tokens / attempt.steps
        decoded = attempt.tokens - per_step  # the first step's are no part of the time
        arm.tpot_s.add((attempt.last_token_s - attempt.first_token_s) / decoded)
        arm.tokens_per_step.add(per_step)
