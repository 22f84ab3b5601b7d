"""Processed images between an ingress and a replica: an agent's turn repeats those of all turns before it.

An ingress sends an image once and then names it, by vLLM's hash of its content and of how it was processed. Both ends
are here, because they must let go of the same images. With several ingresses the ingress' end is a guess: where it is
wrong the replica answers `ImagesMissing`, and the attempt is sent again with its images. vLLM's own cache in the engine
core cannot do that: it follows exactly one front end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec

from serve_app.protocol.errors import ImagesMissing
from serve_app.protocol.lru import LruCache
from serve_app.protocol.messages import AttemptRequest

ImageEncoder = Callable[[], list[bytearray]]
"""Encodes a processed image as vLLM sends it to its engine."""


def _size_bytes(buffers: list[bytearray]) -> int:
    return sum(map(len, buffers))


class SentImages:
    """At an ingress: the images that one replica has been sent and keeps, which keeps `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self._names: LruCache[str, bool] = LruCache(max_bytes)

    def to_send(self, images: Mapping[str, ImageEncoder]) -> dict[str, list[bytearray]]:
        """Those of a request that the replica may not have. They count as sent."""
        # All are used before one is added: none of them makes room for another.
        sent = {name: encode() for name, encode in images.items() if not self._names.get(name)}
        for name, buffers in sent.items():
            self._names.put(name, True, _size_bytes(buffers))
        return sent

    def forget(self, names: Iterable[str]) -> None:
        """The replica does not have them."""
        for name in names:
            self._names.forget(name)


class ImageStore:
    """At a replica: the images that were sent to it, as vLLM encoded them, `max_bytes` at most."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._images: LruCache[str, list[bytearray]] = LruCache(max_bytes)

    @property
    def size_bytes(self) -> int:
        """The size of what is kept."""
        return self._images.size

    def clear(self) -> None:
        """Let go of everything."""
        self._images = LruCache(self.max_bytes)

    def complete(self, attempt: AttemptRequest) -> AttemptRequest:
        """The attempt with all images of its request. Raises `ImagesMissing` where one was not sent and is not here."""
        if not attempt.spec.images:
            return attempt
        found = {name: attempt.images.get(name) or self._images.get(name) for name in attempt.spec.images}
        images = {name: buffers for name, buffers in found.items() if buffers is not None}
        for name, buffers in images.items():
            self._images.put(name, buffers, _size_bytes(buffers))
        if len(images) < len(found):
            raise ImagesMissing(f"{len(found) - len(images)} of {len(found)} images")
        return msgspec.structs.replace(attempt, images=images)
