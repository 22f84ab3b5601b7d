"""A request's body, decoded: decompressed within the size limit, and read as JSON even where curl calls it a form."""

from __future__ import annotations

import zlib
from http import HTTPStatus

from serve_app.protocol.errors import RequestRefused

WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
"""zlib's names for the formats."""

CHUNK_BYTES = 1 << 16

ENCODINGS = "gzip, deflate"
"""What can be decoded, for the header `Accept-Encoding` of a refusal."""


def too_large(limit: int, declared: int | None = None) -> RequestRefused:
    """The refusal of a body over the limit."""
    size = f"has {declared} bytes" if declared is not None else "is too large"
    return RequestRefused(f"The request body {size}; the limit is {limit} bytes.", HTTPStatus.REQUEST_ENTITY_TOO_LARGE)


def decode(body: bytes, encoding: str, limit: int) -> bytes:
    """The body without its `Content-Encoding`. Raises `RequestRefused` for an unknown encoding (415), broken data
    (400), or more than `limit` bytes (413); no more than the limit is ever unpacked."""
    names = [name.strip().lower() for name in encoding.split(",")]
    names = [name for name in names if name not in ("", "identity")]
    unknown = [name for name in names if name not in WINDOW_BITS]
    if unknown or len(names) > 1:
        raise RequestRefused(
            f"Content-Encoding `{encoding[:60]}` is not supported; send the body with one of {ENCODINGS}, or plain.",
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        )
    if not names:
        return body
    try:
        return _unpack(body, WINDOW_BITS[names[0]], limit)
    except zlib.error:
        if names[0] == "deflate":  # many senders leave out zlib's header
            try:
                return _unpack(body, -15, limit)
            except zlib.error:
                pass
        raise RequestRefused(f"The request body is not valid {names[0]} data.") from None


def _unpack(body: bytes, window_bits: int, limit: int) -> bytes:
    unpacker = zlib.decompressobj(window_bits)
    unpacked = bytearray()
    rest = body
    while rest and not unpacker.eof:
        unpacked += unpacker.decompress(rest, CHUNK_BYTES)
        if len(unpacked) > limit:
            raise too_large(limit)
        rest = unpacker.unconsumed_tail
    unpacked += unpacker.flush()
    if len(unpacked) > limit:
        raise too_large(limit)
    if not unpacker.eof:
        raise zlib.error("the data ends too early")
    return bytes(unpacked)


def is_json(content_type: str, *, from_browser: bool) -> bool:
    """Whether a body of this type is read as JSON.

    Clients that send no type, and curl (`-d` calls everything a form), mean JSON. A browser must declare it: then it
    sends a preflight first (see `cors.py`), whereas any page could send a form.
    """
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type == "application/json" or (media_type.startswith("application/") and media_type.endswith("+json")):
        return True
    return media_type in ("", "application/x-www-form-urlencoded") and not from_browser


def as_utf8(body: bytes, content_type: str) -> bytes:
    """The body in UTF-8, from the `charset` of its type. Raises `RequestRefused` for one that is unknown or wrong."""
    for parameter in content_type.split(";")[1:]:
        name, _, value = parameter.partition("=")
        charset = value.strip().strip('"').lower()
        if name.strip().lower() != "charset" or charset in ("utf-8", "utf8", "us-ascii", ""):
            continue
        try:
            return body.decode(charset).encode()
        except LookupError:
            problem = f"Charset `{charset[:40]}` is not known; send the body in UTF-8."
            raise RequestRefused(problem, HTTPStatus.UNSUPPORTED_MEDIA_TYPE) from None
        except UnicodeError:
            raise RequestRefused(f"The request body is not valid {charset[:40]}.") from None
    return body
