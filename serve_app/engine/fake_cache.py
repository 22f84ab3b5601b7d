"""The prefix cache of a fake engine: which pages of tokens it holds, and which it gives up for room.

Pages in use are never given up. Of the others those go first that were let go of first, and of one sequence its last
pages before its first ones, as in vLLM: what many requests share is at their start.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from serve_app.engine.cache_log import CacheLog
from serve_app.protocol.pages import PAGE_TOKENS, ROOT, page_hash


def pages_of(tokens: int) -> int:
    """How many pages so many tokens take, the last of them perhaps in part."""
    return -(-tokens // PAGE_TOKENS)


class PageChain:
    """The full pages of a sequence that grows. `keys` stand for its images: the engine does not know where in the
    prompt they are, so they belong to the first page."""

    def __init__(self, token_ids: Iterable[int], keys: Sequence[str]) -> None:
        self._keys = keys
        self._hashes: list[int] = []
        self._tail: list[int] = []
        self.extend(token_ids)

    def __len__(self) -> int:
        return len(self._hashes)

    def __getitem__(self, number: int) -> int:
        return self._hashes[number]

    def extend(self, token_ids: Iterable[int]) -> None:
        """The sequence goes on with these tokens."""
        self._tail.extend(token_ids)
        full = len(self._tail) // PAGE_TOKENS
        for start in range(0, full * PAGE_TOKENS, PAGE_TOKENS):
            parent, keys = (self._hashes[-1], ()) if self._hashes else (ROOT, self._keys)
            self._hashes.append(page_hash(parent, self._tail[start : start + PAGE_TOKENS], keys))
        del self._tail[: full * PAGE_TOKENS]


class FakeCache:
    """Pages by their hash, `capacity` of them with those that sequences have begun and not yet filled."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._users: dict[int, int] = {}
        self._unused: dict[int, None] = {}
        self.log = CacheLog()

    @property
    def used(self) -> int:
        """How many pages are in use."""
        return len(self._users)

    def cached(self, chain: PageChain, limit: int) -> int:
        """How many of the first pages of a sequence are here, of `limit` at most."""
        for number in range(min(limit, len(chain))):
            if chain[number] not in self._users and chain[number] not in self._unused:
                return number
        return min(limit, len(chain))

    def shared(self, chain: PageChain) -> int:
        """How many of the first pages of a sequence others use: it needs no room for them."""
        return next((number for number in range(len(chain)) if chain[number] not in self._users), len(chain))

    def use(self, page: int) -> None:
        """One more sequence uses this page; it is stored if it is not here."""
        if page in self._users:
            self._users[page] += 1
            return
        if page in self._unused:
            del self._unused[page]
        else:
            self.log.store(page)
        self._users[page] = 1

    def release(self, pages: Sequence[int]) -> None:
        """A sequence uses these pages no more. They stay until their room is needed."""
        for page in reversed(pages):
            self._users[page] -= 1
            if not self._users[page]:
                del self._users[page]
                self._unused[page] = None

    def make_room(self, begun: int) -> None:
        """Give up pages until `begun` more have room. Where sequences use more than there is, nothing else is left."""
        while self._unused and len(self._users) + len(self._unused) + begun > self._capacity:
            self._evict(next(iter(self._unused)))

    def clear(self) -> None:
        """Give up every page that no sequence uses."""
        for page in list(self._unused):
            self._evict(page)

    def _evict(self, page: int) -> None:
        del self._unused[page]
        self.log.remove(page)
