"""The processed images that were sent to this replica: an agent's turn repeats those of all turns before it.

An ingress sends an image once and then names it, by vLLM's hash of its content and of how it was processed
(`router/sent_images.py`). Where the store has let it go the replica says so, and it is sent again. vLLM's own cache in
the engine core cannot do that: it follows exactly one front end, and here there are several.
"""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from serve_app.config.schema import FlagValue, flag
from serve_app.protocol.errors import ImagesMissing
from serve_app.protocol.messages import AttemptRequest


def image_bytes(flags: dict[str, FlagValue]) -> int:
    """How many bytes of images a replica keeps: as many as an ingress, by vLLM's flag for its cache (GiB)."""
    asked_gb = flag(flags, "mm-processor-cache-gb", 4)  # vLLM's default
    return int(float(asked_gb) * (1 << 30)) if isinstance(asked_gb, int | float | str) else 0


class ImageStore:
    """Images by their hash, as vLLM encoded them. Holds `max_bytes` at most; those used last stay."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.size_bytes = 0
        self._images: OrderedDict[str, list[bytearray]] = OrderedDict()

    def complete(self, attempt: AttemptRequest) -> AttemptRequest:
        """The attempt with all images of its request. Raises `ImagesMissing` where one was not sent and is not here."""
        asked = attempt.spec.images
        if not asked:
            return attempt
        images = {name: found for name in asked if (found := self._find(attempt, name)) is not None}
        for name, buffers in images.items():
            self._keep(name, buffers)
        if len(images) < len(set(asked)):
            raise ImagesMissing(f"{len(set(asked)) - len(images)} of {len(set(asked))} images")
        return msgspec.structs.replace(attempt, images=images)

    def _find(self, attempt: AttemptRequest, name: str) -> list[bytearray] | None:
        sent = attempt.images.get(name)
        return self._images.get(name) if sent is None else sent

    def _keep(self, name: str, buffers: list[bytearray]) -> None:
        if (old := self._images.pop(name, None)) is not None:
            self.size_bytes -= size_bytes(old)
        size = size_bytes(buffers)
        if size > self.max_bytes:
            return
        self._images[name] = buffers
        self.size_bytes += size
        while self.size_bytes > self.max_bytes:
            self.size_bytes -= size_bytes(self._images.popitem(last=False)[1])


def size_bytes(buffers: list[bytearray]) -> int:
    """The size of an encoded image."""
    return sum(map(len, buffers))
