"""Chunks of a stream that differ only in their text are made by repetition, without a run through vLLM's generators.

vLLM's code makes every chunk of a stream until two in a row differ in their text only. What is around the text is then
known, and the next delta of that kind (content, or reasoning) is sent with it at once: generators, their objects and
layers of ASGI have nothing to add to it. Whatever is not such a delta goes to vLLM's code, with the tokens that it has
not seen: another kind, a tool call, the end. So what a chunk says stays vLLM's, and the protocol is not copied.

The events of `/v1/responses` are numbered, and the last ones repeat the whole text. So their number is counted on, and
before it goes on, vLLM's code gets all that was repeated as one delta. The event that it makes of that is dropped, and
its later ones get the numbers that follow (`EventNumbers`).

A chunk that has more than its text and number of its own is never repeated: log probabilities, token ids, usage, an
index (`n`, several prompts).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextvars import ContextVar
from copy import copy
from dataclasses import replace
from typing import Any, Final

import msgspec

from serve_app.router.request_context import ChunkStream, RequestContext
from serve_app.vllm_patches.answer_parser import STREAM_PARSER, AnswerParser
from serve_app.vllm_patches.chunks import Delta

VARIES: Final = (b'"usage":{', b'"token_ids":[', b'"logprobs":{', b'"logprobs":[{')
"""Fields that differ from chunk to chunk, or may."""

NUMBER: Final = re.compile(rb'("sequence_number":)(\d+)')

CONTENT: Final = "content"
REASONING: Final = "reasoning"
NOTHING: Final = "nothing"
"""Kinds of deltas. Of the last one nothing is sent: white space that may turn out to stand before a tool call."""


class Around(msgspec.Struct, frozen=True):
    """What is before and behind the text of a chunk, and behind its number, which follows the text."""

    before: bytes
    after: bytes
    after_number: bytes | None = None
    """None: it has no number."""

    def chunk(self, text: str, number: int) -> bytes:
        """A chunk with this text, and this number if it has one."""
        chunk = self.before + msgspec.json.encode(text) + self.after
        return chunk if self.after_number is None else b"%b%d%b" % (chunk, number, self.after_number)


def around(chunk: bytes, text: str) -> tuple[Around, int] | None:
    """What is around the text, and the chunk's number (0: it has none). None if that is not certain."""
    said = msgspec.json.encode(text)
    before, found, after = chunk.partition(said)
    if not found or not text or said in after or any(field in before or field in after for field in VARIES):
        return None
    numbers = list(NUMBER.finditer(chunk))
    if not numbers:
        return Around(before, after), 0
    if len(numbers) > 1 or numbers[0].start() < len(before):
        return None
    name, number, rest = NUMBER.split(after)[1:]
    at = after.index(name) + len(name)
    return Around(before, after[:at], rest), int(number)


class EventNumbers:
    """Of the events of one answer of `/v1/responses`, which vLLM's code numbers without those that were repeated."""

    def __init__(self) -> None:
        self._ahead = 0
        """How many events were sent that vLLM has not counted."""
        self._drops_next = False

    def repeated(self) -> None:
        """An event was made by repetition."""
        self._ahead += 1

    def catch_up(self) -> None:
        """vLLM's next event says what has been sent by repetition."""
        self._drops_next = True

    def was_sent(self, event: Any) -> bool:
        """Whether the client has all that vLLM's event says. Any other gets its true number."""
        if self._drops_next:
            self._drops_next = False
            self._ahead -= 1
            return True
        if self._ahead:
            event.sequence_number += self._ahead
        return False


EVENT_NUMBERS: ContextVar[EventNumbers | None] = ContextVar("serve_app_event_numbers", default=None)
"""Of the answer that the running task makes, if its events are numbered."""


class RepeatedChunks:
    """One answer on its way to a stream: between the engine's outputs and vLLM's generator.

    For each output, `next_chunk` is asked first. If it is None, `for_vllm` says what vLLM's generator must see: each of
    these goes to it between `before_vllm` and `after_vllm`.
    """

    def __init__(self, context: RequestContext, stream: ChunkStream) -> None:
        self._context = context
        self._stream = stream
        self._parser: AnswerParser | None = None
        self._numbers: EventNumbers | None = None
        self._known: dict[str, Around] = {}
        """By kind of delta."""
        self._seen: tuple[str, Around] | None = None
        """Kind, and what was around its text, of the last chunk of vLLM's."""
        self._number = 0
        """Of the last chunk."""
        self._sent_before = 0
        self._text = ""
        self._skipped: list[int] = []
        """Tokens that vLLM's generator has not seen."""
        self._skipped_text = ""
        """Their text, of a numbered answer."""
        self._repeated = Delta()
        """What was sent by repetition since vLLM's generator was left out, of a numbered answer."""
        self._catching_up: tuple[Any, Any] | None = None
        """The output that says it to vLLM's generator, and the delta that comes after it."""

    @classmethod
    def of(cls, context: RequestContext | None) -> RepeatedChunks | None:
        """For the answer to this request; None where it is not streamed."""
        return cls(context, context.stream) if context is not None and context.stream is not None else None

    @property
    def is_repeating(self) -> bool:
        """Whether a next chunk is possible."""
        return bool(self._known)

    def next_chunk(self, said: str, token_ids: Sequence[int], *, finished: bool) -> bytes | None:
        """The chunk for what the sequence says next if it is one that repeats; empty if there is nothing to send."""
        if not self._known:
            return None
        kind, text = self._next_part(said, token_ids, finished=finished)
        parts = self._known.get(kind)
        if finished or (parts is None and kind != NOTHING):
            # vLLM's code may go on otherwise after it: another block, or text that it holds back behind a tool call.
            self._known, self._seen = {}, None
            return None
        if self._parser is not None:
            self._parser.forget_parsed()
        self._skipped += token_ids
        if self._numbers is not None:
            self._skipped_text += said
        return b"" if parts is None else self._chunk(parts, kind, text)

    async def send(self, chunk: bytes) -> None:
        """Send a chunk of `next_chunk`."""
        await self._stream.body({"type": "http.response.body", "body": chunk, "more_body": True})

    def for_vllm(self, output: Any) -> list[Any]:
        """What vLLM's generator must see when there is no next chunk."""
        if not self._skipped:
            return [output]
        one = output.outputs[0]
        skipped, self._skipped = self._skipped, []
        text, self._skipped_text = self._skipped_text, ""
        if self._numbers is None or self._parser is None or self._repeated == Delta():
            # What was skipped has been parsed and sent. Its tokens are counted; a numbered answer also keeps its text.
            one.token_ids = [*skipped, *one.token_ids]
            one.text = text + one.text
            return [output]
        before = copy(output)
        before.outputs = [replace(one, text=text, token_ids=skipped, finish_reason=None, stop_reason=None)]
        before.finished = False
        self._catching_up = before, self._parser.last_delta
        return [before, output]

    def before_vllm(self, output: Any) -> None:
        """vLLM's generator gets this output next."""
        if self._catching_up is not None and self._parser is not None and self._numbers is not None:
            before, delta = self._catching_up
            if output is before:
                delta, self._repeated = self._repeated, Delta()
                self._numbers.catch_up()
            else:
                self._catching_up = None
            self._parser.give(delta)
        self._sent_before = self._stream.chunks
        self._text = output.outputs[0].text

    def after_vllm(self) -> None:
        """vLLM's generator asks for the next output: it has sent what it made of the last one."""
        if self._catching_up is not None or len(self._context.sequences) > 1:  # another's chunks may be among them
            return
        kind, text = self._last_part()
        one_chunk = self._stream.chunks == self._sent_before + 1
        found = around(self._stream.last_chunk, text) if one_chunk and kind else None
        parts, number = found if found is not None else (None, 0)
        seen = (kind, parts) if parts is not None else None
        if parts is not None and seen == self._seen and self._follows(parts, number):
            self._known[kind] = parts
        self._seen, self._number = seen, number

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _follows(self, parts: Around, number: int) -> bool:
        if parts.after_number is None:
            return True
        self._numbers = EVENT_NUMBERS.get()
        return self._numbers is not None and self._parser is not None and number == self._number + 1

    def _chunk(self, parts: Around, kind: str, text: str) -> bytes:
        self._context.repeated_chunks += 1
        if self._numbers is not None:
            self._numbers.repeated()
            self._number += 1
            said = getattr(self._repeated, kind) or ""
            setattr(self._repeated, kind, said + text)
        return parts.chunk(text, self._number)

    def _next_part(self, said: str, token_ids: Sequence[int], *, finished: bool) -> tuple[str, str]:
        if self._parser is None:
            return CONTENT, said
        return _only_part(self._parser.parse_ahead(said, token_ids, finished=finished))

    def _last_part(self) -> tuple[str, str]:
        if self._context.is_plain_text:
            return CONTENT, self._text
        self._parser = STREAM_PARSER.get()
        # Another model's parser is not ours to ask.
        return _only_part(self._parser.last_delta) if self._parser is not None else ("", "")


def _only_part(delta: Any) -> tuple[str, str]:
    """Kind and text of a delta with one text; an empty kind for anything else."""
    if delta is None:
        return NOTHING, ""
    if not isinstance(delta, Delta) or delta.role is not None or (delta.content and delta.reasoning):
        return "", ""
    return (CONTENT, delta.content) if delta.content else (REASONING, delta.reasoning or "")
