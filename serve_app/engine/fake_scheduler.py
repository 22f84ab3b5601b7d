"""Which requests run in a fake engine's next step, and how much of their prompts the step computes.

As in vLLM: requests start in their order, when there is a slot and room in the KV cache for them. Each step has a
budget of tokens. Running requests take theirs first; what is left goes to prompts, those that have begun before others.
The pages of a prompt are cached once they are scheduled, so the next request of the same step finds them.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from serve_app.engine.fake_cache import FakeCache, PageChain, pages_of
from serve_app.engine.fake_config import FakeEngineConfig, RandomAnswer
from serve_app.engine.fake_script import Fault, FaultKind, ScriptedAnswer
from serve_app.protocol.messages import AttemptRequest
from serve_app.protocol.pages import PAGE_TOKENS


@dataclass(eq=False)
class FakeRequest:
    """An attempt in the engine. `position` counts its answer's tokens so far, earlier attempts' included; the first
    `computed` tokens of the whole sequence are in the KV cache, and `pages_used` full pages of them."""

    attempt: AttemptRequest
    answer: RandomAnswer | ScriptedAnswer
    faults: tuple[Fault, ...]
    ended: asyncio.Future[None]
    position: int
    pages: PageChain
    arrived_s: float = 0.0
    started_s: float = 0.0
    first_token_due_s: float = 0.0
    has_token: bool = False
    cached_tokens: int = 0
    computed: int = 0
    pages_used: int = 0
    prompt_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.prompt_tokens = self.attempt.spec.prompt_tokens  # is counted from the message each time

    @property
    def tokens(self) -> int:
        """The length of the sequence: its prompt and its answer so far."""
        return self.prompt_tokens + self.position

    @property
    def to_prefill(self) -> int:
        """How many tokens must be computed before its first one."""
        return 0 if self.has_token else self.tokens - self.computed


class FakeScheduler:
    """The requests of an engine and its prefix cache."""

    def __init__(self, config: FakeEngineConfig) -> None:
        self._config = config
        self._budget = config.step_tokens if config.prefill_tokens_per_s else sys.maxsize
        self._capacity = (
            config.max_num_seqs * pages_of(config.max_model_len)
            if config.kv_cache_tokens is None
            else config.kv_cache_tokens // PAGE_TOKENS
        )
        self.waiting: dict[str, FakeRequest] = {}
        self.running: dict[str, FakeRequest] = {}
        self.cache = FakeCache(self._capacity)

    def __contains__(self, attempt_id: str) -> bool:
        return attempt_id in self.running or attempt_id in self.waiting

    def all(self) -> list[FakeRequest]:
        """Every request, those that run first."""
        return [*self.running.values(), *self.waiting.values()]

    def pages(self, attempt: AttemptRequest) -> PageChain:
        """The pages by which the cache knows this attempt; none where it keeps nothing."""
        if not self._config.prefix_caching:
            return PageChain((), ())
        return PageChain([*attempt.spec.prompt_token_ids, *attempt.emitted_token_ids], attempt.spec.images)

    def add(self, request: FakeRequest, now_s: float) -> None:
        """It waits for its start."""
        request.arrived_s = now_s
        self.waiting[request.attempt.attempt_id] = request

    def take(self, attempt_id: str) -> FakeRequest | None:
        """Remove a request; None where there is none."""
        if (request := self.running.pop(attempt_id, None)) is None:
            return self.waiting.pop(attempt_id, None)
        self.cache.release([request.pages[number] for number in range(request.pages_used)])
        return request

    def schedule(self, now_s: float) -> int:
        """Start what can start, and plan the next step: the number of prompt tokens that it computes."""
        decoding = sum(request.has_token for request in self.running.values())
        budget = left = max(1, self._budget - decoding * self._config.tokens_per_step)
        for request in self.running.values():
            left -= self._prefill(request, left)
        while self.waiting and left and len(self.running) < self._config.max_num_seqs:
            request = next(iter(self.waiting.values()))
            if self.running and not self._has_room(request):
                break
            self._start(request, now_s)
            left -= self._prefill(request, left)
        self.cache.make_room(self._begun)
        return budget - left

    def due(self, now_s: float) -> list[FakeRequest]:
        """The requests that give tokens in the step that ends now."""
        return [one for one in self.running.values() if not one.to_prefill and one.first_token_due_s <= now_s]

    def grow(self, request: FakeRequest, token_ids: Sequence[int]) -> None:
        """A step has given these tokens. The last one is computed by the next step."""
        if self._config.prefix_caching:
            request.pages.extend(token_ids)
        request.computed = max(request.computed, request.tokens - 1)
        self._use_pages(request)
        if pages_of(request.tokens) > pages_of(request.tokens - len(token_ids)):
            self.cache.make_room(self._begun)

    @property
    def kv_usage_ratio(self) -> float:
        """The part of the KV cache that running requests use."""
        if not self._config.prefix_caching:
            return sum(one.tokens for one in self.running.values()) / self._config.capacity_tokens
        return min(1.0, (self.cache.used + self._begun) / max(self._capacity, 1))

    @property
    def _begun(self) -> int:
        """How many pages running requests have that are not cached, or not yet full."""
        return sum(pages_of(one.tokens) - one.pages_used for one in self.running.values())

    def _has_room(self, request: FakeRequest) -> bool:
        needed = pages_of(request.tokens) - self.cache.shared(request.pages)
        return self.cache.used + self._begun + needed <= self._capacity

    def _start(self, request: FakeRequest, now_s: float) -> None:
        del self.waiting[request.attempt.attempt_id]
        self.running[request.attempt.attempt_id] = request
        if any(fault.kind is FaultKind.EVICT for fault in request.faults):
            self.cache.clear()
        request.started_s = now_s
        request.first_token_due_s = now_s + self._config.first_token_s
        # The last token is computed in any case: it gives the first new one.
        cached = self.cache.cached(request.pages, limit=(request.tokens - 1) // PAGE_TOKENS)
        request.cached_tokens = request.computed = cached * PAGE_TOKENS
        self._use_pages(request)

    def _prefill(self, request: FakeRequest, left: int) -> int:
        chunk = min(request.to_prefill, left)
        request.computed += chunk
        self._use_pages(request)
        return chunk

    def _use_pages(self, request: FakeRequest) -> None:
        for number in range(request.pages_used, min(request.computed // PAGE_TOKENS, len(request.pages))):
            self.cache.use(request.pages[number])
            request.pages_used += 1
