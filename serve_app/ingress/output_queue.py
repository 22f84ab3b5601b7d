"""The queue between the engine's outputs and the task that answers a request. What repeats is sent from here.

vLLM's task that takes in a step puts each output into its request's queue, and wakes that request's task. A chunk that
only repeats others (`repeated_chunks.py`) needs nothing of that task, so `put` sends it at once and the task sleeps on:
waking it costs more than making the chunk.

That is done only while the task waits for the next output: all before it has then been sent, and nothing can overtake
it. If the connection takes no more (a slow client), or another task is writing a keep-alive, the send cannot end here.
It is then the request's task that ends it, and outputs wait in the queue, as they do without repetition. Errors of a
send are that task's too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Coroutine, Generator
from typing import Any

from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.output_processor import RequestOutputCollector

from serve_app.ingress.repeated_chunks import RepeatedChunks
from serve_app.router.request_context import RequestContext


class UnfinishedSend:
    """A coroutine that one task has begun, and another one finishes by awaiting this."""

    def __init__(self, coroutine: Coroutine[Any, Any, None], waits_for: Any) -> None:
        self._coroutine = coroutine
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, None]:
        try:
            yield self._waits_for
            yield from self._coroutine.__await__()
        finally:
            self.close()

    def close(self) -> None:
        """It is not to be finished."""
        self._coroutine.close()


def begin(coroutine: Coroutine[Any, Any, None]) -> UnfinishedSend | None:
    """Run it as far as it goes without waiting. None: to its end."""
    try:
        waits_for = coroutine.send(None)
    except StopIteration:
        return None
    return UnfinishedSend(coroutine, waits_for)


def is_ordinary(output: Any) -> bool:
    """Whether it is neither an error nor the last output."""
    return isinstance(output, RequestOutput) and output.outputs[0].finish_reason is None


class OutputQueue(RequestOutputCollector):  # type: ignore[misc]  # vLLM is not read by mypy
    """vLLM's queue of one sequence's outputs; it takes the place of `queue`. The request's task gets only what vLLM's
    generator must see."""

    def __init__(self, queue: RequestOutputCollector, context: RequestContext) -> None:
        kind = RequestOutputKind.DELTA if queue.aggregate else RequestOutputKind.CUMULATIVE
        super().__init__(kind, queue.request_id)
        self._context = context
        self._chunks: RepeatedChunks | None = None
        self._is_waiting = False
        """Whether the request's task waits for `ready`: it has sent everything that it got."""
        self._unfinished: UnfinishedSend | None = None
        self._for_vllm: deque[Any] = deque()
        """Outputs that were parsed and are vLLM's. No other may be merged into them."""
        self._is_with_vllm = False
        if queue.output is not None:
            super().put(queue.output)

    def put(self, output: Any) -> None:
        """See `RequestOutputCollector`."""
        chunks = self._chunks
        if chunks is None or not (self._may_pass_on(chunks) and is_ordinary(output)):
            super().put(output)
            return
        try:
            self._pass_on(chunks, output)
        except Exception as error:  # noqa: BLE001  # this request's, whose task raises it: all others must go on
            super().put(error)

    def get_nowait(self) -> None:
        """See `RequestOutputCollector`. Nothing: what is there may have to be sent, which takes time."""

    async def get(self) -> Any:
        """See `RequestOutputCollector`."""
        if self._chunks is not None and self._is_with_vllm:
            self._chunks.after_vllm()
        self._is_with_vllm = False
        while True:
            if self._unfinished is not None:
                await self._unfinished
                self._unfinished = None
            if self._for_vllm:
                return self._give(self._for_vllm.popleft())
            output = super().get_nowait()
            if output is None:
                await self._wait()
                continue
            self._chunks = self._chunks or RepeatedChunks.of(self._context)
            if self._chunks is None:
                return output
            self._pass_on(self._chunks, output)

    def close(self) -> None:
        """See `RequestOutputCollector`."""
        if self._unfinished is not None:
            self._unfinished.close()
        super().close()

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _may_pass_on(self, chunks: RepeatedChunks) -> bool:
        """Whether nothing of this request is on its way."""
        return self._is_waiting and chunks.is_repeating and not self.ready.is_set()

    def _pass_on(self, chunks: RepeatedChunks, output: Any) -> None:
        chunk = chunks.next_chunk(output.outputs[0])
        if chunk is None:
            self._for_vllm.extend(chunks.for_vllm(output))
        elif chunk:
            self._unfinished = begin(chunks.send(chunk))
        if self._for_vllm or self._unfinished is not None:
            self.ready.set()

    async def _wait(self) -> None:
        self.ready.clear()
        self._is_waiting = True
        try:
            await self.ready.wait()
        finally:
            self._is_waiting = False

    def _give(self, output: Any) -> Any:
        if self._chunks is not None:
            self._chunks.before_vllm(output)
        self._is_with_vllm = True
        return output
