"""Pages of tokens and their hashes: how an ingress and a replica name what a prefix cache holds.

A page is `PAGE_TOKENS` tokens. Its hash stands for all tokens from the start of the sequence to its end, so the pages
of a prompt that a cache holds are the first ones of the prompt. Both sides compute the same hashes: an ingress from the
prompts that it sends, a replica from its engine's reports of stored blocks, which are smaller and hashed otherwise.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

PAGE_TOKENS = 256
"""vLLM's blocks have 16 to 128 tokens. A larger page makes decisions and reports cheaper and matches less exactly: at
most a page of each prompt is counted as computed although it is cached."""

ROOT = 0
"""The parent of a prompt's first page."""


def page_hash(parent: int, token_ids: Sequence[int], keys: Sequence[str] = ()) -> int:
    """The hash, a 64-bit integer, of the page with these tokens after the page `parent` (`ROOT` at the start).

    `keys` is what the tokens do not say: the request's cache salt in the first page, then the hashes of the images that
    reach into the page, in their order."""
    return _hash(parent, memoryview(array("I", token_ids)).cast("B"), keys)


def _hash(parent: int, tokens: memoryview, keys: Sequence[str]) -> int:
    digest = hashlib.blake2b(tokens, digest_size=8, salt=parent.to_bytes(8, "little"))
    for key in keys:
        digest.update(b"\0" + key.encode())
    return int.from_bytes(digest.digest(), "little")


@dataclass(frozen=True)
class PromptImage:
    """An image in a prompt: the hash of its content, and the tokens that it stands for, from `start` to before
    `end`."""

    name: str
    start: int
    end: int


def prompt_pages(token_ids: Sequence[int], images: Sequence[PromptImage] = (), salt: str | None = None) -> list[int]:
    """The hashes of the full pages of a prompt, in order: 2 ms for 140,000 tokens. `images` are in their order."""
    tokens = memoryview(array("I", token_ids)).cast("B")
    width = len(tokens) // len(token_ids) * PAGE_TOKENS if token_ids else 0
    hashes = []
    parent = ROOT
    for number in range(len(token_ids) // PAGE_TOKENS):
        start = number * PAGE_TOKENS
        keys = [one.name for one in images if one.start < start + PAGE_TOKENS and one.end > start] if images else []
        if salt is not None and not number:
            keys.insert(0, salt)
        parent = _hash(parent, tokens[number * width : (number + 1) * width], keys)
        hashes.append(parent)
    return hashes
