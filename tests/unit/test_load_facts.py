"""Prefill that waits, its rate, and recent load, against engines of which they are known."""

from __future__ import annotations

import random

import pytest

from serve_app.engine.load_facts import PrefillQueue, RecentMean

RATE = 10_000.0
STEP_S = 0.01


def serve(queue: PrefillQueue, prompts: list[tuple[float, int]], began_s: float = 0.0) -> float:
    """An engine that computes one prompt after the other, a step's overhead each. Returns when the last is done."""
    ends, free_s = [], began_s
    for number, (arrival_s, tokens) in enumerate(prompts):
        free_s = max(free_s, began_s + arrival_s) + STEP_S + tokens / RATE
        ends.append((free_s, number))
    arrivals = [(began_s + arrival_s, number) for number, (arrival_s, _) in enumerate(prompts)]
    for now_s, kind, number in sorted([*((at, 0, n) for at, n in arrivals), *((at, 1, n) for at, n in ends)]):
        tokens, name = prompts[number][1], f"{began_s}-{number}"
        if kind == 0:
            queue.enter(name, tokens, now_s)
        else:
            queue.first_token(name, tokens, now_s)
            queue.leave(name, now_s)
    return free_s


def test_nothing_is_claimed_before_anything_was_computed() -> None:
    queue = PrefillQueue(4, 0.0)
    assert queue.tokens_per_s is None
    queue.enter("one", 5000, 0.0)
    assert queue.queued_tokens(100.0) == 5000
    queue.leave("one", 100.0)
    assert queue.tokens_per_s is None and queue.queued_tokens(100.0) == 0


@pytest.mark.parametrize("per_second", [0.01, 0.5, 5.0])
def test_it_finds_the_rate_at_any_load(per_second: float) -> None:
    draw = random.Random(1)
    queue = PrefillQueue(64, 0.0)
    serve(queue, [(number / per_second, draw.randrange(1000, 20_000)) for number in range(300)])
    assert queue.tokens_per_s == pytest.approx(RATE, rel=0.05)


def test_tiny_prompts_do_not_hide_how_fast_long_ones_are() -> None:
    queue = PrefillQueue(64, 0.0)
    end_s = serve(queue, [(number * 10.0, 50_000) for number in range(4)])
    serve(queue, [(number * 0.5, 10) for number in range(5000)], end_s)
    assert queue.tokens_per_s == pytest.approx(RATE, rel=0.05)


def test_tiny_prompts_are_a_first_guess() -> None:
    queue = PrefillQueue(64, 0.0)
    end_s = serve(queue, [(number * 0.5, 90) for number in range(10)])
    assert queue.tokens_per_s == pytest.approx(90 / 0.019, rel=0.01)
    serve(queue, [(0.0, 50_000)], end_s)
    assert queue.tokens_per_s == pytest.approx(RATE, rel=0.05)


def test_prompts_that_end_in_one_step_share_its_time() -> None:
    queue = PrefillQueue(64, 0.0)
    for name in "abcd":
        queue.enter(name, 2000, 0.0)
    for name in "abcd":
        queue.first_token(name, 2000, 0.8)
    assert queue.tokens_per_s == pytest.approx(RATE, rel=0.05)


def test_time_without_a_slot_does_not_count() -> None:
    queue = PrefillQueue(1, 0.0)
    queue.enter("runs", 10_000, 0.0)
    queue.enter("waits", 10_000, 0.0)
    queue.first_token("runs", 10_000, 1.0)
    assert queue.queued_tokens(100.0) == 10_000
    queue.leave("runs", 100.0)
    queue.first_token("waits", 10_000, 101.0)
    assert queue.tokens_per_s == pytest.approx(RATE)


def test_it_follows_when_the_engine_gets_slower() -> None:
    queue = PrefillQueue(4, 0.0)
    now_s = 0.0
    for tokens_per_s in (10_000, 2_000):
        for number in range(20):
            queue.enter(str(number), 50_000, now_s)
            now_s += 50_000 / tokens_per_s
            queue.first_token(str(number), 50_000, now_s)
            queue.leave(str(number), now_s)
        assert queue.tokens_per_s == pytest.approx(tokens_per_s, rel=0.05)


def test_the_oldest_prompt_is_counted_as_computed_little_by_little() -> None:
    queue = PrefillQueue(4, 0.0)
    queue.enter("measures", 20_000, 0.0)
    queue.first_token("measures", 20_000, 2.0)
    queue.enter("long", 10_000, 50.0)
    queue.enter("next", 3_000, 50.2)
    assert queue.queued_tokens(50.5) == 13_000 - 5_000
    assert queue.queued_tokens(60.0) == 13_000 - 9_000
    queue.first_token("long", 10_000, 60.0)
    assert queue.queued_tokens(60.0) == 3_000
    queue.leave("next", 60.2)
    assert queue.queued_tokens(60.2) == 0


def test_an_aborted_prompt_neither_counts_nor_leaves_its_progress_to_the_next() -> None:
    queue = PrefillQueue(4, 0.0)
    queue.enter("measures", 20_000, 0.0)
    queue.first_token("measures", 20_000, 2.0)
    queue.enter("aborted", 50_000, 2.0)
    queue.enter("next", 5_000, 3.0)
    queue.leave("aborted", 4.0)
    assert queue.queued_tokens(4.0) == 5_000
    queue.first_token("next", 5_000, 4.5)
    assert queue.tokens_per_s == pytest.approx(RATE, rel=0.01)


def test_the_recent_mean_follows_within_minutes() -> None:
    mean = RecentMean(0.0)
    assert mean.mean(10.0) == 0.0
    mean.set(8, 10.0)
    assert mean.mean(10.0) == 0.0
    assert mean.mean(70.0) == pytest.approx(8 * (1 - 1 / 2.718281828))
    assert mean.mean(1000.0) == pytest.approx(8.0, abs=1e-5)
    mean.set(0, 1000.0)
    assert 0 < mean.mean(1030.0) < 8
    assert mean.mean(5000.0) == pytest.approx(0.0, abs=1e-5)


def test_the_recent_mean_weighs_by_time_and_not_by_events() -> None:
    mean = RecentMean(0.0)
    for second in range(600):
        mean.set(10, float(second))
        mean.set(0, second + 0.25)
    assert mean.mean(600.0) == pytest.approx(2.5, rel=0.02)
