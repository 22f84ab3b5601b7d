"""Which replica gets a request: the one where it costs the least. Pure.

The cost of a replica is in seconds, the time that the choice adds to this request and to those that run there:

* the prefill that waits there, before this request's turn;
* the prefill of what the replica has not cached. It delays this request, and every other one there: an engine that
  computes a prompt hands out tokens at the pace of its prefill steps. The others are those that run there now or, where
  that is more, were there on average in the last minute: an agent that runs a tool comes back to where its prefix is;
* the time until one of its slots, and of its cache, is free.

A part of the prompt that many conversations have in common (a system prompt, tools) is computed once on a replica and
used by all that follow, so this request is charged its share only. Without that, all sessions of an agent end up on the
replica that has seen its system prompt first. `docs/decisions/0025-routing-by-cost.md` has the figures, and what lost.

Other policies are there to compare with (`ingress.routing`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from serve_app.protocol.messages import ReplicaCapacity, ReplicaLoad
from serve_app.protocol.pages import PAGE_TOKENS
from serve_app.router.admission import ASSUMED_SERVICE_S

ASSUMED_PREFILL_TOKENS_PER_S = 10_000.0
"""Assumed until a replica has measured its own: 8 GPUs of the H100's kind do twice that, 4 half of it. It weighs the
cache against the queue only until the first prompts are through."""

AFFINITY_SLACK = 0.25
"""`SESSION_HASH`: how much higher the utilization of the preferred replica may be."""

HASHED_PAGES = 4
"""`SESSION_HASH`: how many pages of the prompt make the key where no session is named."""


class RoutingPolicy(StrEnum):
    """How a replica is chosen. `COST` is for production; the others are what it is compared with."""

    COST = "cost"
    SESSION_HASH = "session-hash"
    ROUND_ROBIN = "round-robin"
    POWER_OF_TWO = "power-of-two"


class Reason(StrEnum):
    """Why a replica was chosen, for metrics and the log."""

    ONLY = "only"
    """There was no other."""
    PREFIX = "prefix"
    """No other has more of the prompt cached."""
    LOAD = "load"
    """Another one has more of it cached, but costs more."""
    NEW = "new"
    """No replica has any of it cached: the one with the least load."""
    POLICY = "policy"
    """Another policy than `COST` chose."""


@dataclass(frozen=True)
class ReplicaFacts:
    """What routing must know of a replica. Its `load` counts the attempts just sent and not yet reported, too.
    `cached_pages` of the prompt are in its cache, from the start."""

    replica_id: str
    load: ReplicaLoad
    capacity: ReplicaCapacity = field(default_factory=ReplicaCapacity)
    cached_pages: int = 0
    goes_before_queue: bool = False
    """Whether the request is started before what waits there: its client and session have nothing there."""
    pool: str = ""
    """Its part of the fleet: the replicas of one have the same hardware, and so about the same speed."""


@dataclass(frozen=True)
class PromptFacts:
    """What routing must know of a request: its `tokens`, the hashes of their full `pages`, and for each page how many
    conversations have it in common. `session` names its conversation, if it has a name; `flow` its client with that."""

    tokens: int
    pages: Sequence[int] = ()
    conversations: Sequence[int] = ()
    session: str = ""
    flow: str = ""
    shares: Sequence[float] = field(init=False)
    """For each number of cached pages, the prefill of the rest in tokens, with shared pages charged by share."""

    def __post_init__(self) -> None:
        shares = [float(self.tokens - len(self.pages) * PAGE_TOKENS)]
        for number in reversed(self.conversations):
            shares.append(shares[-1] + PAGE_TOKENS / number)
        object.__setattr__(self, "shares", shares[::-1])

    def missing_tokens(self, cached_pages: int) -> int:
        """How many tokens must be computed where so many pages are cached: at least one, vLLM computes the last."""
        return max(self.tokens - cached_pages * PAGE_TOKENS, 1)


@dataclass(frozen=True)
class Decision:
    """The chosen replica, its cost in seconds, and why. `missing_tokens` of the prompt must be computed there."""

    replica_id: str
    reason: Reason
    missing_tokens: int
    cost_s: float = 0.0
    least_missing_tokens: int = 0
    """How many would have to be computed where the most of it is cached."""


def choose_replica(candidates: Sequence[ReplicaFacts], prompt: PromptFacts) -> Decision:
    """The replica where the request costs the least. Raises ValueError when there is no candidate."""
    if not candidates:
        raise ValueError("no replica to choose from")
    assumed = assumed_rates(candidates)
    costs = {one.replica_id: cost_s(one, prompt, assumed[one.pool]) for one in candidates}
    chosen = _cheapest(candidates, costs, prompt)
    most = max(one.cached_pages for one in candidates)
    if len(candidates) == 1:
        reason = Reason.ONLY
    elif chosen.cached_pages < most:
        reason = Reason.LOAD
    else:
        reason = Reason.PREFIX if most else Reason.NEW
    missing = prompt.missing_tokens(chosen.cached_pages)
    return Decision(
        chosen.replica_id, reason, missing, costs[chosen.replica_id], least_missing_tokens=prompt.missing_tokens(most)
    )


def assumed_rates(candidates: Sequence[ReplicaFacts]) -> dict[str, float]:
    """For each pool, the prefill rate of its replicas that have measured none: the mean of those that have, of the same
    pool, else of all."""
    measured: dict[str, list[float]] = {one.pool: [] for one in candidates}
    for one in candidates:
        if rate := one.load.prefill_tokens_per_s:
            measured[one.pool].append(rate)
    every = [rate for rates in measured.values() for rate in rates]
    overall = sum(every) / len(every) if every else ASSUMED_PREFILL_TOKENS_PER_S
    return {pool: sum(rates) / len(rates) if rates else overall for pool, rates in measured.items()}


def _cheapest(candidates: Sequence[ReplicaFacts], costs: Mapping[str, float], prompt: PromptFacts) -> ReplicaFacts:
    """Among equals that with the fewest others, and then a session's own: hashes only where they decide."""
    least = min((costs[one.replica_id], _others(one)) for one in candidates)
    equal = [one for one in candidates if (costs[one.replica_id], _others(one)) == least]
    if len(equal) == 1:
        return equal[0]
    session = _session_key(prompt)
    return min(equal, key=lambda one: _rendezvous(session, one.replica_id))


def cost_s(replica: ReplicaFacts, prompt: PromptFacts, assumed_tokens_per_s: float) -> float:
    """The seconds that a request adds on a replica, for itself and the others there."""
    load, capacity = replica.load, replica.capacity
    rate = load.prefill_tokens_per_s or assumed_tokens_per_s
    service_s = ASSUMED_SERVICE_S if capacity.service_s is None else capacity.service_s
    queue_s = load.queued_prefill_tokens / rate
    prefill_s = prompt.shares[min(replica.cached_pages, len(prompt.pages))] / rate
    slots = max(load.max_num_seqs, 1)
    before = load.unfinished - load.queued if replica.goes_before_queue else load.unfinished
    slot_s = max(before + 1 - slots, 0) * service_s / slots
    return queue_s + prefill_s * (1 + _others(replica)) + slot_s + _cache_wait_s(replica, prompt, service_s)


def _others(replica: ReplicaFacts) -> float:
    load = replica.load
    return min(max(float(load.unfinished - load.queued), load.recent_unfinished), float(max(load.max_num_seqs, 1)))


def _cache_wait_s(replica: ReplicaFacts, prompt: PromptFacts, service_s: float) -> float:
    """The time until the running sequences, which end in `service_s` on average, have freed enough of the cache."""
    total = replica.capacity.kv_cache_tokens
    if not total:
        return 0.0
    lacking = prompt.missing_tokens(replica.cached_pages) - total * (1 - replica.load.kv_usage_ratio)
    return max(lacking, 0.0) / total * service_s


# ---- what it is compared with ----------------------------------------------------------------------------------------


def choose_by_session(candidates: Sequence[ReplicaFacts], prompt: PromptFacts) -> str:
    """Rendezvous hashing of the session, or of the first tokens, unless another replica is much less busy."""
    key = _session_key(prompt)
    least = min(candidates, key=lambda one: (one.load.utilization, one.replica_id))
    preferred = max(candidates, key=lambda one: _rendezvous(key, one.replica_id))
    within = preferred.load.utilization <= least.load.utilization + AFFINITY_SLACK
    return (preferred if within else least).replica_id


def choose_in_turn(candidates: Sequence[ReplicaFacts], turn: int) -> str:
    """Round robin: `turn` counts the requests."""
    return sorted(one.replica_id for one in candidates)[turn % len(candidates)]


def choose_of_two(drawn: Sequence[ReplicaFacts]) -> str:
    """The less busy one of two that were drawn, as Ray Serve does."""
    return min(drawn, key=lambda one: one.load.unfinished).replica_id


def _session_key(prompt: PromptFacts) -> bytes:
    if prompt.session:
        return hashlib.blake2b(prompt.session.encode(), digest_size=16).digest()
    return b"".join(page.to_bytes(8, "little") for page in prompt.pages[:HASHED_PAGES])


def _rendezvous(key: bytes, replica_id: str) -> bytes:
    return hashlib.blake2b(replica_id.encode(), key=key, digest_size=8).digest()
