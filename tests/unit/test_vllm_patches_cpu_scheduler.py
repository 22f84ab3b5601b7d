"""What a step takes of each prompt on a CPU, and that vLLM's scheduler holds to it."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

from serve_app.vllm_patches.cpu_scheduler import (
    LEAST_CHUNK,
    STEP_BUDGET,
    TOKEN_COST,
    Prefill,
    bound_chunks,
    share_steps,
    shares,
)

MODULE = ModuleType("scheduler")


def cost(prefills: list[Prefill]) -> int:
    taken = shares(prefills)
    return sum(taken[one.request_id] * (one.computed + TOKEN_COST) for one in prefills)


def test_a_chunk_shrinks_as_its_context_grows() -> None:
    sizes = [shares([Prefill("a", computed, 100_000)])["a"] for computed in (0, 10_000, 50_000, 100_000, 200_000)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 128, "a small prompt is not cut"
    assert sizes[-2:] == [LEAST_CHUNK, LEAST_CHUNK], "the kernel for long contexts takes no smaller ones"


def test_several_long_prompts_cost_a_step_little_more_than_one() -> None:
    assert cost([Prefill(str(one), 25_000, 5_000 + one) for one in range(8)]) <= STEP_BUDGET
    # The oldest and the shortest go on whatever it costs.
    assert cost([Prefill(str(one), 90_000, 5_000 - one) for one in range(8)]) <= 2 * STEP_BUDGET


def test_a_small_prompt_goes_before_long_ones_and_the_oldest_goes_on() -> None:
    taken = shares([Prefill("old", 90_000, 10_000), Prefill("long", 20_000, 10_000), Prefill("small", 100, 64)])
    assert taken["small"] == 64
    assert taken["old"] >= LEAST_CHUNK


def test_a_step_without_prompts_has_no_shares() -> None:
    assert shares([]) == {}


def request(name: str, computed: int, tokens: int) -> Any:
    return SimpleNamespace(request_id=name, num_computed_tokens=computed, num_tokens=tokens)


def scheduled(running: list[Any], waiting: int = 0) -> Any:
    """A scheduler that has begun a step."""
    scheduler = SimpleNamespace(running=running, get_request_counts=lambda: (len(running), waiting))
    share_steps(lambda self, *_: self, MODULE)(scheduler)
    return scheduler


def chunk(scheduler: Any, one: Any, new: int) -> int:
    bounded = bound_chunks(lambda _self, _request, _computed, new: new, MODULE)
    return int(bounded(scheduler, one, one.num_computed_tokens, new))


def test_a_prompt_that_is_alone_is_not_bounded() -> None:
    long = request("long", 90_000, 100_000)
    assert chunk(scheduled([long]), long, 1024) == 1024
    assert LEAST_CHUNK <= chunk(scheduled([long], waiting=1), long, 1024) < 2 * LEAST_CHUNK


def test_decodes_and_ends_of_prompts_are_not_bounded() -> None:
    long, decoding = request("long", 90_000, 100_000), request("decoding", 150_000, 150_001)
    scheduler = scheduled([long, decoding])
    assert chunk(scheduler, decoding, 4) == 4
    assert chunk(scheduler, request("end", 99_990, 100_000), 10) == 10


def test_a_waiting_prompt_begins_however_many_stand_before_it() -> None:
    scheduler = scheduled([request(str(one), 90_000, 100_000) for one in range(4)], waiting=2)
    assert chunk(scheduler, request("new", 0, 160), 160) == 160
    assert LEAST_CHUNK <= chunk(scheduler, request("cached", 90_000, 100_000), 512) < 2 * LEAST_CHUNK
