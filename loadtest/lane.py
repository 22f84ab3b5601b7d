"""A short cut through a stream's many alike events, exact by construction.

The chunks of one answer differ only in their text. Once one has been decoded in full, its bytes before and after the
text are known. A read that is those bytes around a string without quote and backslash can say nothing else, so it need
not be decoded again. Whatever differs in one byte takes the long way: a finish reason, usage, an error, another
channel, a read that holds half an event or two.
"""

from __future__ import annotations


class Lane:
    """What one event of a channel looks like around its text."""

    __slots__ = ("_before", "_chunked", "_leads", "_tail", "visible")

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
        self._before = b"data: " + data[: at + len(key)] if sure else b""
        self._tail = data[end:] + (b"\n\n\r\n" if chunked else b"\n\n")
        self._leads: dict[int, bytes] = {}

    @property
    def known(self) -> bool:
        """Whether the event was plain enough to learn from."""
        return bool(self._before)

    def text_of(self, read: bytes) -> bytes | None:
        """The text of a read that is one whole event of this lane, None for any other read."""
        size = len(read)
        lead = self._leads.get(size) or self._lead(size)
        tail = self._tail
        if not (read.startswith(lead) and read.endswith(tail)) or size < len(lead) + len(tail):
            return None
        text = read[len(lead) : -len(tail)]
        return None if b'"' in text or b"\\" in text else text

    def _lead(self, size: int) -> bytes:
        """All that stands before the text in a read of `size` bytes: HTTP's chunk size follows from it."""
        if self._chunked:
            # The longer the header, the shorter the payload that it counts. Where no plain number fits, a zero leads.
            digits = next(n for n in range(1, 17) if size - n - 4 < 16**n)
            self._leads[size] = b"%0*x\r\n" % (digits, max(0, size - digits - 4)) + self._before
        else:
            self._leads[size] = self._before
        return self._leads[size]
