"""A short cut through a stream's many alike events, exact by construction.

The chunks of one answer differ only in their text. Once one has been decoded in full, its bytes before and after the
text are known. A read that is those bytes around a string without quote and backslash can say nothing else, so it need
not be decoded again. Whatever differs in one byte takes the long way: a finish reason, usage, an error, another
channel, a read that holds half an event or two.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile


class FastPath:
    """What one event of a channel looks like around its text."""

    __slots__ = ("_before", "_chunked", "_data_before", "_data_tail", "_frame_shapes", "_tail", "visible")

    def __init__(self, data: bytes, key: bytes, text: str, *, visible: bool, chunked: bool) -> None:
        """Learn from an event's data, given the field that held its text; see `known`."""
        encoded = text.encode()
        at = data.find(key)
        end = at + len(key) + len(encoded)
        sure = (
            at >= 0 and data[at + len(key) : end + 1] == encoded + b'"' and b"\\" not in encoded and b'"' not in encoded
        )
        self.visible = visible
        self._chunked = chunked
        self._data_before, self._data_tail = data[: at + len(key)], data[end:]
        self._before = b"data: " + self._data_before if sure else b""
        self._tail = self._data_tail + (b"\n\n\r\n" if chunked else b"\n\n")
        self._frame_shapes: dict[int, tuple[bytes, int, int]] = {}

    @property
    def usable(self) -> bool:
        """Whether the event was plain enough to learn from."""
        return bool(self._before)

    def text_of(self, data: bytes) -> bytes | None:
        """The text of an event of this lane, None for any other; for events that share a read."""
        before, tail = self._data_before, self._data_tail
        if len(data) < len(before) + len(tail) or not (data.startswith(before) and data.endswith(tail)):
            return None
        text = data[len(before) : len(data) - len(tail)]
        return None if b'"' in text or b"\\" in text else text

    def texts_of(self, reads: Sequence[bytes]) -> list[bytes]:
        """The texts of the leading reads that are one whole event of this lane each."""
        texts: list[bytes] = []
        frame_shapes, tail = self._frame_shapes, self._tail
        for read in reads:
            lead, start, end = frame_shapes.get(len(read)) or self._frame_shape(len(read))
            if start > end or not (read.startswith(lead) and read.endswith(tail)):
                break
            texts.append(read[start:end])
        joined = b"".join(texts)
        if b'"' in joined or b"\\" in joined:
            plain = (b'"' not in text and b"\\" not in text for text in texts)
            return [text for text, _ in zip(texts, takewhile(bool, plain), strict=False)]
        return texts

    def _frame_shape(self, size: int) -> tuple[bytes, int, int]:
        """All that stands before the text in a read of `size` bytes, and where the text starts and ends."""
        lead = self._before
        if self._chunked:  # HTTP's chunk size follows from the read's
            # The longer the header, the shorter the payload that it counts. Where no plain number fits, a zero leads.
            digits = next(n for n in range(1, 17) if size - n - 4 < 16**n)
            lead = b"%0*x\r\n" % (digits, max(0, size - digits - 4)) + self._before
        self._frame_shapes[size] = lead, len(lead), size - len(self._tail)
        return self._frame_shapes[size]
