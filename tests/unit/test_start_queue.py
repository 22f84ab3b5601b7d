"""What an engine is given next, and in which order it takes what it has."""

from __future__ import annotations

import asyncio

from serve_app.engine.fair_queue import Flow
from serve_app.engine.start_queue import StartQueue


async def started(*flows: Flow) -> dict[str, int]:
    """The engine priorities of attempts of these flows, which start one after the other, by their number."""
    queue = StartQueue(slots=32, step_tokens=1_000_000, max_wait_s=60.0, clock=lambda: 0.0)
    for number, flow in enumerate(flows):
        await asyncio.wait_for(queue.turn(str(number), flow, 1000, 0), 10)
    return {str(number): queue.engine_priority(str(number)) for number in range(len(flows))}


def in_order(priorities: dict[str, int]) -> list[str]:
    return sorted(priorities, key=lambda name: (priorities[name], int(name)))


async def test_prompts_in_the_engine_are_taken_from_each_client_in_turn() -> None:
    flood, other = Flow("flood"), Flow("other")
    assert in_order(await started(flood, flood, flood, other, flood)) == ["0", "3", "1", "2", "4"]


async def test_a_client_of_twice_the_weight_has_two_turns() -> None:
    heavy, light = Flow("heavy", weight=2.0), Flow("light")
    assert in_order(await started(heavy, heavy, heavy, light, light)) == ["0", "1", "3", "2", "4"]


async def test_a_higher_class_goes_before_however_much_it_has_there() -> None:
    high, low = Flow("high", rank=1), Flow("low")
    assert in_order(await started(low, high, high, high)) == ["1", "2", "3", "0"]


async def test_a_prompt_that_was_computed_takes_no_turn_from_the_next() -> None:
    queue = StartQueue(slots=32, step_tokens=1_000_000, max_wait_s=60.0, clock=lambda: 0.0)
    for name in ("first", "second"):
        await asyncio.wait_for(queue.turn(name, Flow("client"), 1000, 0), 10)
        queue.first_token(name)
    assert queue.engine_priority("second") == queue.engine_priority("first")
