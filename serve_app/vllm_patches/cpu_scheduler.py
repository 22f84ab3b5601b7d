"""Bounds the cost of the prompts in a step on a CPU, so that a long prompt does not stall the streams beside it.

vLLM bounds the tokens that a step takes of one prompt (`long_prefill_token_threshold`). But on a CPU the cost of a
token is its attention: at 100,000 tokens of context it is ten times that at the prompt's beginning. A threshold that is
right there would cut each small prompt into pieces; one that is right for small prompts stalls all streams for seconds
there. So while there are several requests, a step has a budget for its prompts, in tokens times the context that they
attend to.

Half of it goes to the oldest prompt, which so ends some time, the rest to the one with the least left to do, and so on:
a small prompt does not wait for long ones, and several long ones cost a step no more than one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

from serve_app.vllm_patches.patching import Function, PatchTarget

SCHEDULE: Final = PatchTarget("vllm.v1.core.sched.scheduler", "Scheduler", "schedule", ("throttle_prefills",))
CHUNK: Final = PatchTarget(
    "vllm.v1.core.sched.scheduler",
    "Scheduler",
    "_reserve_prefill_lookahead",
    ("request", "num_computed_tokens", "num_new_tokens"),
)
"""Decides a chunk's size last, for running and for waiting requests."""

TOKEN_COST: Final = 12_288
"""The cost of a token besides its attention (mostly matrix products), in tokens of context: a rough fit."""

LEAST_CHUNK: Final = 16
"""In tokens. The flash kernel works on blocks of 32 rows, and two query heads share a key (`cpu_attention.py`)."""

STEP_BUDGET: Final = 20 * (100_000 + TOKEN_COST)
"""176 tokens at the beginning of a prompt, 16 after 100,000. docs/decisions/0012 has its effect."""

SHARES: Final = "_step_serve_prefill_shares"
"""Where a scheduler keeps the shares of the step that it schedules."""


@dataclass(frozen=True)
class Prefill:
    """A prompt that is being computed: tokens done, and tokens left."""

    request_id: str
    computed: int
    remaining: int


def affordable(budget: int, computed: int) -> int:
    """How many tokens after so many computed ones the budget pays for, in whole blocks of the kernel."""
    count = budget // (computed + TOKEN_COST)
    return count - count % LEAST_CHUNK


def shares(prefills: Sequence[Prefill]) -> dict[str, int]:
    """How many tokens of each prompt a step takes; `prefills` are in the order of their age.

    A prompt gets nothing or at least `LEAST_CHUNK`, and the oldest and the shortest get something.
    """
    taken = dict.fromkeys((one.request_id for one in prefills), 0)
    if not prefills:
        return taken
    by_length = sorted(prefills, key=lambda one: one.remaining)
    left = STEP_BUDGET
    for one in (prefills[0], by_length[0], *by_length):
        already = taken[one.request_id]
        first_turn = one in (prefills[0], by_length[0]) and not already
        count = affordable(STEP_BUDGET // 2 if first_turn else left, one.computed + already)
        if first_turn:
            count = max(count, LEAST_CHUNK)
        count = min(count, one.remaining - already)
        if already or count >= min(LEAST_CHUNK, one.remaining):
            taken[one.request_id] = already + max(count, 0)
            left -= max(count, 0) * (one.computed + already + TOKEN_COST)
    return taken


def share_steps(original: Function, _scheduler: ModuleType) -> Function:
    """`Scheduler.schedule`, which first decides what each running prompt gets of the step."""

    def schedule(self: Any, *args: Any, **kwargs: Any) -> Any:
        prefills = [
            Prefill(request.request_id, request.num_computed_tokens, request.num_tokens - request.num_computed_tokens)
            for request in self.running
            if request.num_tokens - request.num_computed_tokens > LEAST_CHUNK
        ]
        alone = sum(self.get_request_counts()) <= 1
        setattr(self, SHARES, None if alone else shares(prefills))
        return original(self, *args, **kwargs)

    return schedule


def bound_chunks(original: Function, _scheduler: ModuleType) -> Function:
    """`Scheduler._reserve_prefill_lookahead`, which also holds a chunk to its prompt's share of the step."""

    def _reserve_prefill_lookahead(self: Any, request: Any, num_computed_tokens: int, num_new_tokens: int) -> Any:
        running = getattr(self, SHARES, None)
        if running is not None and num_new_tokens > LEAST_CHUNK:
            # A waiting request is not in it: it begins with a chunk, and must not wait for those before it.
            new = max(affordable(STEP_BUDGET, num_computed_tokens), LEAST_CHUNK)
            num_new_tokens = min(num_new_tokens, running.get(request.request_id, new))
        return original(self, request, num_computed_tokens, num_new_tokens)

    return _reserve_prefill_lookahead
