"""The tokens of all replicas' steps, for vLLM's task that takes in a step of an engine: in batches, of many replicas.

That task, and each task that it wakes, costs as much for a step with one sequence as the chunk of one. With one engine
a step has all sequences of this ingress; with 64 it has a few, and there are 64 times as many. So where there are more
than a few, the steps that were read together (`protocol/paced_reads.py`) are one batch. Where there are few, each step
is taken by itself: a stream has exactly the chunks that it would have from vLLM.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from serve_app.protocol.paced_reads import FEW_CONNECTIONS

T = TypeVar("T")


class OutputBatches(Generic[T]):
    """Outputs in their order. `engines` says how many there are."""

    def __init__(self, engines: Callable[[], int]) -> None:
        self._engines = engines
        self._steps: deque[Sequence[T]] = deque()
        self._ready = asyncio.Event()

    def put(self, outputs: Sequence[T]) -> None:
        """Those of one step."""
        self._steps.append(outputs)
        self._ready.set()

    async def take(self) -> list[T]:
        """Those of the next step, as soon as there is one; of many engines all that there are. One caller at a
        time."""
        await self._ready.wait()
        if self._engines() <= FEW_CONNECTIONS:
            outputs = list(self._steps.popleft())
        else:
            outputs = [output for step in self._steps for output in step]
            self._steps.clear()
        if not self._steps:
            self._ready.clear()
        return outputs
