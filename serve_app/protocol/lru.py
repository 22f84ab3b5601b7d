"""A cache that is bounded by the size of its entries. Those that were used longest ago go first."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class LruCache(Generic[Key, Value]):
    """At most `max_size`, in whatever unit the sizes of the entries have. Not for several threads at once."""

    def __init__(self, max_size: int) -> None:
        self.max_size = max_size
        self.size = 0
        self._entries: OrderedDict[Key, tuple[Value, int]] = OrderedDict()

    def get(self, key: Key) -> Value | None:
        """The entry, which is thereby used; None where there is none."""
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key][0]

    def put(self, key: Key, value: Value, size: int) -> None:
        """Keep an entry in place of any other with this key. One that is larger than the cache is not kept."""
        self.forget(key)
        if size > self.max_size:
            return
        self._entries[key] = value, size
        self.size += size
        while self.size > self.max_size:
            self.forget(next(iter(self._entries)))

    def forget(self, key: Key) -> None:
        """Remove the entry, if there is one."""
        _, size = self._entries.pop(key, (None, 0))
        self.size -= size
