"""Load a tokenizer from `tokenizer.json`, with the behaviour of the one that vLLM's benchmark loads from that folder.

The same seed must give the same prompts as vLLM's benchmark. So two things that Hugging Face's wrapper adds to
`tokenizer.json` are done here, too: which ids are special, and the clean-up after decoding of non-BPE models.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from tokenizers import Tokenizer

from loadtest.errors import DataError

NAMED_SPECIALS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class PromptTokenizer:
    """Encodes and decodes. `vocab_size` is without added tokens, as Hugging Face's property of that name."""

    def __init__(self, tokenizer: Tokenizer, specials: list[str], *, source: str, clean_up: bool = False) -> None:
        self._tokenizer = tokenizer
        self._clean_up = clean_up and type(tokenizer.model).__name__ != "BPE"
        self.source = source
        self.vocab_size: int = tokenizer.get_vocab_size(with_added_tokens=False)
        ids = (tokenizer.token_to_id(token) for token in specials)
        self.special_ids: list[int] = [token_id for token_id in ids if token_id is not None]
        self.specials_per_prompt: int = tokenizer.num_special_tokens_to_add(False)

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Token ids of a text."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def token_starts(self, text: str) -> list[int]:
        """Where each token of a text begins, in characters."""
        return [start for start, _ in self._tokenizer.encode(text, add_special_tokens=False).offsets]

    def decode(self, token_ids: list[int]) -> str:
        """Text of token ids, special tokens included."""
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=False)
        return _clean(text) if self._clean_up else text


def require_tokenizer(tokenizer: PromptTokenizer | None) -> PromptTokenizer:
    """The tokenizer. Raises DataError where there is none, for data sets that cannot do without."""
    if tokenizer is None:
        raise DataError(
            "this data set needs the model's tokenizer, and the server's model is not a folder here",
            "Give --tokenizer the model's folder or its tokenizer.json",
        )
    return tokenizer


def load_tokenizer(location: str) -> PromptTokenizer:
    """Load from a folder with `tokenizer.json`, or from that file. Raises DataError."""
    path = Path(location).expanduser()
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"no tokenizer at {location!r}", "Give --tokenizer the model's folder or its tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(os.fspath(file))
    except Exception as bad:  # tokenizers raises plain Exception for a malformed file
        raise DataError(f"{file} is not a tokenizer.json ({bad})", "Give --tokenizer the model's folder") from bad
    config = _read_json(file.with_name("tokenizer_config.json"))
    if "added_tokens_decoder" not in config:
        config = {**config, **_read_json(file.with_name("special_tokens_map.json"))}
    # Padding and truncation in the file would change lengths; vLLM's loader disables them, too.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    clean_up = config.get("clean_up_tokenization_spaces") is True
    return PromptTokenizer(tokenizer, _specials(config), source=os.fspath(path), clean_up=clean_up)


def _read_json(file: Path) -> dict[str, object]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as bad:
        raise DataError(f"{file} is not JSON ({bad})", "Repair or remove it") from bad
    return content if isinstance(content, dict) else {}


def _specials(config: dict[str, object]) -> list[str]:
    extras = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    values = [config.get(name) for name in NAMED_SPECIALS]
    values += list(extras.values()) if isinstance(extras, dict) else list(extras) if isinstance(extras, list) else []
    texts = [value.get("content") if isinstance(value, dict) else value for value in values]
    return list(dict.fromkeys(text for text in texts if isinstance(text, str)))


def _clean(text: str) -> str:
    """Hugging Face's clean-up of spaces, for WordPiece-like models only."""
    for spaced, tight in (
        (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"),
        (" n't", "n't"), (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
    ):  # fmt: skip
        text = text.replace(spaced, tight)
    return text
