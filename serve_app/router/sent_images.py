"""Which images a replica has: what this ingress has sent there, as long as the replica keeps it.

The replica lets the image go that was used longest ago when its store is full (`engine/image_store.py`), and other
ingresses fill it too. So this is a guess. Where it is wrong the replica answers `ImagesMissing`, and the attempt is
sent again with its images.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping

ImageEncoder = Callable[[], list[bytearray]]
"""Encodes a processed image as vLLM sends it to its engine."""


class SentImages:
    """The images that one replica has been sent, by vLLM's hash of them."""

    def __init__(self) -> None:
        self._size_bytes = 0
        self._sizes: OrderedDict[str, int] = OrderedDict()

    def to_send(self, images: Mapping[str, ImageEncoder], max_bytes: int) -> dict[str, list[bytearray]]:
        """Those of a request that the replica, which keeps `max_bytes`, may not have. They count as sent."""
        sent = {}
        for name, encode in images.items():
            if name in self._sizes:
                self._sizes.move_to_end(name)
                continue
            sent[name] = buffers = encode()
            self._sizes[name] = size = sum(map(len, buffers))
            self._size_bytes += size
        while self._size_bytes > max_bytes:
            self._size_bytes -= self._sizes.popitem(last=False)[1]
        return sent

    def forget(self, names: Iterable[str]) -> None:
        """The replica does not have them."""
        for name in names:
            self._size_bytes -= self._sizes.pop(name, 0)
