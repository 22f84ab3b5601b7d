"""An image that was decoded before: the same pixels and hash as from vLLM, decoded only when they are read."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from vllm.multimodal.hasher import MultiModalHasher
from vllm.multimodal.media.image import ImageMediaIO

from serve_app.ingress.seen_images import DeferredImage, SeenImages

ROTATED = 6
"""EXIF orientation: to be shown rotated by 90 degrees."""


def picture(mode: str, file_format: str, *, orientation: int = 1, **options: Any) -> bytes:
    pixels = np.random.default_rng(1).integers(0, 255, (24, 40, 4), dtype=np.uint8)
    image = Image.fromarray(pixels, "RGBA").convert("RGB").convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, file_format, exif=exif, **options)
    return file.getvalue()


FILES = {
    "jpeg": picture("RGB", "JPEG"),
    "grey jpeg": picture("L", "JPEG"),
    "cmyk": picture("CMYK", "JPEG"),
    "rotated": picture("RGB", "JPEG", orientation=ROTATED),
    "png": picture("RGB", "PNG"),
    "transparent png": picture("RGBA", "PNG"),
    "palette": picture("P", "PNG"),
    "palette with transparency": picture("P", "PNG", transparency=3),
    "webp": picture("RGBA", "WEBP"),
    "gif": picture("P", "GIF"),
}


class Counted:
    """vLLM's `load_bytes`, counted."""

    def __init__(self, **options: Any) -> None:
        self.calls = 0
        self._load = ImageMediaIO(**options).load_bytes

    def __call__(self, data: bytes) -> Any:
        self.calls += 1
        return self._load(data)


def hash_of(media: Any) -> str:
    return MultiModalHasher.hash_kwargs("blake3", image=media)


@pytest.mark.parametrize("data", FILES.values(), ids=FILES)
def test_the_second_time_only_pixels_that_are_read_are_decoded(data: bytes) -> None:
    seen, load = SeenImages(), Counted()
    first = seen.load(load, "", data)
    again = seen.load(load, "", data)
    assert (hash_of(again), again.media.size, again.media.mode) == (hash_of(first), first.media.size, "RGB")
    assert load.calls == 1
    assert isinstance(again.media, DeferredImage)
    assert np.array_equal(np.asarray(again.media), np.asarray(first.media))
    assert load.calls == 2
    assert again.media.resize((7, 5)).tobytes() == first.media.resize((7, 5)).tobytes()
    assert load.calls == 2


@pytest.mark.parametrize(
    "read",
    [
        lambda image: image.convert("L").tobytes(),
        lambda image: image.convert("RGB").tobytes(),
        lambda image: image.crop((2, 3, 20, 20)).tobytes(),
        lambda image: image.resize(image.size).tobytes(),
        lambda image: image.copy().tobytes(),
        lambda image: image.getpixel((3, 4)),
        lambda image: image.split()[1].tobytes(),
        lambda image: image.transpose(Image.Transpose.ROTATE_90).tobytes(),
        lambda image: image.rotate(45).tobytes(),
    ],
)
def test_every_way_to_read_it_sees_its_pixels(read: Any) -> None:
    seen, load = SeenImages(), Counted()
    first = seen.load(load, "", FILES["rotated"])
    assert read(seen.load(load, "", FILES["rotated"]).media) == read(first.media)


def test_a_file_that_cannot_be_decoded_fails_each_time() -> None:
    seen, load = SeenImages(), Counted()
    for _ in range(2):
        with pytest.raises(ValueError, match="Failed to load image"):
            seen.load(load, "", FILES["jpeg"][:200])


def test_other_settings_are_another_image() -> None:
    seen = SeenImages()
    white = seen.load(Counted(), "white", FILES["transparent png"])
    black = seen.load(Counted(rgba_background_color=(0, 0, 0)), "black", FILES["transparent png"])
    assert not isinstance(black.media, DeferredImage)
    assert hash_of(white) != hash_of(black)


def test_only_so_many_are_remembered() -> None:
    seen, load = SeenImages(max_images=1), Counted()
    for name in ("jpeg", "png", "jpeg"):
        assert not isinstance(seen.load(load, "", FILES[name]).media, DeferredImage)
