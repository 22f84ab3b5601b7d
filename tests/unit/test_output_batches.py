"""Steps of many engines that are there together are one batch; those of few are taken one by one."""

from __future__ import annotations

import asyncio

import pytest

from serve_app.ingress.output_batches import OutputBatches
from serve_app.protocol.paced_reads import FEW_CONNECTIONS


async def test_steps_of_many_engines_are_one_batch_in_their_order() -> None:
    batches: OutputBatches[int] = OutputBatches(lambda: FEW_CONNECTIONS + 1)
    batches.put([1])
    batches.put([2, 3])
    assert await batches.take() == [1, 2, 3]
    batches.put([4])
    assert await batches.take() == [4]


async def test_steps_of_few_engines_are_taken_one_by_one() -> None:
    batches: OutputBatches[int] = OutputBatches(lambda: FEW_CONNECTIONS)
    for number in range(3):
        batches.put([number, number])
    assert [await batches.take() for _ in range(3)] == [[0, 0], [1, 1], [2, 2]]


@pytest.mark.parametrize("engines", [1, FEW_CONNECTIONS + 1])
async def test_whoever_takes_waits_for_a_step(engines: int) -> None:
    batches: OutputBatches[int] = OutputBatches(lambda: engines)
    batches.put([0])
    assert await batches.take() == [0]
    taking = asyncio.create_task(batches.take())
    await asyncio.sleep(0)
    assert not taking.done()
    batches.put([7])
    assert await taking == [7]
