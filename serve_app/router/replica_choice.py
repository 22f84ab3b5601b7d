"""Chooses the replica of each attempt: gathers the facts for `router/routing.py` and keeps what spans requests."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from serve_app.router.attempts import ReplicaConnection
from serve_app.router.prefix_index import SharedPrefixes
from serve_app.router.request_context import SubmittedRequest
from serve_app.router.routing import (
    Decision,
    PromptFacts,
    Reason,
    ReplicaFacts,
    RoutingPolicy,
    choose_by_session,
    choose_in_turn,
    choose_of_two,
    choose_replica,
)


class ReplicaChoice:
    """The choices of one ingress, by `policy`."""

    def __init__(self, policy: RoutingPolicy = RoutingPolicy.COST) -> None:
        self._policy = policy
        self._shared = SharedPrefixes()
        self._turn = 0
        self._random = random.Random()

    def facts(self, request: SubmittedRequest) -> PromptFacts:
        """What routing must know of a new request. Call it once: the request counts as a conversation."""
        conversations = self._shared.observe(request.pages)
        return PromptFacts(request.spec.prompt_tokens, request.pages, conversations, request.spec.session, request.flow)

    def choose(self, connections: Sequence[ReplicaConnection], prompt: PromptFacts, emitted_tokens: int) -> Decision:
        """The replica among these, at least one, for an attempt that continues after `emitted_tokens`."""
        if emitted_tokens:
            prompt = replace(prompt, tokens=prompt.tokens + emitted_tokens)
        candidates = [one.facts(prompt.pages, prompt.flow) for one in connections]
        if self._policy is RoutingPolicy.COST:
            return choose_replica(candidates, prompt)
        chosen = self._choose_otherwise(candidates, prompt)
        cached_pages = next(one.cached_pages for one in candidates if one.replica_id == chosen)
        return Decision(chosen, Reason.POLICY, prompt.missing_tokens(cached_pages))

    def size_bytes(self) -> int:
        """About how much memory the knowledge of shared prefixes takes."""
        return self._shared.size_bytes()

    def _choose_otherwise(self, candidates: list[ReplicaFacts], prompt: PromptFacts) -> str:
        if self._policy is RoutingPolicy.SESSION_HASH:
            return choose_by_session(candidates, prompt)
        if self._policy is RoutingPolicy.POWER_OF_TWO:
            return choose_of_two(self._random.sample(candidates, min(2, len(candidates))))
        self._turn += 1
        return choose_in_turn(candidates, self._turn)
