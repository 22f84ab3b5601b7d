"""Decodes tokens one by one, most of them by a look into a table.

The `DecodeStream` of `tokenizers` decodes the last tokens again for each new one, as a character may be spread over
several. Where the tokenizer's decoder joins bytes (`ByteLevel`), a token that is whole characters has the same text
wherever it stands, unless the one before it has ended within a character. That text is kept. Any other token, and the
first one behind a prompt, goes to the `DecodeStream`.
"""

from __future__ import annotations

import json
from typing import Final

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

UNFINISHED: Final = "\N{REPLACEMENT CHARACTER}"
"""Ends the text of a token that ends within a character. `DecodeStream` holds it back, also where it is meant."""


def byte_characters() -> dict[str, int]:
    """The byte that each character of a `ByteLevel` vocabulary stands for: printable ones stand for themselves."""
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(256 + place): byte for place, byte in enumerate(others)}


class TokenTexts:
    """The texts of one tokenizer's tokens, as far as they do not depend on where these stand."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._bytes = byte_characters()
        described = json.loads(tokenizer.to_str())
        decoder, model = described["decoder"] or {}, described["model"]
        self._is_usable = decoder.get("type") == "ByteLevel" and model.get("type") == "BPE"
        self._added = {token["id"] for token in described["added_tokens"]}
        self._known: dict[int, str] = {}
        """Empty: it depends. As many entries as there are tokens, at most."""

    def of(self, token_id: int) -> str:
        """The token's text; empty if it depends on the tokens around it."""
        text = self._known.get(token_id)
        if text is None:
            text = self._known[token_id] = self._find(token_id)
        return text

    def _find(self, token_id: int) -> str:
        token = None if token_id in self._added or not self._is_usable else self._tokenizer.id_to_token(token_id)
        if token is None or not all(character in self._bytes for character in token):
            return ""
        try:
            text = bytes(self._bytes[character] for character in token).decode()
        except UnicodeDecodeError:
            return ""
        return "" if text.endswith(UNFINISHED) else text


class TokenDecoder:
    """A `DecodeStream` that is asked only where it must be."""

    def __init__(self, stream: DecodeStream, texts: TokenTexts) -> None:
        self._stream = stream
        self._texts = texts
        self._is_between_characters = False

    def step(self, tokenizer: Tokenizer, token_id: int) -> str | None:
        """See `DecodeStream`."""
        if self._is_between_characters and (text := self._texts.of(token_id)):
            return text
        self._is_between_characters = False
        found: str | None = self._stream.step(tokenizer, token_id)
        self._is_between_characters = found is not None
        return found
