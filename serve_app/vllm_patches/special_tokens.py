"""Where the special tokens of a delta stand in its text, exactly.

vLLM looks for the tags' text, and may take one that the model has spelled out for the token. A delta's text lags behind
its tokens only by what a character or a stop string may still become, and never behind a special token
(`answer_stops.py`), so that the text before a tag ends with what the tokens before it say.
"""

from __future__ import annotations

from collections.abc import Sequence

from vllm.parser.engine.token_id_scanner import LexerInput, PreLexedTerminal, TextChunk, TokenIDScanner

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""What a character's last bytes alone decode to."""


class SpecialTokenScanner(TokenIDScanner):  # type: ignore[misc]  # vLLM is not read by mypy
    """Cuts a delta's text at its special tokens."""

    has_ended = False
    """Whether the model has ended the answer itself."""

    def scan(self, delta_text: str, delta_token_ids: Sequence[int]) -> Sequence[LexerInput]:
        """See `TokenIDScanner`."""
        special = self.token_id_to_terminal
        items: list[LexerInput] = []
        begin = position = 0
        for place, token_id in enumerate(delta_token_ids):
            if token_id not in special:
                continue
            tag = self._decode_token(token_id)
            before, is_last = delta_token_ids[begin:place], place + 1 == len(delta_token_ids)
            found = self._find(tag, delta_text, position, before, is_last=is_last)
            begin = place + 1
            if found < 0:
                self.has_ended = True  # the token that ends the answer has no text
                continue
            if found > position:
                items.append(TextChunk(delta_text[position:found]))
            items.append(PreLexedTerminal(special[token_id], token_id, tag))
            position = found + len(tag)
        if position < len(delta_text):
            items.append(TextChunk(delta_text[position:]))
        return items

    def _find(self, tag: str, text: str, position: int, before: Sequence[int], *, is_last: bool) -> int:
        """Where `tag` stands in `text`, behind what the tokens `before` say. -1: nowhere."""
        if is_last and not text.endswith(tag):
            return -1  # what ended the answer has no text
        found = first = text.find(tag, position)
        if first < 0 or (not is_last and text.find(tag, first + 1) < 0):
            return first
        said = self._say(before)
        if is_last:
            last = len(text) - len(tag)
            return last if last >= position and text[position:last].endswith(said) else -1
        while found >= 0 and not text[position:found].endswith(said):
            found = text.find(tag, found + 1)
        return found if found >= 0 else first

    def _say(self, token_ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(token_ids))
        return text.lstrip(REPLACEMENT)
