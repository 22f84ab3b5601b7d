"""Text that was tokenised before is not tokenised again: an agent's turn repeats its whole history.

A prompt is cut at its special tokens (`<|im_start|>` and the like), and the token ids of each piece are cached by its
text. That is exact: a tokenizer cuts at these tokens itself, before it normalises and splits, and treats each piece on
its own. `SafeCuts` holds the conditions. Where one is not met, vLLM tokenises the whole prompt, as before.

A turn of 140,000 tokens costs 2 ms of CPU time instead of some 300.
"""

from __future__ import annotations

import json
import re
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, Final
from weakref import WeakKeyDictionary

from serve_app.protocol.lru import LruCache
from serve_app.vllm_patches.patching import Function, PatchTarget, replace

TOKENIZE: Final = PatchTarget("vllm.renderers.base", "BaseRenderer", "_tokenize_prompt", ("prompt", "params"))
TARGETS: Final = (TOKENIZE,)

CACHE_BYTES: Final = 256 << 20
"""For two hundred conversations of 140,000 tokens: nine bytes for each token, its text included."""

ENTRY_BYTES: Final = 300
"""What an entry takes beside its text and its ids."""

NORMALIZERS: Final = frozenset({"NFC", "NFD", "NFKC", "NFKD", "Sequence"})
PRE_TOKENIZERS: Final = frozenset({"Split", "ByteLevel", "Digits", "Punctuation", "Sequence"})
POST_PROCESSORS: Final = frozenset({"ByteLevel"})
"""Parts of a tokenizer that treat each piece of a text on its own; and post-processors that add no tokens."""

BATCH_CHARACTERS: Final = 200_000
"""How much text is looked up and tokenised before the tokens are counted: a prompt that is too long is not tokenised to
its end."""

Encode = Callable[[Sequence[str]], Sequence[Sequence[int]]]
"""Token ids of each text, without any that are added around it."""


class SafeCuts:
    """The special tokens at which this tokenizer may be given a text in pieces, and their ids."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        self.ids = dict(ids)
        self._pattern = re.compile("(" + "|".join(map(re.escape, ids)) + ")") if ids else None

    @classmethod
    def of(cls, tokenizer: Mapping[str, Any]) -> SafeCuts:
        """Those of a `tokenizer.json`. None, if the tokenizer has a part that might look beyond a piece."""
        parts = (("normalizer", NORMALIZERS), ("pre_tokenizer", PRE_TOKENIZERS))
        if not all(_is_local(tokenizer.get(name), kinds) for name, kinds in parts):
            return cls({})
        tokens = {token["content"]: token for token in tokenizer.get("added_tokens", ())}
        return cls({text: token["id"] for text, token in tokens.items() if _cuts(text, token, tokens)})

    def __bool__(self) -> bool:
        return self._pattern is not None

    def split(self, text: str) -> list[str]:
        """The pieces of the text: every second one is a special token."""
        return self._pattern.split(text) if self._pattern is not None else [text]


def _is_local(part: Mapping[str, Any] | None, kinds: frozenset[str]) -> bool:
    if part is None:
        return True
    inner = [*part.get("normalizers", ()), *part.get("pretokenizers", ()), *part.get("processors", ())]
    # A space before the first word of a text would be one before each piece.
    adds_space = kinds is PRE_TOKENIZERS and part["type"] == "ByteLevel" and part.get("add_prefix_space", True)
    return part["type"] in kinds and not adds_space and all(_is_local(one, kinds) for one in inner)


def _cuts(text: str, token: Mapping[str, Any], tokens: Iterable[str]) -> bool:
    """Whether every occurrence of a special token is that token: it takes no space around it, and nothing else can
    begin before it and end in it, or begin in it and end behind it."""
    if not text or token.get("lstrip") or token.get("rstrip") or token.get("single_word") or token.get("normalized"):
        return False
    return not _overlap(text, text) and not any(
        other != text and (other in text or text in other or _overlap(text, other) or _overlap(other, text))
        for other in tokens
    )


def _overlap(first: str, second: str) -> bool:
    """Whether an end of the first that is not all of it is a beginning of the second."""
    return any(second.startswith(first[place:]) for place in range(1, len(first)))


class TokenCache:
    """Token ids by text, at most `limit_bytes`; the least recently used go first. For any thread."""

    def __init__(self, cuts: SafeCuts, encode: Encode, limit_bytes: int = CACHE_BYTES) -> None:
        self._cuts = cuts
        self._encode = encode
        self._lock = threading.Lock()
        self._known: LruCache[str, array[int]] = LruCache(limit_bytes)

    @property
    def size_bytes(self) -> int:
        """The size of what is kept."""
        return self._known.size

    def tokenize(self, text: str, longest: int | None = None) -> list[int]:
        """The token ids of the text; of a text with more than `longest`, at least so many of the first ones."""
        token_ids: list[int] = []
        for pieces in _batches(self._cuts.split(text)):
            known = self._look_up([piece for piece in pieces if piece not in self._cuts.ids])
            for piece in pieces:
                if (token_id := self._cuts.ids.get(piece)) is not None:
                    token_ids.append(token_id)
                else:
                    token_ids.extend(known[piece])
            if longest is not None and len(token_ids) >= longest:
                break
        return token_ids

    def _look_up(self, texts: Sequence[str]) -> dict[str, array[int]]:
        known: dict[str, array[int]] = {}
        with self._lock:
            for text in texts:
                if (ids := self._known.get(text)) is not None:
                    known[text] = ids
        missing = [text for text in dict.fromkeys(texts) if text not in known]
        if missing:
            made = {text: array("i", ids) for text, ids in zip(missing, self._encode(missing), strict=True)}
            known |= made
            with self._lock:
                for text, ids in made.items():
                    self._known.put(text, ids, _bytes_of(text, ids))
        return known


def _batches(pieces: Sequence[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for piece in filter(None, pieces):
        batch.append(piece)
        characters += len(piece)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    yield batch


def _bytes_of(text: str, ids: array[int]) -> int:
    # A text with a character beyond Latin-1 takes two or four bytes for each.
    width = 1 if text.isascii() else 4
    return ENTRY_BYTES + width * len(text) + ids.itemsize * len(ids)


def remember_tokens() -> None:
    """Called once for each process that renders prompts, before vLLM makes its renderer. Again changes nothing."""
    replace(TOKENIZE, by_pieces)


def by_pieces(original: Function, _: ModuleType) -> Function:
    """Tokenise a prompt by its pieces, where the tokenizer and the request allow it."""
    caches: WeakKeyDictionary[Any, Callable[[bool], TokenCache | None]] = WeakKeyDictionary()

    def _tokenize_prompt(self: Any, prompt: Any, params: Any) -> Any:
        tokenizer = self.get_tokenizer()
        if self not in caches:
            caches[self] = cache_for(tokenizer)
        options = params.get_encode_kwargs()
        cache = caches[self](options["add_special_tokens"])
        longest = options["max_length"] if options["truncation"] else None
        # From the left, or to no tokens at all: rare, and the tokenizer's business.
        cuts_off = longest is not None and (longest < 1 or tokenizer.truncation_side != "right")
        if cache is None or cuts_off or self._wants_offsets(prompt, params):
            return original(self, prompt, params)
        return self._build_tokens_prompt(cache.tokenize(prompt["prompt"], longest)[:longest], prompt)

    return _tokenize_prompt


def cache_for(tokenizer: Any) -> Callable[[bool], TokenCache | None]:
    """Gives the cache for this tokenizer of transformers, by whether its special tokens are to be added around a text.
    None where it cannot be given a text in pieces."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    described = json.loads(backend.to_str()) if backend is not None else {}
    cuts = SafeCuts.of(described)
    if not cuts:
        return lambda _add_special_tokens: None
    adds_none = _is_local(described.get("post_processor"), POST_PROCESSORS)

    def encode(texts: Sequence[str]) -> Sequence[Sequence[int]]:
        found: Sequence[Sequence[int]] = tokenizer(
            list(texts), add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False
        )["input_ids"]
        return found

    cache = TokenCache(cuts, encode)
    return lambda add_special_tokens: cache if adds_none or not add_special_tokens else None
