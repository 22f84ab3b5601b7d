"""What repeats is sent by the queue itself, in order, and no faster than the client reads."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from transformers import AutoTokenizer
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason
from vllm.v1.engine.output_processor import RequestOutputCollector

from serve_app.config.profile import ROOT
from serve_app.ingress.output_queue import OutputQueue, SendingOutputProcessor, is_plain
from serve_app.router.request_context import RequestContext

TOKENIZER = AutoTokenizer.from_pretrained(ROOT / "models" / "step-tiny", trust_remote_code=True)


@dataclass
class Stream:
    """A `ChunkStream` whose client reads while `reads` is set."""

    chunks: int = 0
    last_chunk: bytes = b""
    sent: list[bytes] = field(default_factory=list)
    reads: asyncio.Event = field(default_factory=asyncio.Event)
    stopped: int = 0
    """Sends that were given up."""
    error: Exception | None = None

    async def body(self, message: Any) -> None:
        self.chunks += 1
        self.last_chunk = message["body"]
        try:
            await self.reads.wait()
        except (asyncio.CancelledError, GeneratorExit):
            self.stopped += 1
            raise
        if self.error is not None:
            raise self.error
        self.sent.append(message["body"])


@dataclass
class Answering:
    """A request, and the task that answers it as vLLM's generator does."""

    queue: OutputQueue
    stream: Stream
    task: asyncio.Task[None]
    given: list[RequestOutput]
    """What vLLM's generator got."""

    async def turn(self) -> None:
        """Let the task do what it can."""
        for _ in range(20):
            await asyncio.sleep(0)

    def texts(self) -> list[str]:
        return [msgspec.json.decode(chunk)["text"] for chunk in self.stream.sent]


def output(text: str, *ids: int, finish: str | None = None) -> RequestOutput:
    one = CompletionOutput(0, text, list(ids), None, None, finish_reason=finish)
    return RequestOutput("r", None, [1], None, [one], finished=finish is not None)


@contextlib.asynccontextmanager
async def answering() -> AsyncIterator[Answering]:
    """Two outputs have been sent by vLLM's generator: the next ones repeat."""
    stream = Stream()
    stream.reads.set()
    context = RequestContext("r", stream=stream, is_plain_text=True)
    queue = OutputQueue(RequestOutputCollector(RequestOutputKind.DELTA, "r"), context)
    given: list[RequestOutput] = []

    async def answer() -> None:
        finished = False
        while not finished:
            one = queue.get_nowait() or await queue.get()
            given.append(one)
            finished = one.finished
            chunk = b'{"text":' + msgspec.json.encode(one.outputs[0].text) + b"}"
            await stream.body({"type": "http.response.body", "body": chunk, "more_body": True})

    task = asyncio.create_task(answer())
    running = Answering(queue, stream, task, given)
    for text in ("a", "b"):
        queue.put(output(text, 1))
        await running.turn()
    assert len(given) == 2
    try:
        yield running
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        queue.close()


async def test_a_chunk_that_repeats_is_sent_at_once() -> None:
    async with answering() as running:
        running.queue.put(output("c", 2, 3))
        assert running.texts() == ["a", "b", "c"]
        running.queue.put(output("d", 4, finish="length"))
        await running.task
        assert running.texts() == ["a", "b", "c", "d"]
        assert [one.outputs[0].token_ids for one in running.given] == [[1], [1], [2, 3, 4]]


async def test_nothing_overtakes_what_the_task_has() -> None:
    async with answering() as running:
        running.queue.put(output("c", 2, finish="stop"))
        running.queue.put(output("d", 3))
        assert running.texts() == ["a", "b"]


async def test_a_slow_client_is_waited_for_by_the_task() -> None:
    async with answering() as running:
        running.stream.reads.clear()
        for text in "cdef":
            running.queue.put(output(text, 2))
            await running.turn()
        assert running.texts() == ["a", "b"]
        assert running.stream.chunks == 3  # one is being sent, the others are merged
        running.stream.reads.set()
        await running.turn()
        assert running.texts() == ["a", "b", "c", "def"]
        running.queue.put(output("g", 2))
        assert running.texts()[-1] == "g"
        assert len(running.given) == 2


async def test_a_request_that_ends_gives_up_its_send() -> None:
    async with answering() as running:
        running.stream.reads.clear()
        running.queue.put(output("c", 2))
        await running.turn()
        running.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running.task
        assert running.stream.stopped == 1


async def test_a_send_that_nobody_waited_for_is_given_up() -> None:
    async with answering() as running:
        running.stream.reads.clear()
        running.queue.put(output("c", 2))
        running.queue.close()
        assert running.stream.stopped == 1


async def test_the_task_raises_what_a_send_raised() -> None:
    async with answering() as running:
        running.stream.error = OSError("gone")
        running.queue.put(output("c", 2))
        with pytest.raises(OSError, match="gone"):
            await running.task


async def test_the_task_raises_what_failed_the_request() -> None:
    async with answering() as running:
        running.queue.put(output("c", 2))
        running.queue.put(output("", finish="abort"))
        running.queue.put(ValueError("failed"))
        with pytest.raises(ValueError, match="failed"):
            await running.task
        assert running.texts() == ["a", "b", "c"]


def processor_of(running: Answering, params: SamplingParams) -> SendingOutputProcessor:
    """The processor of the engine's outputs, which knows the request."""
    processor = SendingOutputProcessor(TOKENIZER, log_stats=False)
    request = EngineCoreRequest("r", [1], None, params, None, 0.0, None, None, None, external_req_id="r")
    processor.add_request(request, None, queue=running.queue)
    running.queue.is_plain = is_plain(processor.request_states["r"])
    return processor


def step(text: str, finish: FinishReason | None = None) -> EngineCoreOutput:
    return EngineCoreOutput("r", TOKENIZER.encode(text, add_special_tokens=False), finish_reason=finish)


@pytest.mark.parametrize("stop", [None, ["never said"]])
async def test_what_is_decoded_here_is_what_vllm_decodes(stop: list[str] | None) -> None:
    """Stop strings are searched by vLLM's detokenizer, which then decodes everything."""
    async with answering() as running:
        params = SamplingParams(output_kind=RequestOutputKind.DELTA, stop=stop, include_stop_str_in_output=True)
        processor = processor_of(running, params)
        for text in (" one two", " three \u00e4\U0001f600", " four"):
            processor.process_outputs([step(text)])
            await running.turn()
        processor.process_outputs([step(" five"), step(" six", FinishReason.LENGTH)])
        await running.task
        assert "".join(running.texts()) == "ab one two three \u00e4\U0001f600 four five six"
        ids = [token_id for one in running.given[2:] for token_id in one.outputs[0].token_ids]
        assert TOKENIZER.decode(ids) == " one two three \u00e4\U0001f600 four five six"


async def test_nothing_is_sent_past_an_output_that_goes_vllms_way() -> None:
    async with answering() as running:
        processor = processor_of(running, SamplingParams(output_kind=RequestOutputKind.DELTA))
        first = step(" one")
        first.kv_transfer_params = {"any": "thing"}
        processor.process_outputs([first, step(" two")])
        assert running.texts() == ["a", "b", " one", " two"]
