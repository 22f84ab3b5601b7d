"""Images that are small to send and large to read, or no images at all, as data URLs."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from typing import Final

from PIL import Image

KIB: Final = 1 << 10


def data_url(content: bytes, kind: str = "png") -> str:
    """As a request carries it."""
    return f"data:image/{kind};base64," + base64.b64encode(content).decode()


def png_of(width: int, height: int, rows: int | None = None) -> bytes:
    """A PNG that claims a size, in one bit for each pixel, and has `rows` of it (all, if None)."""
    line = bytes(1 + (width + 7) // 8)
    packer = zlib.compressobj(9)
    body = b"".join([*(packer.compress(line) for _ in range(height if rows is None else rows)), packer.flush()])
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        _chunk(*part) for part in ((b"IHDR", header), (b"IDAT", body), (b"IEND", b""))
    )


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def gif_of(frames: int) -> bytes:
    """An animation."""
    buffer = io.BytesIO()
    pictures = [Image.new("P", (64, 64), number % 250) for number in range(frames)]
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:])
    return buffer.getvalue()


def text_png(mebibytes: int) -> bytes:
    """A PNG of one pixel with a compressed comment of that size."""
    whole = png_of(1, 1)
    comment = _chunk(b"zTXt", b"comment\0\0" + zlib.compress(bytes(mebibytes << 20)))
    head = whole[: 8 + 25]
    return head + comment + whole[len(head) :]


def hostile() -> dict[str, str]:
    """By what they are."""
    red = io.BytesIO()
    Image.new("RGB", (200, 200), "red").save(red, "PNG")
    return {
        "bomb of 400 megapixels": data_url(png_of(20_000, 20_000)),
        "image of 170 megapixels": data_url(png_of(13_000, 13_000)),
        "image that claims 2^31 pixels a side": data_url(png_of((1 << 31) - 1, (1 << 31) - 1, rows=1)),
        "image of 60,000 x 1": data_url(png_of(60_000, 1)),
        "GIF of 3,000 frames": data_url(gif_of(3000), "gif"),
        "truncated image": data_url(red.getvalue()[:300]),
        "SVG": data_url(b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "svg+xml"),
        "PNG with a comment of 200 MiB": data_url(text_png(200)),
        "data URL of 40 MB that is no image": data_url(bytes(30_000 * KIB)),
        "base64 that is none": "data:image/png;base64,%%%%",
        "image of no pixels": data_url(png_of(0, 0)),
    }
