"""Which replicas a request may go to while a canary is tried: those of its arm, and of the weights that its answer
began with.

A session belongs to one arm, by a hash of its name, so that nobody flips while the share stays. Requests without a
session go by their key, others each by themselves. The canary's sessions go to the rest of the fleet where no canary is
up or has room; the rest's never go to the canary: its share is a bound.

An answer that a canary of other weights has begun goes on at such weights or not at all, and the same the other way
round: half an answer of a model on trial must not be completed by another as if it were one. Between pools, which are
one model in two precisions, it goes on and is marked as inexact."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum

from serve_app.protocol.errors import WeightsGone
from serve_app.protocol.messages import ReplicaLabel
from serve_app.router.attempts import ReplicaConnection


class Arm(StrEnum):
    """Where a request went."""

    STABLE = "stable"
    CANARY = "canary"
    FALLBACK = "fallback"
    """It belongs to the canary's share, and no canary could take it."""


def is_in_share(who: str, share: float, trial: str) -> bool:
    """Whether this session belongs to the canary's share. With a larger share of the same trial, those that belonged
    to it still do."""
    digest = hashlib.blake2b(f"{trial}\0{who}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest) < share * 2**64


def goes_on_at(begun: ReplicaLabel, other: ReplicaLabel) -> bool:
    """Whether an answer that a replica of one label has begun may go on at one of another."""
    return is_exact(begun, other) or not (begun.is_canary or other.is_canary)


def is_exact(begun: ReplicaLabel, other: ReplicaLabel) -> bool:
    """Whether both compute the same answers, as far as is known."""
    return begun.weights == other.weights or not (begun.weights and other.weights)


class CanaryArm:
    """The share of one ingress' sessions that goes to a canary. Without a trial it is none."""

    def __init__(self) -> None:
        self.share = 0.0
        self.trial = ""
        self.chosen: Counter[Arm] = Counter()
        """Requests by their arm, while a canary is tried."""

    def follow(self, share: float, trial: str) -> bool:
        """From now on this share of the sessions goes to the canary of that trial. Returns whether that is a change."""
        changed = (share, trial) != (self.share, self.trial)
        self.share, self.trial = share, trial
        return changed

    def has(self, who: str) -> bool:
        """Whether this session belongs to the canary now."""
        return self.share > 0 and is_in_share(who, self.share, self.trial)

    def eligible(
        self, up: Sequence[ReplicaConnection], who: str, begun: ReplicaLabel | None, full: set[str]
    ) -> list[ReplicaConnection]:
        """Those of the replicas that are up to which a request of `who` may go. `begun` is where its answer has tokens
        from, None before the first; `full` have refused it."""
        if begun is not None:
            return [one for one in up if goes_on_at(begun, one.label)]
        stable = [one for one in up if not one.label.is_canary]
        if self.has(who):
            canary = [one for one in up if one.label.is_canary and one.replica_id not in full]
            return canary or stable
        return stable

    def check(self, begun: ReplicaLabel | None, known: Sequence[ReplicaConnection]) -> None:
        """Raises `WeightsGone` for an answer that can go on nowhere: its canary has been withdrawn, and no replica
        that is known has its weights."""
        if begun is None or not begun.is_canary or self.share > 0:
            return
        if not any(goes_on_at(begun, one.label) and not one.draining for one in known):
            raise WeightsGone

    def of(self, who: str, chosen: ReplicaLabel) -> Arm:
        """The arm of a request of `who` that goes to a replica of this label first."""
        return Arm.CANARY if chosen.is_canary else Arm.FALLBACK if self.has(who) else Arm.STABLE

    def count(self, arm: str) -> None:
        """A replica has taken a request of this arm."""
        if self.share > 0 and arm:
            self.chosen[Arm(arm)] += 1
