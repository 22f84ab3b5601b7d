"""Stop strings apply to the answer only: not to reasoning, tool calls, or the template's line breaks.

vLLM applies them to all output. A stop string that occurs in the reasoning then ends a request before its answer has
begun, and one in the arguments of a call cuts the call off.

Only requests with stop strings have this cost. For all, the decoder of an answer gets the end of the prompt only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum, auto
from typing import Any, Final

from tokenizers.decoders import DecodeStream
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.detokenizer import FastIncrementalDetokenizer, uses_fast_detokenizer
from vllm.v1.engine.output_processor import OutputProcessor

from serve_app.vllm_patches.token_texts import TokenDecoder, TokenTexts

THINK, THINK_END, CALL, CALL_END = "<think>", "</think>", "<tool_call>", "</tool_call>"


LAST_TOKENS: Final = 64
"""Of a prompt, for the decoder of what follows: a character may be spread over a few tokens."""


class _Part(Enum):
    REASONING = auto()
    ANSWER = auto()
    CALL = auto()


NEXT: Final = {
    (_Part.REASONING, THINK_END): _Part.ANSWER,
    (_Part.REASONING, CALL): _Part.CALL,
    (_Part.ANSWER, CALL): _Part.CALL,
    (_Part.CALL, CALL_END): _Part.ANSWER,
}
"""The effect of a special token, if it has one."""


class AnswerDetokenizer(FastIncrementalDetokenizer):  # type: ignore[misc]  # vLLM is not read by mypy
    """vLLM's detokenizer, whose `output_text` holds only the text in which stop strings are searched; the rest is kept
    here.

    No special token, and nothing before one, is held back: the parser relies on it (`parsers.py`).
    """

    output_text: str
    stop_buffer_length: int
    _last_output_text_offset: int

    def __init__(self, tokenizer: Any, request: EngineCoreRequest, tags: Mapping[int, str]) -> None:
        super().__init__(tokenizer, request)
        self._tags = tags
        self._before = ""
        prompt = reversed(request.prompt_token_ids or [])
        thinking = next((tags[one] for one in prompt if tags.get(one) in (THINK, THINK_END)), None) == THINK
        self._part = _Part.REASONING if thinking else _Part.ANSWER
        self._at_start = False
        """Directly behind `</think>`."""
        self._is_tag = False

    def update(self, new_token_ids: list[int], stop_terminated: bool) -> str | None:
        """See `IncrementalDetokenizer`. Token by token: each may change which text is searched."""
        last = len(new_token_ids) - 1
        for place, token_id in enumerate(new_token_ids):
            tag = self._tags.get(token_id)
            self._is_tag = tag is not None
            if tag is not None:
                self._before += self.output_text
                self.output_text: str = ""
            hit: str | None = super().update([token_id], stop_terminated and place == last)
            if hit is not None:
                return hit
            if tag is not None and (following := NEXT.get((self._part, tag))) is not None:
                self._at_start = self._part is _Part.REASONING
                self._part = following
        return None

    def decode_next(self, next_token_id: int) -> str:
        """The part of the token's text in which stop strings are searched."""
        text: str = super().decode_next(next_token_id)
        if self._is_tag or self._part is not _Part.ANSWER:
            self._before += text
            return ""
        if not self._at_start:
            return text
        said = text.lstrip("\n")
        self._before += text[: len(text) - len(said)]
        self._at_start = not said
        return said

    def get_next_output_text(self, finished: bool, delta: bool) -> str:
        """See `IncrementalDetokenizer`."""
        held = 0 if finished else self.stop_buffer_length
        end = len(self._before) + max(0, len(self.output_text) - held)
        start = self._last_output_text_offset if delta else 0
        if start >= end:
            return ""
        if delta:
            self._last_output_text_offset: int = end
        split = len(self._before)
        return self._before[start:end] + self.output_text[max(0, start - split) : max(0, end - split)]


class AnswerOutputProcessor(OutputProcessor):  # type: ignore[misc]  # vLLM is not read by mypy
    """vLLM's, with an `AnswerDetokenizer` for requests with stop strings whose answer is parsed."""

    def __init__(self, tokenizer: Any, **settings: Any) -> None:
        super().__init__(tokenizer, **settings)
        tags = (*tokenizer.all_special_tokens, THINK, THINK_END, CALL, CALL_END) if tokenizer is not None else ()
        vocabulary = tokenizer.get_vocab() if tokenizer is not None else {}
        self._tags: dict[int, str] = {vocabulary[tag]: tag for tag in tags if tag in vocabulary}
        fast = uses_fast_detokenizer(tokenizer) if tokenizer is not None else False
        self._texts = TokenTexts(tokenizer._tokenizer) if fast else None  # noqa: SLF001  # as vLLM's detokenizer

    def add_request(self, request: EngineCoreRequest, *arguments: Any, **named: Any) -> None:
        """See `OutputProcessor`."""
        super().add_request(request, *arguments, **named)
        state = self.request_states.get(request.request_id)
        if state is None or not isinstance(state.detokenizer, FastIncrementalDetokenizer):
            return
        params = request.sampling_params
        # Only chat-like requests name a reasoning parser; `/v1/completions` is plain text.
        if params is not None and params.stop and request.reasoning_parser_kwargs is not None:
            state.detokenizer = AnswerDetokenizer(self.tokenizer, request, self._tags)
        skip = state.detokenizer.skip_special_tokens
        stream = decoder_behind(request.prompt_token_ids or [], skip_special_tokens=skip)
        state.detokenizer.stream = stream if self._texts is None else TokenDecoder(stream, self._texts)


def decoder_behind(prompt_token_ids: Sequence[int], *, skip_special_tokens: bool) -> DecodeStream:
    """Decodes the tokens behind a prompt.

    At its first token a decoder decodes all that it was given: the whole prompt, as vLLM gives it (30 ms for 140,000
    tokens). What follows depends on the last characters only.
    """
    return DecodeStream(ids=list(prompt_token_ids[-LAST_TOKENS:]), skip_special_tokens=skip_special_tokens)
