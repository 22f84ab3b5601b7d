"""Chunks of a stream that differ only in their text are made by repetition, without a run through vLLM's generators.

vLLM's code makes every chunk of a stream until two in a row differ in their text only. What is around the text is then
known, and the next delta of that kind (content, or reasoning) is sent with it at once: generators, their objects and
layers of ASGI have nothing to add to it. Whatever is not such a delta goes to vLLM's code, with the tokens that it has
not seen: another kind, a tool call, the end. So what a chunk says stays vLLM's, and the protocol is not copied.

A chunk that has more than its text of its own is never repeated: log probabilities, token ids, usage, a sequence number
(`/v1/responses`), an index (`n`, several prompts).
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from serve_app.router.request_context import ChunkStream, RequestContext
from serve_app.vllm_patches.answer_parser import STREAM_PARSER, AnswerParser
from serve_app.vllm_patches.chunks import Delta

VARIES: Final = (b'"usage":{', b'"token_ids":[', b'"logprobs":{', b'"sequence_number"')
"""Fields that differ from chunk to chunk, or may."""

CONTENT: Final = "content"
REASONING: Final = "reasoning"
NOTHING: Final = "nothing"
"""Kinds of deltas. Of the last one nothing is sent: white space that may turn out to stand before a tool call."""


class Around(msgspec.Struct, frozen=True):
    """What is before and behind the text of a chunk."""

    before: bytes
    after: bytes


def around(chunk: bytes, text: str) -> Around | None:
    """What is around the text; None if that is not certain."""
    said = msgspec.json.encode(text)
    before, found, after = chunk.partition(said)
    if not found or not text or said in after or any(field in before or field in after for field in VARIES):
        return None
    return Around(before, after)


class RepeatedChunks:
    """One answer on its way to a stream: between the engine's outputs and vLLM's generator.

    For each output, `send` is asked first. If it returns False the output goes to vLLM's generator, between
    `before_vllm` and `after_vllm`.
    """

    def __init__(self, context: RequestContext, stream: ChunkStream) -> None:
        self._context = context
        self._stream = stream
        self._parser: AnswerParser | None = None
        self._known: dict[str, Around] = {}
        """By kind of delta."""
        self._seen: tuple[str, Around] | None = None
        """Kind, and what was around its text, of the last chunk of vLLM's."""
        self._sent_before = 0
        self._text = ""
        self._skipped: list[int] = []
        """Tokens that vLLM's generator has not seen."""

    @classmethod
    def of(cls, context: RequestContext | None) -> RepeatedChunks | None:
        """For the answer to this request; None where it is not streamed."""
        return cls(context, context.stream) if context is not None and context.stream is not None else None

    async def send(self, output: Any) -> bool:
        """Send the output's delta if it is one that repeats. Else make the output what vLLM's generator must see."""
        if not self._known:
            return False
        one = output.outputs[0]
        kind, text = self._next_part(one)
        parts = self._known.get(kind)
        if one.finish_reason is not None or (parts is None and kind != NOTHING):
            # Its text stays its own: what was skipped has been parsed and sent. Its tokens are counted.
            one.token_ids = [*self._skipped, *one.token_ids]
            self._skipped = []
            # vLLM's code may go on otherwise after it: another block, or text that it holds back behind a tool call.
            self._known, self._seen = {}, None
            return False
        if self._parser is not None:
            self._parser.forget_parsed()
        self._skipped += one.token_ids
        if parts is not None:
            chunk = parts.before + msgspec.json.encode(text) + parts.after
            self._context.repeated_chunks += 1
            await self._stream.body({"type": "http.response.body", "body": chunk, "more_body": True})
        return True

    def before_vllm(self, output: Any) -> None:
        """vLLM's generator gets this output next."""
        self._sent_before = self._stream.chunks
        self._text = output.outputs[0].text

    def after_vllm(self) -> None:
        """vLLM's generator asks for the next output: it has sent what it made of the last one."""
        if len(self._context.sequences) > 1:  # another's chunks may be among them
            return
        kind, text = self._last_part()
        one_chunk = self._stream.chunks == self._sent_before + 1
        parts = around(self._stream.last_chunk, text) if one_chunk and kind else None
        seen = (kind, parts) if parts is not None else None
        if parts is not None and seen == self._seen:
            self._known[kind] = parts
        self._seen = seen

    def _next_part(self, output: Any) -> tuple[str, str]:
        if self._parser is None:
            return CONTENT, output.text
        is_end = output.finish_reason is not None
        return _only_part(self._parser.parse_ahead(output.text, output.token_ids, finished=is_end))

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
