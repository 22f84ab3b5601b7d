"""Which replica: affinity against load. A pure function of what the replicas last said.

Every request has an affinity key (its session, or the start of its prompt). Rendezvous hashing of key and replica names
the replica that most likely holds the prefix in its cache; the mapping moves as little as can be when replicas come and
go, and needs no state that could drift. The preferred replica gets the request unless it is busier than the least busy
one by more than `AFFINITY_SLACK`: a warm cache is worth some queueing, not any.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from serve_app.protocol.attempts import ReplicaFacts

AFFINITY_SLACK = 0.25
"""How much fuller (as a share of `max_num_seqs`) the preferred replica may be. A prefix hit saves one prefill; a
quarter of the batch slots is about what one prefill of a long prompt costs the others. Beyond it the cache is not worth
the wait."""

PREFIX_TOKENS = 1024
"""How many prompt tokens make the key where no session is named. Enough to tell conversations with a common short
system prompt apart, short enough to be stable over a conversation's turns."""


def affinity_key(session_id: str | None, prompt_token_ids: Sequence[int]) -> bytes:
    """The key that keeps a conversation on one replica: its session id, or else the first `PREFIX_TOKENS` of its
    prompt."""
    if session_id:
        return session_id.encode()
    head = prompt_token_ids[:PREFIX_TOKENS]
    return hashlib.blake2b(b"".join(token.to_bytes(4, "little") for token in head), digest_size=16).digest()


def choose_replica(candidates: Sequence[ReplicaFacts], key: bytes) -> str:
    """The replica for a request with that affinity key. Raises ValueError when there is no candidate."""
    if not candidates:
        raise ValueError("no replica to choose from")
    least = min(candidates, key=lambda facts: (facts.load.utilization, facts.replica_id))
    preferred = max(candidates, key=lambda facts: _rendezvous(key, facts.replica_id))
    if preferred.load.utilization <= least.load.utilization + AFFINITY_SLACK:
        return preferred.replica_id
    return least.replica_id


def _rendezvous(key: bytes, replica_id: str) -> bytes:
    return hashlib.blake2b(replica_id.encode(), key=key[:64], digest_size=8).digest()
