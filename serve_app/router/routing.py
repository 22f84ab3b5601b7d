"""Which replica gets a request: affinity against load. And which must not get any: those of another version. Pure.

Every request has an affinity key (its session, or the start of its prompt). Rendezvous hashing of key and replica names
the replica that most likely has the prefix in its cache. Few keys move when replicas come and go, and there is no state
that could drift. The preferred replica gets the request unless its utilization is above the lowest one by more than
`AFFINITY_SLACK`: a warm cache is worth some queueing, but not an unlimited amount.

A request crosses in vLLM's own encoding, whose fields are positions: two versions would misread each other without
noticing. So the ingress sends nothing to a replica of another version, and reports which versions there are and what to
do in the log, in `/health`, in a request's 503 and in `doctor`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from serve_app.protocol.messages import WIRE_VERSION, ReplicaInfo
from serve_app.router.attempts import ReplicaFacts

AFFINITY_SLACK = 0.25
"""How much higher the utilization of the preferred replica may be. A prefix hit saves one prefill; a quarter of the
batch slots is about what one prefill of a long prompt costs the others. Beyond it the cache is not worth the wait."""

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


ANY = frozenset({"", "fake"})
"""Versions that match all others: an unknown one, and that of the fake engine, which reads nothing of vLLM's."""

FIX = (
    "install the same on every node: `make venv`, with STEP_SERVE_MACHINE=gpu where the node itself has no GPU, "
    "and start the service again"
)


@dataclass(frozen=True)
class EngineVersions:
    """The versions of this ingress. `vllm` is what `config/vllm_device.version` returns."""

    vllm: str

    def mismatch(self, info: ReplicaInfo) -> str | None:
        """Why this replica cannot be used and how to fix it, in one sentence; None where it can."""
        if info.wire_version != WIRE_VERSION:
            return (
                f"the ingress speaks wire version {WIRE_VERSION}, replica {info.replica_id} {info.wire_version}: "
                "deploy the same version of this application on every node"
            )
        if ANY & {self.vllm, info.vllm_version} or _public(self.vllm) == _public(info.vllm_version):
            return None
        return (
            f"the ingress runs vLLM {_in_words(self.vllm)}, replica {info.replica_id} runs "
            f"{_in_words(info.vllm_version)}: {FIX}"
        )


def _public(version: str) -> str:
    """The version before `+`: the CPU and the CUDA build of one version have the same Python code."""
    return version.split("+", maxsplit=1)[0]


def _in_words(version: str) -> str:
    return f"{_public(version)} (CPU build)" if version.endswith("+cpu") else version
