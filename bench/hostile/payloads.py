"""The grammars and images of hostile requests.

Grammars that do not compile, compile without end, explode, or make each token slow (with xgrammar 0.2.8). Images that
are small to send and large to decode, or that are no images, as data URLs.
"""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from typing import Any, Final

from PIL import Image

KIB: Final = 1 << 10

# ---- grammars ------------------------------------------------------------------------------------------------------

STRING: Final = {"type": "string"}


def properties(count: int) -> dict[str, Any]:
    """`count` properties of a schema, all strings."""
    return {f"p{number}": STRING for number in range(count)}


def doubling(depth: int) -> dict[str, Any]:
    """A schema in which each level refers to the next one twice."""
    levels: dict[str, Any] = {
        f"d{level}": {"properties": {side: {"$ref": f"#/$defs/d{level + 1}"} for side in "ab"}}
        for level in range(depth)
    }
    return {"$defs": {**levels, f"d{depth}": STRING}, "$ref": "#/$defs/d0"}


def nested(depth: int) -> dict[str, Any]:
    """A schema of nested objects."""
    schema: dict[str, Any] = STRING
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


EXPLOSIVE: Final[dict[str, dict[str, Any]]] = {
    "regex of 5,000 optional letters": {"regex": "a?" * 5000 + "a" * 5000},
    "regex of 20,000 optional groups": {"regex": "(a|b)?" * 20_000},
    "schema with 100 of 200 properties": {
        "json": {"type": "object", "properties": properties(200), "minProperties": 100, "maxProperties": 150}
    },
    "schema with 1,000 bounded patterns": {
        "json": {
            "type": "object",
            "properties": {f"p{n}": {"type": "string", "pattern": f"[a-z]{{1,{100 + n}}}"} for n in range(1000)},
        }
    },
}
"""Small enough to be accepted, but compiling takes minutes."""

INVALID: Final[dict[str, dict[str, Any]]] = {
    "regex that does not compile": {"regex": "a**"},
    "regex with 40,000 brackets": {"regex": "(" * 40_000 + "a" + ")" * 40_000},
    "EBNF with 40,000 brackets": {"grammar": "root ::= " + "(" * 40_000 + '"a"' + ")" * 40_000},
    "Lark with 40,000 brackets": {"grammar": "start: " + "(" * 40_000 + '"a"' + ")" * 40_000},
    "EBNF with a rule that is missing": {"grammar": "root ::= nowhere"},
    "schema of 1 MB": {"json": {"type": "object", "properties": properties(40_000)}},
    "schema nested 400 levels deep": {"json": nested(400)},
    "schema with numbers of 4,000 digits": {"json": {"type": "integer", "minimum": 10**4000}},
    "schema with nothing to choose from": {"json": {"enum": []}},
    "structural tag without triggers": {
        "structural_tag": json.dumps({"structures": [{"begin": "<a>", "schema": {}, "end": "</a>"}]})
    },
    "structural tag that is a list": {"structural_tag": "[]"},
    "100,000 choices": {"choice": [f"choice {n}" for n in range(100_000)]},
}

BOUNDED: Final[dict[str, dict[str, Any]]] = {
    "choices with half a character": {"choice": ["\ud800"]},
    "schema that is itself": {"json": {"$ref": "#"}},
    "schema that requires itself": {"json": {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}},
    "schema that doubles 30 times": {"json": doubling(30)},
    "schema with arrays of 1,000 arrays of 1,000": {
        "json": {"type": "array", "minItems": 1000, "items": {"type": "array", "minItems": 1000}}
    },
    "schema with a string of 10^9": {"json": {"type": "string", "minLength": 10**9, "maxLength": 10**9}},
    "schema with 3,000 properties": {"json": {"type": "object", "properties": properties(3000)}},
    "EBNF with left recursion": {"grammar": 'root ::= root "a" | "a"'},
    "EBNF with many readings": {"grammar": 'root ::= root root root | root root | "a" | ""'},
    "EBNF that says nothing": {"grammar": "root ::= root"},
    "EBNF of 3,000 rules": {
        "grammar": "root ::= r0\n"
        + "\n".join(f'r{n} ::= "{n}" r{n + 1} | "x"' for n in range(3000))
        + '\nr3000 ::= "e"'
    },
    "regex a{1,1000000}": {"regex": "a{1,1000000}"},
    "regex (a{1,1000}){1,1000}": {"regex": "(a{1,1000}){1,1000}"},
    "Lark with a repeated repetition": {"grammar": "start: /((a{1,100}){1,100}){1,100}/"},
    "schema that needs another library": {"json": {"type": "integer", "multipleOf": 3}},
}
"""May be served or refused; either costs little."""

# ---- images --------------------------------------------------------------------------------------------------------


def data_url(content: bytes, kind: str = "png") -> str:
    """The content as a data URL."""
    return f"data:image/{kind};base64," + base64.b64encode(content).decode()


def png_of(width: int, height: int, rows: int | None = None) -> bytes:
    """A PNG with one bit for each pixel, whose data has only `rows` rows (None: all)."""
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
    """An animation of this many frames."""
    buffer = io.BytesIO()
    images = [Image.new("P", (64, 64), number % 250) for number in range(frames)]
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:])
    return buffer.getvalue()


def text_png(mebibytes: int) -> bytes:
    """A PNG of one pixel with a compressed comment of this size."""
    whole = png_of(1, 1)
    comment = _chunk(b"zTXt", b"comment\0\0" + zlib.compress(bytes(mebibytes << 20)))
    head = whole[: 8 + 25]
    return head + comment + whole[len(head) :]


def hostile_images() -> dict[str, str]:
    """Data URLs by their description."""
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
