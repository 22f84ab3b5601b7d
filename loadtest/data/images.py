"""Prompts with generated images. Each image is different, so none is in a cache of the server."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from loadtest.data.prompt import DatasetSpec, Prompt
from loadtest.data.text import TextSource, load_text
from loadtest.data.tokenizer import PromptTokenizer

QUESTION = "Describe what you see, the shapes and their colours."


def images(spec: DatasetSpec, tokenizer: PromptTokenizer | None, count: int) -> list[Prompt]:
    """The data set `images`: a passage, a question and images. The prompt's length is not known, as images count."""
    rng = np.random.default_rng(spec.seed)
    source = TextSource(load_text(spec.file), tokenizer, rng)
    width, height = spec.image_size
    prompts = []
    for _ in range(count):
        passage, _length = source.passage(spec.input_len)
        urls = [data_url(png(draw(width, height, rng))) for _ in range(spec.images)]
        prompts.append(Prompt(text=f"{passage}\n\n{QUESTION}", output_tokens=spec.output_len, images=urls))
    return prompts


def draw(width: int, height: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Six discs of random colours on a background of a random colour."""
    canvas = np.empty((height, width, 3), dtype=np.uint8)
    canvas[:] = rng.integers(0, 256, size=3)
    rows, columns = np.ogrid[:height, :width]
    for _ in range(6):
        x, y, r = rng.integers(0, width), rng.integers(0, height), rng.integers(4, max(5, min(width, height) // 3))
        canvas[(columns - x) ** 2 + (rows - y) ** 2 <= r**2] = rng.integers(0, 256, size=3)
    return canvas


def png(pixels: NDArray[np.uint8]) -> bytes:
    """An RGB image as PNG."""
    height, width, _ = pixels.shape

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + row.tobytes() for row in pixels)  # filter 0 before every row
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 6)) + chunk(b"IEND", b"")


def data_url(image: bytes) -> str:
    """An image as a data URL for a request body."""
    return "data:image/png;base64," + base64.b64encode(image).decode()
