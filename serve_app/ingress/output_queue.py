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
from collections.abc import Callable, Coroutine, Generator, Sequence
from functools import partial
from typing import Any

from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine import EngineCoreOutput
from vllm.v1.engine.detokenizer import FastIncrementalDetokenizer
from vllm.v1.engine.output_processor import RequestOutputCollector, RequestState

from serve_app.ingress.repeated_chunks import RepeatedChunks
from serve_app.router.request_context import RequestContext
from serve_app.vllm_patches.answer_stops import AnswerOutputProcessor


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


def _same(output: Any) -> Any:
    return output


def is_ordinary(output: Any) -> bool:
    """Whether it is neither an error nor the last output."""
    return isinstance(output, RequestOutput) and output.outputs[0].finish_reason is None


class OutputQueue(RequestOutputCollector):  # type: ignore[misc]  # vLLM is not read by mypy
    """vLLM's queue of one sequence's outputs; it takes the place of `queue`. The request's task gets only what vLLM's
    generator must see."""

    def __init__(self, queue: RequestOutputCollector, context: RequestContext, *, is_plain: bool = False) -> None:
        kind = RequestOutputKind.DELTA if queue.aggregate else RequestOutputKind.CUMULATIVE
        super().__init__(kind, queue.request_id)
        self.is_plain = is_plain
        """Whether each output is the text of its new tokens, whatever came before (see below)."""
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
        if not (self.may_pass_on() and is_ordinary(output)):
            super().put(output)
            return
        one = output.outputs[0]
        self.pass_on(one.text, one.token_ids, partial(_same, output))

    def may_pass_on(self) -> bool:
        """Whether what comes next may be sent at once: nothing of this request is on its way."""
        return self._is_waiting and not self.ready.is_set() and self._chunks is not None and self._chunks.is_repeating

    def pass_on(self, text: str, token_ids: Sequence[int], output: Callable[[], Any]) -> None:
        """Send what comes next at once, or keep it for vLLM's generator as this output. Only if it may be."""
        if self._chunks is None:
            raise RuntimeError("nothing repeats")
        try:
            self._send(self._chunks, text, token_ids, output)
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
            one = output.outputs[0]
            finished = one.finish_reason is not None
            self._send(self._chunks, one.text, one.token_ids, partial(_same, output), finished=finished)

    def close(self) -> None:
        """See `RequestOutputCollector`."""
        if self._unfinished is not None:
            self._unfinished.close()
        super().close()

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _send(
        self,
        chunks: RepeatedChunks,
        text: str,
        token_ids: Sequence[int],
        output: Callable[[], Any],
        *,
        finished: bool = False,
    ) -> None:
        chunk = chunks.next_chunk(text, token_ids, finished=finished)
        if chunk is None:
            self._for_vllm.extend(chunks.for_vllm(output()))
            self.ready.set()
        elif chunk and (unfinished := begin(chunks.send(chunk))) is not None:
            self._unfinished = unfinished
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


class SendingOutputProcessor(AnswerOutputProcessor):
    """vLLM's, which makes no objects of an output whose chunk is sent at once."""

    def process_outputs(self, engine_core_outputs: Sequence[EngineCoreOutput], *args: Any, **named: Any) -> Any:
        """See `OutputProcessor`. Of a request, nothing is sent past an output that has to go vLLM's way."""
        left: list[EngineCoreOutput] = []
        requests_left: set[str] = set()
        for output in engine_core_outputs:
            if output.request_id in requests_left or not self._sends(output):
                left.append(output)
                requests_left.add(output.request_id)
        return super().process_outputs(left, *args, **named)

    def _sends(self, output: EngineCoreOutput) -> bool:
        state = self.request_states.get(output.request_id)
        if state is None or not isinstance(state.queue, OutputQueue) or not state.queue.may_pass_on():
            return False
        if not (state.queue.is_plain and has_tokens_only(output)):
            return False
        token_ids = output.new_token_ids
        # Not by `update`, which appends each token to a copy of the whole text, for stop strings.
        text = "".join([state.detokenizer.decode_next(token_id) for token_id in token_ids])
        state.detokenizer.token_ids.extend(token_ids)
        state.queue.pass_on(text, token_ids, partial(output_of, state, text, token_ids))
        return True


def has_tokens_only(output: EngineCoreOutput) -> bool:
    """Whether the output is new tokens, and nothing else that vLLM's code reads."""
    return (
        output.finish_reason is None
        and output.new_logprobs is None
        and output.new_prompt_logprobs_tensors is None
        and output.prompt_token_id_logprobs is None
        and output.pooling_output is None
        and output.prefill_stats is None
        and output.kv_transfer_params is None
        and output.ec_transfer_params is None
        and output.routed_experts is None
        and output.new_sampling_mask is None
        and output.spec_decode_metrics is None
    )


def is_plain(state: RequestState) -> bool:
    """Whether each output of the request is the text of its new tokens, and no text ends it."""
    return (
        isinstance(state.detokenizer, FastIncrementalDetokenizer)
        and not state.detokenizer.stop
        and state.output_kind is RequestOutputKind.DELTA
        and state.stream_interval == 1
        and not state.streaming_input
    )


def output_of(state: RequestState, text: str, token_ids: Sequence[int]) -> Any:
    """What vLLM makes of tokens that have been decoded already."""
    output = state.make_request_output(token_ids, None, None, None)
    output.outputs[0].text = text
    return output
