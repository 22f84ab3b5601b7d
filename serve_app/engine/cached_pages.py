"""From the blocks that vLLM's prefix cache stores and removes to the pages by which ingresses know them.

A page (`protocol/pages.py`) is several blocks. It is cached while all of them are, in whatever order they come and go.
vLLM names a block by a hash of its own, and each says which block it follows; so the page's tokens are those of its
blocks, and its parent is the page that ends where it begins. vLLM may store a block more than once, and removes it as
often. It may also tell apart what is the same page (its hash can look at the tokens that follow): the page is cached
while one of them is.

What is kept is bounded by the blocks that are cached: a page is forgotten with its last block.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from serve_app.engine.cache_log import CacheLog
from serve_app.protocol.pages import PAGE_TOKENS, ROOT, page_hash

BlockHash = bytes | int


@dataclass(eq=False)
class _Block:
    """A cached block: the `number`-th of its page, which follows `page_parent`. `copies` of it are cached."""

    parent: BlockHash | None
    number: int
    page_parent: int
    token_ids: Sequence[int]
    keys: Sequence[str]
    copies: int = 1


@dataclass(eq=False)
class _Chain:
    """The blocks of one page, `missing` of which are not cached."""

    page: int
    blocks: Sequence[BlockHash]
    missing: int = 0


class CachedPages:
    """The pages of a cache with blocks of `block_tokens`, a divisor of a page, and at most `max_blocks` of them."""

    def __init__(self, block_tokens: int, max_blocks: int) -> None:
        self.block_tokens = block_tokens
        self._blocks_per_page = PAGE_TOKENS // block_tokens
        self._max_blocks = max_blocks
        self._blocks: dict[BlockHash, _Block] = {}
        self._chains: dict[BlockHash, _Chain] = {}
        """By their last block."""
        self._chains_of: dict[BlockHash, set[BlockHash]] = {}
        """The last blocks of the pages that a block is in."""
        self._complete: Counter[int] = Counter()
        self.log = CacheLog()

    def store(
        self,
        parent: BlockHash | None,
        blocks: Sequence[BlockHash],
        token_ids: Sequence[int],
        keys: Sequence[Sequence[str]],
    ) -> None:
        """These blocks, one after the other behind `parent` (None: at the start), are cached; `keys` for each of them.
        Blocks behind an unknown one cannot be named, and are left out."""
        for number, block in enumerate(blocks):
            start = number * self.block_tokens
            self._store(parent, block, token_ids[start : start + self.block_tokens], keys[number])
            parent = block

    def remove(self, block: BlockHash) -> None:
        """One copy of this block is cached no more."""
        known = self._blocks.get(block)
        if known is None:
            return
        known.copies -= 1
        if known.copies:
            return
        for last in self._chains_of.get(block, ()):
            chain = self._chains[last]
            if not chain.missing:
                self._uncover(chain.page)
            chain.missing += 1
        self._forget_chain(block)
        del self._blocks[block]

    def reset(self) -> None:
        """The cache is empty, or what has happened to it is not known."""
        self._blocks.clear()
        self._chains.clear()
        self._chains_of.clear()
        self._complete.clear()
        self.log.reset()

    def _store(self, parent: BlockHash | None, block: BlockHash, token_ids: Sequence[int], keys: Sequence[str]) -> None:
        if (known := self._blocks.get(block)) is not None:
            known.copies += 1
            return
        if (place := self._place_after(parent)) is None:
            return
        if len(self._blocks) >= self._max_blocks:  # more than there can be: removals were missed
            self.reset()
            return
        self._blocks[block] = _Block(parent, *place, tuple(token_ids), tuple(keys))
        for last in self._chains_of.get(block, ()):
            chain = self._chains[last]
            chain.missing -= 1
            if not chain.missing:
                self._cover(chain.page)
        if place[0] == self._blocks_per_page - 1:
            self._complete_page(block)

    def _place_after(self, parent: BlockHash | None) -> tuple[int, int] | None:
        """The number in its page of the block that follows, and that page's parent; None where `parent` is unknown."""
        if parent is None:
            return 0, ROOT
        if (before := self._blocks.get(parent)) is None:
            return None
        if before.number < self._blocks_per_page - 1:
            return before.number + 1, before.page_parent
        chain = self._chains.get(parent)
        return (0, chain.page) if chain is not None else None

    def _complete_page(self, last: BlockHash) -> None:
        """The last block of a page is here, so all are: a sequence's blocks stay while it runs."""
        hashes: list[BlockHash] = []
        block: BlockHash | None = last
        while block is not None and len(hashes) < self._blocks_per_page:
            if block not in self._blocks:
                return
            hashes.append(block)
            block = self._blocks[block].parent
        hashes.reverse()
        blocks = [self._blocks[one] for one in hashes]
        token_ids = [token for one in blocks for token in one.token_ids]
        keys = tuple(dict.fromkeys(key for one in blocks for key in one.keys))
        chain = self._chains[last] = _Chain(page_hash(blocks[0].page_parent, token_ids, keys), hashes)
        for one in hashes:
            self._chains_of.setdefault(one, set()).add(last)
        self._cover(chain.page)

    def _forget_chain(self, last: BlockHash) -> None:
        if (chain := self._chains.pop(last, None)) is None:
            return
        for block in chain.blocks:
            of_block = self._chains_of[block]
            of_block.discard(last)
            if not of_block:
                del self._chains_of[block]

    def _cover(self, page: int) -> None:
        self._complete[page] += 1
        if self._complete[page] == 1:
            self.log.store(page)

    def _uncover(self, page: int) -> None:
        self._complete[page] -= 1
        if not self._complete[page]:
            del self._complete[page]
            self.log.remove(page)
