"""A tokenizer read from its file, behaving as the one vLLM's benchmark would load from the same folder.

Prompts must be the same text for the same seed, so the few things that Hugging Face's wrapper adds around
`tokenizer.json` are repeated here: which ids are special, and the extra decode step of non-BPE models.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from tokenizers import Tokenizer

from loadtest.errors import DataError

NAMED_SPECIALS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class PromptTokenizer:
    """Text to ids and back. `vocab_size` leaves out added tokens, as Hugging Face's property of that name does."""

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

    def decode(self, token_ids: list[int]) -> str:
        """Text of token ids, special tokens included."""
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=False)
        return _clean(text) if self._clean_up else text


def load_tokenizer(where: str) -> PromptTokenizer:
    """Read a folder with `tokenizer.json`, or that file itself."""
    path = Path(where).expanduser()
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"no tokenizer at {where!r}", "Give --tokenizer the model's folder or its tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(os.fspath(file))
    except Exception as bad:  # tokenizers raises plain Exception for a malformed file
        raise DataError(f"{file} is not a tokenizer.json ({bad})", "Give --tokenizer the model's folder") from bad
    config = _json(file.with_name("tokenizer_config.json"))
    if "added_tokens_decoder" not in config:
        config = {**config, **_json(file.with_name("special_tokens_map.json"))}
    # Padding and truncation saved in the file would change lengths; vLLM's loader drops them as well.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    clean_up = config.get("clean_up_tokenization_spaces") is True
    return PromptTokenizer(tokenizer, _specials(config), source=os.fspath(path), clean_up=clean_up)


def _json(file: Path) -> dict[str, object]:
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as bad:
        raise DataError(f"{file} is not JSON ({bad})", "Repair or remove it") from bad
    return found if isinstance(found, dict) else {}


def _specials(config: dict[str, object]) -> list[str]:
    extras = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    values = [config.get(name) for name in NAMED_SPECIALS]
    values += list(extras.values()) if isinstance(extras, dict) else list(extras) if isinstance(extras, list) else []
    texts = [value.get("content") if isinstance(value, dict) else value for value in values]
    return list(dict.fromkeys(text for text in texts if isinstance(text, str)))


def _clean(text: str) -> str:
    """Hugging Face's clean-up of spaces, applied to WordPiece-like models only."""
    for spaced, tight in (
        (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"),
        (" n't", "n't"), (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
    ):  # fmt: skip
        text = text.replace(spaced, tight)
    return text
