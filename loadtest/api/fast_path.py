"""Fast path: extracts the text of similar events without decoding their JSON.

The chunks of one answer differ only in their text. Once one has been decoded, its bytes before and after the text are
known. An event with the same bytes around a string without quote and backslash must decode to the same fields, so only
the string is taken. An event that differs in any other byte is decoded in full: a finish reason, usage, an error,
another channel, or a read that is not exactly one event.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile


class FastPath:
    """The bytes around the text in the events of one channel (content, reasoning or completion text)."""

    __slots__ = ("_before", "_chunked", "_data_before", "_data_tail", "_frame_shapes", "_tail", "visible")

    def __init__(self, data: bytes, key: bytes, text: str, *, visible: bool, chunked: bool) -> None:
        """Take the bytes from a decoded event's data, given its text and the `key` before that. See `usable`."""
        encoded = text.encode()
        at = data.find(key)
        end = at + len(key) + len(encoded)
        unescaped = b"\\" not in encoded and b'"' not in encoded
        found = at >= 0 and data[at + len(key) : end + 1] == encoded + b'"' and unescaped
        self.visible = visible
        self._chunked = chunked
        self._data_before, self._data_tail = data[: at + len(key)], data[end:]
        self._before = b"data: " + self._data_before if found else b""
        self._tail = self._data_tail + (b"\n\n\r\n" if chunked else b"\n\n")
        self._frame_shapes: dict[int, tuple[bytes, int, int]] = {}

    @property
    def usable(self) -> bool:
        """Whether the text stood in the data as it is, without escapes."""
        return bool(self._before)

    def text_of(self, data: bytes) -> bytes | None:
        """The text of an event of this channel, None for any other event; for reads with several events."""
        before, tail = self._data_before, self._data_tail
        if len(data) < len(before) + len(tail) or not (data.startswith(before) and data.endswith(tail)):
            return None
        text = data[len(before) : len(data) - len(tail)]
        return None if b'"' in text or b"\\" in text else text

    def texts_of(self, reads: Sequence[bytes]) -> list[bytes]:
        """The texts of the leading reads that are exactly one event of this channel each."""
        texts: list[bytes] = []
        frame_shapes, tail = self._frame_shapes, self._tail
        for read in reads:
            prefix, start, end = frame_shapes.get(len(read)) or self._frame_shape(len(read))
            if start > end or not (read.startswith(prefix) and read.endswith(tail)):
                break
            texts.append(read[start:end])
        joined = b"".join(texts)
        if b'"' in joined or b"\\" in joined:
            plain = (b'"' not in text and b"\\" not in text for text in texts)
            return [text for text, _ in zip(texts, takewhile(bool, plain), strict=False)]
        return texts

    def _frame_shape(self, size: int) -> tuple[bytes, int, int]:
        """For a read of `size` bytes: all bytes before the text, and where the text starts and ends."""
        prefix = self._before
        if self._chunked:  # the size in the chunk header follows from the size of the read
            # A longer header leaves a shorter payload. Where no number of digits fits exactly, a 0 leads.
            digits = next(n for n in range(1, 17) if size - n - 4 < 16**n)
            prefix = b"%0*x\r\n" % (digits, max(0, size - digits - 4)) + self._before
        self._frame_shapes[size] = prefix, len(prefix), size - len(self._tail)
        return self._frame_shapes[size]
