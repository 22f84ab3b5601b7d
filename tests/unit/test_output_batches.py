"""Steps of many engines that come in quick succession are one batch; one after a pause waits for nothing."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from serve_app.ingress.output_batches import FEW_ENGINES, PERIOD_S, OutputBatches


@dataclass
class Time:
    """A clock that moves when it is slept on, and what happens meanwhile."""

    engines: int = FEW_ENGINES + 1
    now_s: float = 100.0
    slept_s: list[float] = field(default_factory=list)
    meanwhile: list[int] = field(default_factory=list)
    batches: OutputBatches[int] = field(init=False)

    def __post_init__(self) -> None:
        self.batches = OutputBatches(lambda: self.engines, lambda: self.now_s, self.sleep)

    async def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.now_s += seconds
        self.batches.put(self.meanwhile)


async def test_the_first_step_waits_for_nothing() -> None:
    time = Time()
    time.batches.put([1, 2])
    assert await time.batches.take() == [1, 2]
    assert time.slept_s == []


async def test_a_step_after_a_pause_waits_for_nothing() -> None:
    time = Time()
    for number in range(3):
        time.batches.put([number])
        assert await time.batches.take() == [number]
        time.now_s += PERIOD_S
    assert time.slept_s == []


async def test_steps_in_quick_succession_are_one_batch_in_their_order() -> None:
    time = Time(meanwhile=[3, 4])
    time.batches.put([1])
    await time.batches.take()
    time.now_s += PERIOD_S / 4
    time.batches.put([2])
    assert await time.batches.take() == [2, 3, 4]
    (waited_s,) = time.slept_s
    assert 0 < waited_s <= PERIOD_S


async def test_steps_of_few_engines_are_taken_one_by_one_and_at_once() -> None:
    time = Time(engines=FEW_ENGINES)
    for number in range(3):
        time.batches.put([number, number])
    assert [await time.batches.take() for _ in range(3)] == [[0, 0], [1, 1], [2, 2]]
    assert time.slept_s == []
    time.batches.put([3])
    assert await time.batches.take() == [3]


async def test_nothing_is_taken_before_there_is_something() -> None:
    batches: OutputBatches[int] = OutputBatches(lambda: 1)
    taking = asyncio.create_task(batches.take())
    await asyncio.sleep(0)
    assert not taking.done()
    batches.put([1])
    assert await taking == [1]
