"""The tokens of all replicas' steps, in batches for vLLM's task that takes in a step of an engine.

That task, and each task that it wakes, costs as much for a step with one sequence as the chunk of one. With one engine
a step has all sequences of this ingress; with 64 it has a few, and there are 64 times as many. So steps that come in
quick succession go together: at most one batch in `PERIOD_S`. A step after a pause of that length waits for nothing,
so an ingress of one engine has no batches at all.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")

PERIOD_S = 0.005
"""The longest that a token waits here. An engine's step takes 10 to 50 ms, and no client sees a fifth of it."""


class OutputBatches(Generic[T]):
    """Outputs in their order. `clock` gives seconds, and `sleep` waits for as many."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._outputs: list[T] = []
        self._ready = asyncio.Event()
        self._taken_s = float("-inf")

    def put(self, outputs: Sequence[T]) -> None:
        """Those of one step."""
        self._outputs.extend(outputs)
        self._ready.set()

    async def take(self) -> list[T]:
        """All that there are, as soon as there is one and `PERIOD_S` has passed since the last batch. One caller at a
        time."""
        await self._ready.wait()
        early_s = self._taken_s + PERIOD_S - self._clock()
        if early_s > 0:
            await self._sleep(early_s)
        self._taken_s = self._clock()
        self._ready.clear()
        outputs, self._outputs = self._outputs, []
        return outputs
