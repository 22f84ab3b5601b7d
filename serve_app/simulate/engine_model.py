"""The model of one engine: steps as vLLM's scheduler makes them, many equal ones in a jump. Pure.

It is `engine/fake_scheduler.py` without tokens: a test holds the two together, step by step. A step computes the
prompts that have begun, then those that wait, within a budget of tokens from which each running request takes its own
first; it takes `gap_s`, and the time of its prompt tokens. Steps without prompts are all alike until a request ends, as
are those that one long prompt fills: a day costs as many operations as it has requests, not as it has steps.

The prefix cache is kept by session: how many tokens of it are there. What was used longest ago goes first.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from itertools import count

from serve_app.protocol.pages import PAGE_TOKENS

EPSILON_S = 1e-9
"""Sums of steps are not exact: an end that is so near counts as reached."""


@dataclass(frozen=True)
class EngineSpec:
    """What an engine can do. The defaults are about 4 H200 or 8 H100 GPUs: 10,000 prompt tokens a second, a step of
    25 ms that gives each request 3 tokens (drafts included), 180 s to start."""

    prefill_tokens_per_s: float = 10_000.0
    gap_s: float = 0.025
    gap_per_sequence_s: float = 0.0
    """By so much a step is longer for each request that decodes in it."""
    tokens_per_step: int = 3
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    kv_cache_tokens: int = 2_700_000
    prefix_caching: bool = True
    start_s: float = 180.0


@dataclass(eq=False, slots=True)
class ModelRequest:
    """A request in an engine. `to_prefill` of its tokens are still to be computed before its first one."""

    name: str
    prompt_tokens: int
    output_tokens: int
    session: str = ""
    prefix_tokens: int = 0
    cached_tokens: int = 0
    to_prefill: int = 0
    first_step: int = 0
    """The step that gave its first tokens."""
    last_step: int = 0
    """The step that gives its last ones."""


@dataclass(frozen=True, slots=True)
class StepEnd:
    """What a step, or the last of several equal ones, has given at `at_s`."""

    at_s: float
    first_tokens: tuple[ModelRequest, ...] = ()
    ended: tuple[ModelRequest, ...] = ()


@dataclass(slots=True)
class _Steps:
    """`number` equal steps that have begun at `began_s`; the last one completes the prompts of `complete`."""

    began_s: float
    each_s: float
    number: int
    prefills: bool = False
    complete: list[ModelRequest] = field(default_factory=list)

    @property
    def ends_s(self) -> float:
        return self.began_s + self.number * self.each_s


class SessionCache:
    """How many tokens of each session an engine has cached. What no request uses is given up for room, what was used
    longest ago first."""

    def __init__(self, keeps: bool) -> None:
        self._keeps = keeps
        self._users: dict[str, int] = {}
        self._used: dict[str, int] = {}
        self._unused: OrderedDict[str, int] = OrderedDict()
        self.unused_tokens = 0

    def tokens(self, session: str) -> int:
        """Of this session."""
        return self._used.get(session) or self._unused.get(session, 0)

    def use(self, session: str, prompt_tokens: int) -> None:
        """A request of the session starts."""
        if not session or not self._keeps:
            return
        unused = self._unused.pop(session, 0)
        self.unused_tokens -= unused
        self._users[session] = self._users.get(session, 0) + 1
        self._used[session] = max(self._used.get(session, 0), unused, prompt_tokens)

    def release(self, session: str, tokens: int) -> None:
        """One of its requests, of so many tokens with its answer, has ended."""
        if session not in self._users:
            return
        self._users[session] -= 1
        self._used[session] = max(self._used[session], tokens)
        if not self._users[session]:
            del self._users[session]
            self._unused[session] = self._used.pop(session)
            self.unused_tokens += self._unused[session]

    def shrink(self, most_tokens: int) -> None:
        """Give up what no request uses until so much of it is left."""
        while self._unused and self.unused_tokens > most_tokens:
            self.unused_tokens -= self._unused.popitem(last=False)[1]


class EngineModel:
    """Call `add` for each request, and `finish` at each time that `next_end_s` says. Times never go back."""

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._waiting: deque[ModelRequest] = deque()
        self._prefilling: list[ModelRequest] = []
        self._decoding: list[tuple[int, int, ModelRequest]] = []
        self._order = count()
        self._cache = SessionCache(spec.prefix_caching)
        self._reserved_tokens = 0
        self._begun: _Steps | None = None
        self.steps = 0

    # ---- facts -------------------------------------------------------------------------------------------------------

    @property
    def running(self) -> int:
        """How many requests it runs."""
        return len(self._prefilling) + len(self._decoding)

    @property
    def unfinished(self) -> int:
        """The same with those that wait in it."""
        return self.running + len(self._waiting)

    @property
    def kv_usage_ratio(self) -> float:
        """The part of the KV cache that running requests use."""
        return min(self._used_tokens() / self._spec.kv_cache_tokens, 1.0)

    @property
    def next_end_s(self) -> float:
        """When something happens next if nothing comes: a first token, or an end. Infinite: never."""
        return math.inf if self._begun is None else self._begun.ends_s

    def cached_tokens(self, session: str, prefix_tokens: int) -> int:
        """How many of the first tokens of a session's next prompt are in the prefix cache, in whole pages."""
        return min(self._cache.tokens(session), prefix_tokens) // PAGE_TOKENS * PAGE_TOKENS

    # ---- what happens ------------------------------------------------------------------------------------------------

    def add(self, request: ModelRequest, now_s: float) -> None:
        """A request comes. It is part of the first step that begins after it; at once where there is none."""
        self._waiting.append(request)
        if self._begun is None:
            self._plan(now_s)
            return
        steps = self._begun
        if steps.number > 1 and not steps.prefills:  # what follows the present step is planned again
            done = math.floor((now_s - steps.began_s) / steps.each_s + EPSILON_S)
            steps.number = min(done + 1, steps.number)

    def finish(self) -> StepEnd:
        """The steps that were planned have ended: what they gave. The next ones have begun. Raises ValueError where
        none were planned."""
        if self._begun is None:
            raise ValueError("nothing runs")
        steps, at_s = self._begun, self._begun.ends_s
        self.steps += steps.number
        ended = self._end_decoding()
        for request in steps.complete:
            self._prefilling.remove(request)
            request.first_step = self.steps
            more = math.ceil(request.output_tokens / self._spec.tokens_per_step) - 1
            request.last_step = self.steps + more
            if more:
                heapq.heappush(self._decoding, (request.last_step, next(self._order), request))
            else:
                ended.append(request)
        for request in ended:
            self._forget(request)
        self._plan(at_s)
        return StepEnd(at_s, tuple(steps.complete), tuple(ended))

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _plan(self, now_s: float) -> None:
        """Begin the next steps."""
        spec, decoding = self._spec, len(self._decoding)
        each_s = spec.gap_s + spec.gap_per_sequence_s * decoding
        budget = left = max(1, spec.max_num_batched_tokens - decoding * spec.tokens_per_step)
        complete: list[ModelRequest] = []
        if self._prefilling and self._prefilling[0].to_prefill > budget:
            self._plan_long_prompt(self._prefilling[0], budget, now_s, each_s)
            return
        for request in self._prefilling:
            left -= self._compute(request, left, complete)
        while self._waiting and left and self.running < spec.max_num_seqs and self._has_room(self._waiting[0]):
            request = self._waiting.popleft()
            self._start(request)
            left -= self._compute(request, left, complete)
        if left < budget:
            each_s += (budget - left) / spec.prefill_tokens_per_s
            self._begun = _Steps(now_s, each_s, 1, prefills=True, complete=complete)
        elif decoding:
            self._begun = _Steps(now_s, each_s, self._decoding[0][0] - self.steps)
        else:
            self._begun = None

    def _plan_long_prompt(self, request: ModelRequest, budget: int, now_s: float, each_s: float) -> None:
        """Steps that this prompt fills, all but its last one. What comes in them has to wait in any case."""
        number = math.ceil(request.to_prefill / budget) - 1
        if self._decoding:
            number = min(number, self._decoding[0][0] - self.steps)
        request.to_prefill -= number * budget
        self._begun = _Steps(now_s, each_s + budget / self._spec.prefill_tokens_per_s, number, prefills=True)

    @staticmethod
    def _compute(request: ModelRequest, left: int, complete: list[ModelRequest]) -> int:
        chunk = min(request.to_prefill, left)
        request.to_prefill -= chunk
        if chunk and not request.to_prefill:
            complete.append(request)
        return chunk

    def _start(self, request: ModelRequest) -> None:
        limit = (request.prompt_tokens - 1) // PAGE_TOKENS * PAGE_TOKENS  # the last token is computed in any case
        request.cached_tokens = min(self.cached_tokens(request.session, request.prefix_tokens), limit)
        request.to_prefill = request.prompt_tokens - request.cached_tokens
        self._prefilling.append(request)
        self._reserved_tokens += request.prompt_tokens + request.output_tokens
        self._cache.use(request.session, request.prompt_tokens)

    def _end_decoding(self) -> list[ModelRequest]:
        ended = []
        while self._decoding and self._decoding[0][0] <= self.steps:
            ended.append(heapq.heappop(self._decoding)[2])
        return ended

    def _forget(self, request: ModelRequest) -> None:
        tokens = request.prompt_tokens + request.output_tokens
        self._reserved_tokens -= tokens
        self._cache.release(request.session, tokens)
        if self._cache.unused_tokens + self._reserved_tokens > self._spec.kv_cache_tokens:
            self._cache.shrink(self._spec.kv_cache_tokens - self._used_tokens())

    def _has_room(self, request: ModelRequest) -> bool:
        if not self.running or self._reserved_tokens + request.prompt_tokens <= self._spec.kv_cache_tokens:
            return True
        return self._used_tokens() + request.prompt_tokens <= self._spec.kv_cache_tokens

    def _used_tokens(self) -> int:
        steps, each = self.steps, self._spec.tokens_per_step
        decoding = sum(one.prompt_tokens + (steps - one.first_step + 1) * each for _, _, one in self._decoding)
        return decoding + sum(one.prompt_tokens for one in self._prefilling)
