"""An image that was decoded before is decoded again only if somebody reads its pixels.

An agent's turn repeats the images of all turns before it. vLLM decodes each, and then finds by the hash of its file
that it has processed it already. So an image whose file was decoded before gets no pixels until they are asked for,
which happens when vLLM has let the processed image go.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from PIL import Image
from vllm.multimodal.media import MediaWithBytes

from serve_app.protocol.lru import LruCache

MAX_IMAGES: Final = 50_000
"""How many are remembered: some 300 bytes each."""

Load = Callable[[bytes], MediaWithBytes[Image.Image]]
"""vLLM's `ImageMediaIO.load_bytes`."""


@dataclass(frozen=True)
class _Seen:
    size: tuple[int, int]
    mode: str
    io_config: dict[str, Any] | None


class DeferredImage(Image.Image):
    """An image that is decoded when its pixels are asked for, as Pillow's own images from files are.

    `decode` must return an image of this size and mode.
    """

    def __init__(self, size: tuple[int, int], mode: str, decode: Callable[[], Image.Image]) -> None:
        super().__init__()
        self._size = size
        self._mode = mode
        self._decode: Callable[[], Image.Image] | None = decode

    def load(self) -> Any:
        """See Pillow's: every method that reads pixels calls it first."""
        if self._decode is not None:
            decoded = self._decode()
            self.im, self.info, self.palette = decoded.im, decoded.info, decoded.palette
            self._decode = None
        return super().load()


class SeenImages:
    """The files of images that this process has decoded without an error. Used by the threads that decode."""

    def __init__(self, max_images: int = MAX_IMAGES) -> None:
        self._seen: LruCache[bytes, _Seen] = LruCache(max_images)
        self._lock = threading.Lock()

    def load(self, load: Load, decoding: str, data: bytes) -> MediaWithBytes[Image.Image]:
        """What `load` returns for the file, with pixels on demand if it was seen before. `decoding` names everything
        else that the result depends on. Raises what `load` raises."""
        key = hashlib.sha256(decoding.encode() + b"\0" + data).digest()
        with self._lock:
            seen = self._seen.get(key)
        if seen is None:
            loaded = load(data)
            with self._lock:
                self._seen.put(key, _Seen(loaded.media.size, loaded.media.mode, loaded.io_config), size=1)
            return loaded
        image = DeferredImage(seen.size, seen.mode, lambda: load(data).media)
        return MediaWithBytes(image, data, seen.io_config)
