"""What each replica has in its prefix cache, as one ingress knows it, and which prefixes conversations share.

A replica reports what its engine has stored and removed (`Frame.cache`), so evictions are known, whichever ingress the
requests came from. What this ingress has sent there and is not computed yet counts as cached: a request right behind it
finds it. Where an engine reports nothing, what was sent is taken for cached, the last `kv_cache_tokens` of it.
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter, OrderedDict
from collections.abc import Sequence

from serve_app.protocol.messages import CacheChanges
from serve_app.protocol.pages import PAGE_TOKENS

INT_BYTES = sys.getsizeof(1 << 63)

MAX_SHARED_PAGES = 200_000
"""How many pages of recent prompts are remembered to find out which are shared: 50 million tokens, some 25 MB."""

MAX_BRANCHES = 64
"""More conversations than that on one page make no difference: a 64th of its prefill is next to nothing."""


class ReplicaCache:
    """The prefix cache of one replica. `kv_cache_tokens` bounds what is kept of it; 0: unknown, nothing is."""

    def __init__(self, kv_cache_tokens: int, *, reports: bool) -> None:
        self._max_pages = kv_cache_tokens // PAGE_TOKENS
        self._reports = reports
        self._held: OrderedDict[int, None] = (
            OrderedDict()
        )  # in the order of their last use, where the engine does not report
        self._expected: Counter[int] = Counter()

    def apply(self, changes: CacheChanges) -> None:
        """The engine's report."""
        if changes.reset:
            self._held.clear()
        for page in changes.removed:
            self._held.pop(page, None)
        self._held.update(dict.fromkeys(changes.stored))
        self._trim()

    def expect(self, pages: Sequence[int]) -> None:
        """A request with these pages has been sent there."""
        self._expected.update(pages)
        if not self._reports:
            for page in pages:
                self._held.pop(page, None)
                self._held[page] = None
            self._trim()

    def release(self, pages: Sequence[int]) -> None:
        """That request has ended: what the engine has not reported by now is not cached."""
        expected = self._expected
        for page in pages:
            if expected[page] > 1:
                expected[page] -= 1
            else:
                del expected[page]

    def count(self, pages: Sequence[int]) -> int:
        """How many of a prompt's pages are cached, from its start."""
        held, expected = self._held, self._expected
        for number, page in enumerate(pages):
            if page not in held and page not in expected:
                return number
        return len(pages)

    def size_bytes(self) -> int:
        """About how much memory this takes."""
        pages = len(self._held) + len(self._expected)
        return sys.getsizeof(self._held) + sys.getsizeof(self._expected) + pages * INT_BYTES

    def _trim(self) -> None:
        while len(self._held) > self._max_pages:
            self._held.popitem(last=False)


class SharedPrefixes:
    """How many conversations have each page of a prompt in common, from where their prompts went different ways."""

    def __init__(self, max_pages: int = MAX_SHARED_PAGES) -> None:
        self._max_pages = max_pages
        self._next: OrderedDict[int, int | set[int]] = OrderedDict()

    def observe(self, pages: Sequence[int]) -> list[int]:
        """Take a prompt into account. Returns for each of its pages how many conversations have it: at least as many
        as there are ways to go on from it, or from any page after it."""
        branches = [self._branches(page, follower) for page, follower in itertools.pairwise(pages)]
        conversations = [1] * len(pages)
        most = 1
        for number in range(len(branches) - 1, -1, -1):
            most = max(most, branches[number])
            conversations[number] = most
        while len(self._next) > self._max_pages:
            self._next.popitem(last=False)
        return conversations

    def size_bytes(self) -> int:
        """About how much memory this takes."""
        return sys.getsizeof(self._next) + 2 * len(self._next) * INT_BYTES

    def _branches(self, page: int, follower: int) -> int:
        known = self._next.get(page)
        if known is None:
            self._next[page] = follower
            return 1
        if known == follower:
            return 1
        branches = known if isinstance(known, set) else {known}
        if len(branches) < MAX_BRANCHES:
            branches.add(follower)
        self._next[page] = branches
        self._next.move_to_end(page)  # what is shared is to be forgotten last
        return len(branches)
