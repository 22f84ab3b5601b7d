"""Pages of tokens and their hashes: how an ingress and a replica name what a prefix cache holds.

A page is `PAGE_TOKENS` tokens. Its hash stands for all tokens from the start of the sequence to its end, so the pages
of a prompt that a cache holds are the first ones of the prompt. Both sides compute the same hashes: an ingress from the
prompts that it sends, a replica from its engine's reports of stored blocks, which are smaller and hashed otherwise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import msgspec

PAGE_TOKENS = 128
"""vLLM's blocks have 16 to 128 tokens. A larger page makes decisions and reports cheaper and matches less exactly: at
most a page of each prompt is counted as computed although it is cached."""

ROOT = 0
"""The parent of a prompt's first page."""

_encode = msgspec.msgpack.Encoder().encode
_PREFIX = len(_encode([0] * PAGE_TOKENS)) - PAGE_TOKENS


def page_hash(parent: int, token_ids: Sequence[int], keys: Iterable[str] = ()) -> int:
    """The hash, a 64-bit integer, of the page with these tokens after the page `parent` (`ROOT` at the start).

    `keys` is what the tokens do not say: the hashes of the images that reach into the page, in order, and before them
    the request's cache salt in the first page."""
    return _digest(parent, _encode(token_ids), keys)


def _digest(parent: int, encoded: bytes, keys: Iterable[str]) -> int:
    digest = hashlib.blake2b(encoded, digest_size=8, key=parent.to_bytes(8, "little"))
    for name in keys:
        digest.update(b"\0" + name.encode())
    return int.from_bytes(digest.digest(), "little")
