"""What has changed in a prefix cache since somebody last asked, as its net effect.

A page that came and went in between is not told at all. So what waits for a slow reader is bounded: by the pages that
the cache holds now, and those that it held when the reader last looked.
"""

from __future__ import annotations

from serve_app.protocol.messages import CacheChanges


class CacheLog:
    """Changes by page hash (`protocol/pages.py`), until they are taken."""

    def __init__(self) -> None:
        self._stored: dict[int, None] = {}
        self._removed: dict[int, None] = {}
        self._reset = False

    def store(self, page: int) -> None:
        """The cache, which did not hold this page, does so now."""
        if page in self._removed:
            del self._removed[page]
        else:
            self._stored[page] = None

    def remove(self, page: int) -> None:
        """The cache, which held this page, does no more."""
        if page in self._stored:
            del self._stored[page]
        elif not self._reset:
            self._removed[page] = None

    def reset(self) -> None:
        """The cache is empty, or unknown."""
        self._stored.clear()
        self._removed.clear()
        self._reset = True

    def add(self, changes: CacheChanges) -> None:
        """What another log gave, after what this one has."""
        if changes.reset:
            self.reset()
        for page in changes.removed:
            self.remove(page)
        for page in changes.stored:
            self.store(page)

    def take(self) -> CacheChanges | None:
        """Everything since the last call; None where nothing changed."""
        if not (self._stored or self._removed or self._reset):
            return None
        changes = CacheChanges(list(self._stored), list(self._removed), reset=self._reset)
        self._stored, self._removed, self._reset = {}, {}, False
        return changes


class CacheMirror:
    """The pages that an engine's prefix cache holds, kept from its changes."""

    def __init__(self) -> None:
        self.pages: set[int] = set()

    def apply(self, changes: CacheChanges) -> None:
        """Follow the cache."""
        if changes.reset:
            self.pages.clear()
        self.pages.difference_update(changes.removed)
        self.pages.update(changes.stored)

    def everything(self) -> CacheChanges:
        """All pages, for a reader that knows nothing."""
        return CacheChanges(list(self.pages), reset=True)
