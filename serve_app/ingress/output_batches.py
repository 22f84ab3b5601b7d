"""The tokens of all replicas' steps, for vLLM's task that takes in a step of an engine: in batches, of many replicas.

That task, and each task that it wakes, costs as much for a step with one sequence as the chunk of one. With one engine
a step has all sequences of this ingress; with 64 it has a few, and there are 64 times as many. So where there are more
than `FEW_ENGINES`, steps that come in quick succession go together: at most one batch in `PERIOD_S`, and a step after a
pause of that length waits for nothing. Where there are few, each step is taken by itself and at once: a stream has
exactly the chunks that it would have from vLLM.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")

FEW_ENGINES = 24
"""Where steps follow one another within `PERIOD_S`, a batch may have two of one request, which are then one chunk of
its stream. Engines of this model take longer, but for the few hundred GPUs that most have, nothing is to depend on it.
"""

PERIOD_S = 0.005
"""The longest that a token waits here. An engine's step takes 10 to 50 ms, and no client sees a fifth of it."""


class OutputBatches(Generic[T]):
    """Outputs in their order. `engines` says how many there are, `clock` gives seconds, and `sleep` waits for as
    many."""

    def __init__(
        self,
        engines: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._engines = engines
        self._clock = clock
        self._sleep = sleep
        self._steps: deque[Sequence[T]] = deque()
        self._ready = asyncio.Event()
        self._taken_s = float("-inf")

    def put(self, outputs: Sequence[T]) -> None:
        """Those of one step."""
        self._steps.append(outputs)
        self._ready.set()

    async def take(self) -> list[T]:
        """Those of the next step, as soon as there is one. Of many engines: all that there are, when `PERIOD_S` has
        passed since the last batch. One caller at a time."""
        await self._ready.wait()
        if self._engines() <= FEW_ENGINES:
            outputs = list(self._steps.popleft())
            if not self._steps:
                self._ready.clear()
            return outputs
        early_s = self._taken_s + PERIOD_S - self._clock()
        if early_s > 0:
            await self._sleep(early_s)
        self._taken_s = self._clock()
        self._ready.clear()
        outputs = [output for step in self._steps for output in step]
        self._steps.clear()
        return outputs
